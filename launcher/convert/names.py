"""What a legacy and a torch_dist checkpoint call a parameter, and which modules have extra state.

Transformer Engine's modules fuse a norm into the linear layer behind it, so it is called by that
layer. Megatron's local modules on the CPU read the same names (launcher/megatron/cpu_modules.py).
Sources, Megatron-Core 0.15 to 0.19: gpt_layer_specs.py,
experimental_attention_variant_module_specs.py (core/models/gpt), sharded_state_dict of
transformer_block.py, multi_token_prediction.py and moe/experts.py (core/transformer); compared
with checkpoints that Megatron-Core 0.19.2 wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launcher.config.arguments import Arguments, value
from launcher.convert import parameters
from launcher.convert.parameters import Parameter
from launcher.plan.shape import Model
from launcher.plan.stages import Layer


@dataclass(frozen=True)
class Naming:
    """The arguments of a job that decide how its parameters are called."""

    grouped: bool  # experts are one grouped GEMM
    homogeneous: bool  # torch_dist stacks the decoder's layers into one tensor
    mtp_layer: str  # what the model calls the transformer layer of MTP


def naming(arguments: Arguments, release: str) -> Naming:
    """Return the naming of a job, from its arguments and its Megatron-Core release."""
    frequencies = ("--moe-layer-freq", "--linear-attention-freq")
    return Naming(
        grouped="--moe-grouped-gemm" in arguments,
        homogeneous=all(value(arguments, flag) in (None, "1") for flag in frequencies),
        mtp_layer="transformer_layer" if release in ("0.15", "0.16") else "mtp_model_layer",
    )


def _fused(layer: Layer, model: Model) -> Iterator[tuple[str, str]]:
    """Return the norms of a layer that Transformer Engine fuses: their names apart, and fused."""
    if layer.linear:
        yield "input_layernorm.", "self_attention.in_proj.layer_norm_"
    elif model.indexer:  # which reads the normalised queries too
        pass
    elif model.attention.latent:
        yield "self_attention.q_layernorm.", "self_attention.linear_q_up_proj.layer_norm_"
        yield "self_attention.kv_layernorm.", "self_attention.linear_kv_up_proj.layer_norm_"
    else:
        yield "input_layernorm.", "self_attention.linear_qkv.layer_norm_"
    if not layer.moe:
        yield "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"


_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(linear_fc[12])\.(weight|bias)$")


def legacy(relative: str, layer: Layer, model: Model, naming: Naming, first_expert: int) -> str:
    """Return the name within a layer of a rank's file; experts are counted from `first_expert`."""
    expert = _EXPERT.match(relative)
    if expert:
        number, linear, kind = int(expert[1]) - first_expert, expert[2], expert[3]
        if naming.grouped:
            return f"mlp.experts.{linear}.{kind}{number}"
        return f"mlp.experts.local_experts.{number}.{linear}.{kind}"
    return _renamed(relative, _fused(layer, model))


def sharded(relative: str, layer: Layer, model: Model) -> str:
    """Return the name within a layer of a torch_dist checkpoint, which has one for all experts."""
    expert = _EXPERT.match(relative)
    if expert:
        return f"mlp.experts.experts.{expert[2]}.{expert[3]}"
    return _renamed(relative, _fused(layer, model))


def _renamed(name: str, changes: Iterable[tuple[str, str]]) -> str:
    for apart, fused in changes:
        if name.startswith(apart):
            return fused + name[len(apart) :]
    return name


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a torch_dist checkpoint: a part of the tensor `key`."""

    key: str
    stack: tuple[int, ...]  # sizes of the axes that torch_dist puts before: layers, experts
    index: tuple[int, ...]  # the parameter's place on those axes


def place(parameter: Parameter, layer: Layer | None, model: Model, naming: Naming) -> Place:
    """Return where torch_dist keeps a parameter; `layer` is None outside the layers."""
    if layer is None:
        return Place(parameter.name, (), ())
    start = parameters.prefix(layer)
    relative = parameter.name[len(start) :]
    key, stack, index = start, [], []
    if naming.homogeneous and not layer.mtp:
        key, stack, index = "decoder.layers.", [model.layers], [layer.number]
    expert = _EXPERT.match(relative)
    if expert:
        assert model.experts is not None
        stack.append(model.experts.count)
        index.append(int(expert[1]))
    return Place(key + sharded(relative, layer, model), tuple(stack), tuple(index))


def core_attention(name: str, model: Model) -> str | None:
    """Return the attention beside a projection's weight, if Megatron saves an `_extra_state`.

    It is Transformer Engine's; sparse attention is Megatron's own.
    """
    last = "linear_proj.weight"
    if model.indexer or not name.endswith(f".{last}"):
        return None
    return name[: -len(last)] + "core_attention"


_WEIGHT = re.compile(r"\.(layer_norm_)?(weight|bias)\d*$")
_NO_EXTRA_STATE = ("router", "conv1d", "word_embeddings")


def stateful(name: str) -> str | None:
    """Return the module of a named weight if Megatron saves an `_extra_state` with it.

    Linear layers and norms have one. It only ever holds FP8 scales, and
    there are none yet. `name` is one that `legacy` or `sharded` returned.
    """
    if not _WEIGHT.search(name):
        return None
    module = _WEIGHT.sub("", name)
    last = module.rsplit(".", 1)[-1]
    return None if last in _NO_EXTRA_STATE else module
