"""What Megatron's local modules lack without Transformer Engine, so that real jobs fit the CPU.

Megatron's model specs for `--transformer-impl local` refuse or lack context parallelism, sequence
parallel norms, the undivided MLA down projections, FusedAdam and the gated delta net. Each function
below supplies one of them.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch.optim.adam import adam


def install() -> None:
    """Import megatron.core and complete it for the CPU; `cpu_device.install` calls this."""
    _provide_dataset_helper()
    _provide_norms()
    _provide_attention()
    _provide_mla_projections()
    _provide_experts()
    _provide_what_older_releases_forget()
    _provide_recomputation()
    _provide_adam()
    _read_checkpoints_of_transformer_engine()
    # Other releases arrange these differently; a job that needs them there says so itself.
    for provide in (_provide_clamp, _norm_uncompressed_query, _provide_gated_delta_net):
        with contextlib.suppress(ImportError, AttributeError):
            provide()
    _skip_warm_up()


def _provide_dataset_helper() -> None:
    """Use the compiled dataset index helper of the installed wheel instead of running make."""
    import megatron
    import megatron.core.datasets as datasets
    from megatron.core.datasets import utils

    # A source checkout has no compiled helper; the wheel beside it has.
    datasets.__path__.extend(f"{path}/core/datasets" for path in megatron.__path__)
    with contextlib.suppress(ImportError):
        import megatron.core.datasets.helpers_cpp

        utils.compile_helpers = lambda: None


def _provide_norms() -> None:
    """Give torch's norms sequence parallelism and zero-centered weights, which Megatron refuses."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    WrappedTorchNorm.__new__ = staticmethod(_new_norm)


class _ZeroCentered:
    """A norm whose stored weight is its distance from 1 (`--apply-layernorm-1p`)."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters(recurse=False):
            torch.nn.init.zeros_(parameter)


class _ZeroCenteredRMSNorm(_ZeroCentered, torch.nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight + 1, self.eps)


class _ZeroCenteredLayerNorm(_ZeroCentered, torch.nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


_NORMS = {
    ("RMSNorm", False): torch.nn.RMSNorm,
    ("RMSNorm", True): _ZeroCenteredRMSNorm,
    ("LayerNorm", False): torch.nn.LayerNorm,
    ("LayerNorm", True): _ZeroCenteredLayerNorm,
}


def _new_norm(
    cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any
) -> torch.nn.Module:
    """A torch norm for the configuration; KeyError for a normalization that torch lacks."""
    norm = _NORMS[config.normalization, config.layernorm_zero_centered_gamma](hidden_size, eps=eps)
    for parameter in norm.parameters():
        # Each tensor rank sees a part of the sequence: Megatron sums the gradients of these.
        parameter.sequence_parallel = config.sequence_parallel
    return norm


def _provide_attention() -> None:
    """Give the local attention context parallelism, MLA's head sizes and torch's fast kernel.

    Attention sinks (`--softmax-type`) and sliding windows are served there too.
    """
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    DotProductAttention.__init__ = _attention_init(DotProductAttention.__init__)
    DotProductAttention.forward = _attention_forward(DotProductAttention.forward)


def _attention_init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(
        self: Any,
        config: Any,
        *args: Any,
        k_channels: int | None = None,
        v_channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        alone = copy.copy(config)
        alone.context_parallel_size = 1
        original(self, alone, *args, **kwargs)
        self.config = config

    return init


def _attention_forward(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    from megatron.core import tensor_parallel
    from megatron.core.transformer.enums import AttnMaskType

    @functools.wraps(original)
    def forward(
        self: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if (attn_mask_type or self.attn_mask_type) is not AttnMaskType.causal:
            return original(self, query, key, value, attention_mask, attn_mask_type, **kwargs)
        if kwargs.get("packed_seq_params") is not None:
            raise NotImplementedError("packed sequences need Transformer Engine's attention")
        mask, sinks, window = None, self.softmax_offset, self.scale_mask_softmax.window_size
        own = keys = torch.arange(len(query))  # positions in the sequence
        if self.config.context_parallel_size > 1:
            key, value, own, keys = _gather_context(key, value, self.pg_collection.cp)
        if window is not None or sinks is not None or own is not keys:
            mask = _visible(own, keys, window)
        if sinks is not None:
            key, value = (F.pad(one, (0, 0, 0, 0, 0, 0, 0, 1)) for one in (key, value))
            mask = _with_sinks(mask, sinks.to(query.dtype))
        dropout = self.attention_dropout.p if self.training else 0.0
        sequence, batch, heads, _ = query.shape
        # Where the sequence is not split, dropout must differ between tensor ranks.
        own_state = dropout > 0 and not self.config.sequence_parallel
        fork = tensor_parallel.get_cuda_rng_tracker().fork
        with fork() if own_state else contextlib.nullcontext():
            context = F.scaled_dot_product_attention(
                *(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=self.softmax_scale,
                enable_gqa=heads != key.shape[2],
            )
        return context.permute(2, 0, 1, 3).reshape(sequence, batch, -1)

    return forward


def _visible(own: torch.Tensor, keys: torch.Tensor, window: Any) -> torch.Tensor:
    """Whether the query at each own position sees the key at each position: [queries, keys].

    A window is how many tokens before the query's own it sees, and how many behind; -1: all.
    """
    distance = own[:, None] - keys
    before, _ = window or (-1, 0)
    return (distance >= 0) & (distance <= before) if before >= 0 else distance >= 0


def _with_sinks(visible: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """What is added to the scores, with one key more, whose score is a head's sink.

    [queries, keys] and [heads] become [1, heads, queries, keys + 1]. The further key and its value
    are zero, so it only takes its share of the softmax.
    """
    scores = sinks.new_zeros(visible.shape).masked_fill(~visible, float("-inf"))
    shape = (1, len(sinks), len(scores))
    last = sinks[None, :, None, None].expand(*shape, 1)
    return torch.cat((scores.expand(*shape, -1), last), dim=-1)


def _gather_context(
    key: torch.Tensor, value: torch.Tensor, group: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values of the whole sequence, the positions of the local queries, and the keys'.

    Of 2n chunks of the sequence, rank r of n holds chunks r and 2n-1-r, in this order.
    """
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

    both = torch.cat((key, value), dim=-1)
    gathered = gather_from_sequence_parallel_region(both, group=group)
    ranks, chunk = group.size(), key.shape[0] // 2
    starts = torch.tensor([(rank, 2 * ranks - 1 - rank) for rank in range(ranks)]) * chunk
    positions = starts[..., None] + torch.arange(chunk)
    own, keys = positions[group.rank()].reshape(-1), positions.reshape(-1)
    return (*gathered.split((key.shape[-1], value.shape[-1]), dim=-1), own, keys)


class DuplicatedLinear(torch.nn.Module):
    """A linear layer with its whole weight on every tensor rank, as MLA's down projections have."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable[[torch.Tensor], Any],
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        assert not bias, "a duplicated linear layer has no bias"
        self.weight = torch.nn.Parameter(
            torch.empty(output_size, input_size, dtype=config.params_dtype)
        )
        if config.perform_initialization:
            init_method(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return F.linear(x, self.weight), None

    def backward_dw(self) -> None:
        """Nothing is left to do: the weight's gradient comes with the input's."""


def _provide_clamp() -> None:
    """Have local experts add their bias before the clamp of quick GeGLU.

    Transformer Engine's grouped layer has added it by then, and so has Megatron where nothing is
    fused. Its fused function clamps first.
    """
    from megatron.core.transformer import mlp

    original = mlp.weighted_bias_quick_geglu_impl

    @functools.wraps(original)
    def impl(input: torch.Tensor, bias: torch.Tensor | None, *args: Any, **kwargs: Any) -> Any:
        return original(input if bias is None else input + bias, None, *args, **kwargs)

    mlp.weighted_bias_quick_geglu_impl = impl


def _provide_mla_projections() -> None:
    """Have the local spec build MLA's down projections undivided, as Transformer Engine's does."""
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.transformer import multi_latent_attention

    # Releases before 0.17 have the specification only, with these submodules inside.
    name = "get_gpt_layer_local_submodules"
    if not hasattr(gpt_layer_specs, name):
        name = "get_gpt_layer_local_spec"
    original = getattr(gpt_layer_specs, name)

    @functools.wraps(original)
    def undivided(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        layer = getattr(found, "submodules", found)
        attention = layer.self_attention.submodules
        if hasattr(attention, "linear_kv_down_proj"):
            attention.linear_q_down_proj = attention.linear_kv_down_proj = DuplicatedLinear
        return found

    setattr(gpt_layer_specs, name, undivided)
    # Megatron asks for a duplicated layer only where the class has this name.
    multi_latent_attention.TELinear = DuplicatedLinear
    with contextlib.suppress(ImportError):  # sparse attention's, since 0.18
        from megatron.core.transformer.experimental_attention_variant import absorbed_mla

        absorbed_mla.TELinear = DuplicatedLinear


def _provide_experts() -> None:
    """Build local experts one by one, as from 0.17 on: earlier ones need grouped_gemm."""
    from megatron.core.models import backends

    original = backends.LocalSpecProvider.grouped_mlp_modules

    def one_by_one(self: Any, grouped: bool, *others: bool) -> Any:
        return original(self, False, *(False for _ in others))

    backends.LocalSpecProvider.grouped_mlp_modules = one_by_one


def _provide_what_older_releases_forget() -> None:
    """Keep 0.15's mock tokens in the vocabulary; name the kernel that 0.15 and 0.16 look for."""
    from megatron.core.datasets import gpt_dataset
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    mock = gpt_dataset.MockGPTLowLevelDataset
    original = mock.__getitem__

    @functools.wraps(original)
    def within(self: Any, index: int) -> Any:
        return original(self, index) % self.tokenizer.vocab_size

    if "vocab_size" not in mock.__init__.__code__.co_names:  # else it does so itself
        mock.__getitem__ = within


def _norm_uncompressed_query() -> None:
    """Without q LoRA, put the query's norm before its projection, as Transformer Engine does.

    Megatron 0.19 then normalises the hidden state once more; the published DeepSeek-V2-Lite does
    not. It is what a job on GPUs trains, so it is what runs here.
    """
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention as attention
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    class NormColumnParallelLinear(ColumnParallelLinear):
        """A norm of the input, then the projection, as TELayerNormColumnParallelLinear."""

        def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any):
            super().__init__(input_size, output_size, config=config, **kwargs)
            self.norm = WrappedTorchNorm(config, input_size, eps=config.layernorm_epsilon)

        def forward(self, input_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(self.norm(input_), *args, **kwargs)

    original, resolver_init = attention.__init__, QKNormConfigResolver.__init__

    @functools.wraps(original)
    def init(self: Any, config: Any, submodules: Any, *args: Any, **kwargs: Any) -> None:
        if config.q_lora_rank is None:
            submodules = copy.copy(submodules)
            submodules.q_layernorm = IdentityOp
        original(self, config, submodules, *args, **kwargs)

    @functools.wraps(resolver_init)
    def with_fused_norm(self: Any, *args: Any, **kwargs: Any) -> None:
        resolver_init(self, *args, **kwargs)
        self.fused_norm_linear_impl = NormColumnParallelLinear

    attention.__init__, QKNormConfigResolver.__init__ = init, with_fused_norm


def _provide_recomputation() -> None:
    """Serve selective recomputation: no FP8 state, and no C++ extension to compile at run time."""
    from megatron.core.tensor_parallel import random

    class NoFP8:
        """Transformer Engine's FP8 state, always off."""

        is_fp8_enabled = staticmethod(lambda: False)

    def no_context(*args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def share_storage(target: torch.Tensor, source: torch.Tensor) -> None:
        # Below the tensor, as the extension does: autograd must not see a change.
        storage = target.untyped_storage()
        storage.resize_(source.untyped_storage().nbytes())
        storage.copy_(source.untyped_storage())

    random.FP8GlobalStateManager = NoFP8
    random.activation_recompute_forward = random.fp8_autocast = no_context
    random._get_share_storage = lambda: share_storage


class FusedAdam(torch.optim.Optimizer):
    """Adam that counts its steps per group, the form in which Megatron saves and loads it.

    torch's own keeps the count in each parameter's state, and the distributed optimizer cannot
    load that back.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.decoupled = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            group["step"] = group.get("step", 0) + 1
            for parameter in parameters:
                if not self.state[parameter]:
                    for name in ("exp_avg", "exp_avg_sq"):
                        self.state[parameter][name] = torch.zeros_like(parameter)
            (beta1, beta2), states = group["betas"], [self.state[p] for p in parameters]
            adam(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [torch.tensor(group["step"] - 1.0) for _ in parameters],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                decoupled_weight_decay=self.decoupled,
            )


def _provide_adam() -> None:
    """Stand in for the FusedAdam of Apex."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True


def _read_checkpoints_of_transformer_engine() -> None:
    """Name weights in checkpoints as Transformer Engine's modules do, so that either loads both.

    There a norm is part of the projection behind it, and a rank's experts are one module. Megatron
    itself does this for some local layers, and names the norm before a router differently.
    """
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_layer import TransformerLayer

    original = TransformerLayer.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        names = _names_in_transformer_engine(self)
        self.submodules_config = copy.copy(self.submodules_config)
        self.submodules_config.sharded_state_dict_keys_map = names  # for torch_dist, both ways

        def rename(module: Any, state: dict[str, Any], prefix: str, *args: Any) -> None:
            for key in [key for key in state if key.startswith(prefix)]:
                name = _GROUPED_EXPERT.sub(
                    r"mlp.experts.local_experts.\3.\1.\2", key[len(prefix) :]
                )
                for own, engines in names.items():
                    if name.startswith(engines):
                        name = own + name[len(engines) :]
                state[prefix + name] = state.pop(key)

        self.register_load_state_dict_pre_hook(rename)  # for the legacy layout

    TransformerLayer.__init__ = init

    load = GPTModel.load_state_dict

    @functools.wraps(load)
    def without_scales(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        # FP8 scales, of modules that the local ones are not; Megatron would load on, less strictly.
        kept = {key: value for key, value in state.items() if not key.endswith("_extra_state")}
        return load(self, kept, *args, **kwargs)

    GPTModel.load_state_dict = without_scales


_GROUPED_EXPERT = re.compile(r"^mlp\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$")


def _names_in_transformer_engine(layer: Any) -> dict[str, str]:
    """The beginnings of a local layer's weight names, and what they are in Transformer Engine's."""
    attention, names = layer.self_attention, {}
    if hasattr(attention, "linear_qkv"):
        names["input_layernorm."] = "self_attention.linear_qkv.layer_norm_"
    elif hasattr(attention, "in_proj"):
        names["input_layernorm."] = "self_attention.in_proj.layer_norm_"
    elif not hasattr(attention.core_attention, "indexer"):  # which needs its norms apart
        names["self_attention.q_layernorm."] = "self_attention.linear_q_up_proj.layer_norm_"
        names["self_attention.linear_q_proj.norm."] = "self_attention.linear_q_proj.layer_norm_"
        names["self_attention.kv_layernorm."] = "self_attention.linear_kv_up_proj.layer_norm_"
    if not hasattr(layer.mlp, "router"):
        names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    return names


def _skip_warm_up() -> None:
    """Skip the warm-up of compiled fusions: there are none, and it would draw random numbers."""
    from megatron.training import initialize

    initialize._warmup_jit_function = lambda *args, **kwargs: None


def _provide_gated_delta_net() -> None:
    """Serve `--experimental-attention-variant gated_delta_net` with local layers and torch ops."""
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.models.gpt import experimental_attention_variant_module_specs as specs
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.ssm.gated_delta_net import common, gdn
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear

    class LocalBackend(LocalSpecProvider):
        """The local modules, with a separate norm where Transformer Engine fuses it."""

        def linear(self) -> type:
            return DuplicatedLinear

        def column_parallel_layer_norm_linear(self) -> type:
            return ColumnParallelLinear

    def self_attention(config: Any, backend: Any = None) -> Any:
        layer = get_gpt_layer_local_spec(
            qk_layernorm=config.qk_layernorm,
            multi_latent_attention=config.multi_latent_attention,
            normalization=config.normalization,
            qk_l2_norm=config.qk_l2_norm,
        )
        layer.submodules.self_attention.metainfo["fuse_input_layernorm"] = False
        return layer.submodules.self_attention

    delta_net = specs.get_gated_delta_net_module_spec

    def gated_delta_net(config: Any, backend: Any = None) -> Any:
        attention = delta_net(config, backend)
        attention.metainfo["fuse_input_layernorm"] = False
        return attention

    specs._get_backend_spec_provider = lambda config: LocalBackend()
    specs._get_self_attention_module_spec = self_attention
    specs.get_gated_delta_net_module_spec = gated_delta_net
    # In place of the flash-linear-attention package, whose kernels are Triton.
    common.HAVE_FLA = True
    common.l2norm = lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
    gdn.causal_conv1d = _causal_conv1d
    gdn.chunk_gated_delta_rule = common.torch_chunk_gated_delta_rule


def _causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Depthwise convolution over [batch, sequence, channel] that sees no later token, then SiLU."""
    channels, width = weight.shape
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=channels)).transpose(1, 2), None
