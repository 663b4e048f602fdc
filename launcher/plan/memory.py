"""GPU memory of each pipeline rank, term by term, in bytes.

Static terms follow Megatron's buffers (core/distributed/param_and_grad_buffer.py) and optimizers
(core/optimizer/distrib_optimizer.py). Activations are the tensors that Transformer Engine's
modules and Megatron's own functions save for the backward pass, as read in their sources and in
Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
(arXiv:2205.05198), whose per-layer sums they extend to latent attention and experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.plan import parameters
from launcher.plan.parameters import Count
from launcher.plan.shape import Experts, LinearAttention, Shape
from launcher.plan.stages import Chunk, Layer, Stage

GIB = 2**30
# What CUDA reports of GPUs sold with 80, 141, 180, 186 and 288 GB, in GiB. GB200: 0.7 below the
# 185.0 of nvidia-smi, as on a B200. GB300: 288·10^9 bytes.
GPU_GIB = {"H100": 79.1, "H200": 139.8, "B200": 178.3, "GB200": 184.3, "GB300": 268.2}

ACTIVATION = 2  # bytes of an element in BF16
SINGLE = 4  # bytes of an element in FP32
# One FP8 byte, and a scale of 4 bytes for 128 elements (blockwise) or of one for 32 (MXFP8).
QUANTIZED = 1 + 1 / 32
# Tokens that the fullest rank gets, of its even share, where nothing balances them by force.
IMBALANCE = 1.2
# CUDA context and kernels, cuBLAS and cuDNN workspaces, NCCL's buffers of all groups.
FRAMEWORK = 4 * GIB
# Communication buffers that the fused dispatchers allocate outside PyTorch.
DISPATCHER = {"deepep": 1 * GIB, "hybridep": 2 * GIB}


@dataclass(frozen=True)
class Rank:
    """Memory of one pipeline rank at its fullest, in bytes."""

    pipeline_rank: int
    weights: int
    gradients: int  # Transformer Engine's placeholders included
    optimizer: int  # what stays on the GPU throughout
    offloaded_states: int  # what is on the GPU during the optimizer's step only
    activations: int  # saved for backward by all micro-batches in flight
    logits: int  # logits and loss
    working: int  # gradients, communication and recomputed tensors of the layer at work
    framework: int
    in_flight: tuple[int, ...]  # micro-batches, by virtual chunk, at the fullest moment

    @property
    def static(self) -> int:
        """What is there between steps."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The fullest moment: forward and backward, or the step that needs offloaded states."""
        running = self.activations + self.logits + self.working
        return self.static + self.framework + max(running, self.offloaded_states)


@dataclass(frozen=True)
class Saved:
    """A tensor that is saved for the backward pass."""

    what: str
    size: float  # bytes of one micro-batch
    # Recomputation modules of which any one makes it unnecessary (--recompute-modules).
    spared_by: frozenset[str] = frozenset()
    offloaded_by: str = ""  # the module of --offload-modules that sends it to the CPU


def ranks(shape: Shape, split: Sequence[Stage], imbalance: float | None = None) -> tuple[Rank, ...]:
    """Return the memory of every pipeline rank; `imbalance` replaces the assumed one."""
    return tuple(
        rank(shape, stage, count, imbalance)
        for stage, count in zip(split, parameters.stages(shape, split))
    )


def rank(shape: Shape, stage: Stage, count: Count, imbalance: float | None = None) -> Rank:
    """Return the memory of one pipeline rank."""
    # Layers of a kind are equal: each is computed once a rank.
    kinds = {one.kind: one for one in stage.layers}
    sizes = {kind: kept(shape, one, imbalance) for kind, one in kinds.items()}
    saved = [chunk_activations(shape, chunk, sizes) for chunk in stage.chunks]
    losses = [logits(shape, chunk) for chunk in stage.chunks]
    flying = in_flight(shape, stage.pipeline_rank, [one + loss for one, loss in zip(saved, losses)])
    resident, visiting = optimizer(shape, count)
    at_work = max((working(shape, one, imbalance) for one in kinds.values()), default=0.0)
    if shape.training.overlap_experts:
        at_work += max(sizes.values(), default=0.0)
    return Rank(
        pipeline_rank=stage.pipeline_rank,
        weights=weights(shape, count),
        gradients=gradients(shape, count) + placeholders(shape, stage),
        optimizer=resident,
        offloaded_states=visiting,
        activations=round(sum(one * n for one, n in zip(saved, flying))),
        logits=round(sum(one * n for one, n in zip(losses, flying))),
        # A layer goes backward only after the loss of its micro-batch, whose logits are gone then.
        working=round(max(0.0, at_work - max(losses))),
        framework=FRAMEWORK + DISPATCHER.get(shape.training.dispatcher, 0),
        in_flight=flying,
    )


def worst(found: Sequence[Rank]) -> Rank:
    """Return the rank that needs most."""
    return max(found, key=lambda one: one.total)


def room(found: Sequence[Rank], gpu: str) -> float:
    """Return the GiB that the fullest rank leaves free on a GPU; negative where it does not fit."""
    return GPU_GIB[gpu] - worst(found).total / GIB


def assumptions(shape: Shape, imbalance: float | None = None) -> list[str]:
    """Return what the numbers rest on, for whoever reads them."""
    training, experts = shape.training, shape.model.experts
    lines = [
        "activations are read off Megatron's and Transformer Engine's sources and counted in "
        "Megatron's layers; nothing was calibrated on a GPU",
        f"{FRAMEWORK / GIB:g} GiB for CUDA, NCCL and workspaces, and "
        f"{DISPATCHER.get(training.dispatcher, 0) / GIB:g} GiB of dispatcher buffers",
        "flash or fused attention: no matrix of scores; no dropout",
        "all that CUDA reports of the GPU's memory is usable; no fragmentation (without expandable "
        "segments, published runs on B200 reserved 4 to 7 % more than they allocated)",
        "buffers without their padding: parameters start at multiples of 64 elements, buckets end "
        "at multiples of 128 and of DP",
    ]
    if experts is not None:
        lines.append(
            f"the fullest rank gets {_imbalance(experts, imbalance):g} times its even share "
            "of tokens in every MoE layer"
        )
    if training.fp8:
        lines.append(
            "FP8 keeps two copies of a weight, for forward and for backward, and saves the inputs "
            "of matrix products in one byte"
        )
    if training.graph_modules:
        lines.append("the private pools of CUDA graphs hold what would be saved anyway, no more")
    if training.activations_offloaded:
        lines.append("offloaded activations of one layer at a time are on the GPU")
    if training.offloaded:
        lines.append("the CPU's optimizer holds nothing on the GPU, staging buffers included")
    return lines


# Static memory


def weights(shape: Shape, count: Count) -> int:
    """Return the parameters as forward and backward use them.

    BF16: two bytes. With FP8, Transformer Engine needs each matrix row-wise for forward and
    column-wise for backward: two FP8 tensors. They are all there is with --fp8-param-gather
    (param_and_grad_buffer.py: MXFP8 is gathered through the gradients' buffer, blockwise FP8 in
    its own storage); without it they are caches beside the BF16 weights, refreshed once a step
    (`is_first_microbatch`, core/extensions/transformer_engine.py).
    """
    training = shape.training
    if training.fp8 is None:
        return count.total * training.weight_bytes
    eight = count.matrices + count.routed
    pair = 2 * (QUANTIZED if training.fp8 == "mxfp8" else 1)
    each = pair if training.fp8_parameters else pair + training.weight_bytes
    return round(eight * each + (count.total - eight) * training.weight_bytes)


def gradients(shape: Shape, count: Count) -> int:
    """Return the gradient buffer, whole on every rank until the optimizer reduces it.

    Four bytes unless --grad-reduce-in-bf16 or --main-grads-dtype bf16 (validate_args).
    """
    return count.total * shape.training.gradient_bytes


def placeholders(shape: Shape, stage: Stage) -> int:
    """Return what Transformer Engine hands autograd as the gradients of weights.

    Its fused accumulation writes a weight's gradient straight into the buffer; autograd still asks
    for a tensor of the weight's shape and type, and gets one that nobody reads: a single one for
    each shape, kept from the first backward on (get_dummy_wgrad, transformer_engine/pytorch/module/
    base.py; core/tensor_parallel/layers.py asks for the output layer's).
    """
    if not shape.training.fused_gradients:
        return 0
    shapes = {one for layer in stage.layers for one in parameters.products(shape, layer)}
    if any(chunk.loss for chunk in stage.chunks):
        shapes.add((shape.model.vocabulary // shape.parallel.tensor, shape.model.hidden))
    return sum(rows * columns for rows, columns in shapes) * shape.training.weight_bytes


def optimizer(shape: Shape, count: Count) -> tuple[int, int]:
    """Return the optimizer's bytes that stay on the GPU, and those there during its step only.

    The distributed optimizer spreads dense parameters over DP·CP and experts over EDP. A share of
    `offloaded` lives on the CPU (HybridDeviceOptimizer, core/optimizer/cpu_offloading).
    """
    routed = parameters.expert_parameters(shape, count)
    dense = count.total - routed
    if shape.training.distributed_optimizer:
        share = dense / shape.parallel.dense_shards + routed / shape.parallel.expert_data
    else:
        share = float(dense + routed)
    states = round(share * state_bytes(shape) * (1 - shape.training.offloaded))
    return (0, states) if shape.training.states_offloaded else (states, 0)


def state_bytes(shape: Shape) -> int:
    """Return the optimizer's bytes a parameter: main parameter and two moments of Adam.

    FP32 throughout without the precision-aware optimizer; FP32 parameters are their own main
    ones. With it, in BF16 or with delayed scaling, Transformer Engine's FusedAdam holds only the
    16 bits that the BF16 parameter lacks of the FP32 one (`store_param_remainders`); with other
    FP8 recipes Megatron holds the FP32 main parameter itself
    (`use_precision_aware_optimizer_no_fp8_or_ds_fp8`, core/optimizer/optimizer_config.py).
    """
    training = shape.training
    if training.weight_bytes == SINGLE:
        return 2 * SINGLE
    if not training.precision_aware:
        return 3 * SINGLE
    moments = training.first_moment_bytes + training.second_moment_bytes
    remainder = training.fp8 in (None, "delayed") and training.main_parameter_bytes == SINGLE
    return moments + (2 if remainder else training.main_parameter_bytes)


# Activations


def in_flight(shape: Shape, pipeline_rank: int, sizes: Sequence[float]) -> tuple[int, ...]:
    """Return how many micro-batches each virtual chunk holds when the rank is at its fullest.

    `sizes` weighs the chunks. 1F1B: rank p of PP is PP-p-1 micro-batches ahead and works on one.
    Interleaved: (PP-p-1)·2 + (VPP-1)·group, one more with overlapped expert communication; chunks
    take turns by groups of micro-batches, backward in the opposite order
    (get_pp_rank_microbatches, get_schedule_table, core/pipeline_parallel/schedules.py). That
    overlap runs a forward and a backward pass together, layer by layer: one micro-batch is
    exchanged for another, and a single layer is there besides, which `rank` adds
    (TransformerModelChunkSchedulePlan.run, core/models/common/model_chunk_schedule_plan.py).
    """
    stages, virtual = shape.parallel.pipeline, len(sizes)
    batch = shape.training.micro_batch * shape.parallel.data
    micro_batches = max(1, shape.training.global_batch // batch)
    if virtual == 1:
        return (min(stages - pipeline_rank, micro_batches),)
    group = min(shape.training.group_size or stages, micro_batches)
    ahead = (stages - pipeline_rank - 1) * 2 + (virtual - 1) * group
    ahead += shape.training.overlap_experts
    # Groups repeat themselves once backward passes have begun: some of them stand for all.
    enough = ahead // virtual + 3 * group
    if micro_batches > enough:
        micro_batches = enough + (micro_batches - enough) % group
    order = [
        chunk
        for start in range(0, micro_batches, group)
        for chunk in range(virtual)
        for _ in range(start, min(start + group, micro_batches))
    ]
    held = [0] * virtual
    fullest, size, most = tuple(held), 0.0, 0.0
    exchanged = shape.training.overlap_experts
    for step, chunk in enumerate(order):
        # The chunk that goes back in this step, before the next one or in exchange for it.
        done = step - (0 if exchanged else 1) - ahead
        if done >= 0:
            gone = virtual - 1 - order[done]
            held[gone] -= 1
            size -= sizes[gone]
        held[chunk] += 1
        size += sizes[chunk]
        if size > most:
            fullest, most = tuple(held), size
    return fullest


def chunk_activations(shape: Shape, chunk: Chunk, sizes: Mapping[str, float]) -> float:
    """Return what one micro-batch leaves saved in a model chunk, without logits.

    `sizes` is what a layer of each kind keeps (`kept`).
    """
    full = shape.training.recompute == "full"
    decoder = [sizes[one.kind] for one in chunk.decoder]
    if full:
        decoder = _full(shape, decoder)
    extra = sum(layer_input(shape) if full else sizes[one.kind] for one in chunk.mtp)
    if chunk.final_norm:
        extra += 2 * layer_input(shape)  # what it reads, and what the output layer reads
    return sum(decoder) + extra


def _full(shape: Shape, layers: list[float]) -> list[float]:
    """Apply full recomputation: `uniform` saves the input of every group of N layers, `block`
    that of each of the first N layers, and everything of the rest (TransformerBlock).
    """
    size, each = shape.training.recompute_layers, layer_input(shape)
    if shape.training.recompute_method == "block":
        return [each] * min(size, len(layers)) + layers[size:]
    return [each] * -(-len(layers) // size)


def kept(shape: Shape, layer: Layer, imbalance: float | None = None) -> float:
    """Return what a layer leaves saved after selective recomputation and offloading."""
    training = shape.training
    return sum(
        one.size
        for one in layer_activations(shape, layer, imbalance)
        if not one.spared_by & training.recompute_modules
        and one.offloaded_by not in training.activations_offloaded
    )


def layer_activations(
    shape: Shape, layer: Layer, imbalance: float | None = None
) -> tuple[Saved, ...]:
    """Return everything that a layer saves for one micro-batch if nothing is recomputed."""
    if layer.linear and shape.model.linear_attention is not None:
        attend = linear_attention(shape, shape.model.linear_attention)
    else:
        attend = latent(shape) if shape.model.attention.latent else grouped(shape)
    if layer.moe and shape.model.experts is not None:
        feed = experts(shape, shape.model.experts, imbalance)
    else:
        feed = dense(shape)
    return attend + feed + (mtp_head(shape) if layer.mtp else ())


def tokens(shape: Shape) -> float:
    """Return a micro-batch's tokens on this rank inside a tensor-parallel region: CP splits."""
    training = shape.training
    return training.micro_batch * training.sequence / shape.parallel.context


def own_tokens(shape: Shape) -> float:
    """Return the tokens outside of it, which sequence parallelism splits over TP as well."""
    return tokens(shape) / (shape.parallel.tensor if shape.parallel.sequence else 1)


def routed_tokens(shape: Shape, moe: Experts, imbalance: float | None = None) -> float:
    """Return the tokens that this rank's experts work on: top-k copies of each, unless dropped.

    What the ranks of an EP group send equals what they receive, so a balanced rank gets what it
    sends. Expert tensor parallelism gathers the tokens of its ranks.
    """
    share = own_tokens(shape) * moe.top_k * shape.parallel.expert_tensor
    return share * _imbalance(moe, imbalance)


def _imbalance(moe: Experts, imbalance: float | None) -> float:
    if moe.capacity_factor is not None:
        return moe.capacity_factor
    return 1.0 if moe.balanced else IMBALANCE if imbalance is None else imbalance


def layer_input(shape: Shape) -> float:
    """Return the hidden states of one micro-batch, as they go from layer to layer."""
    return own_tokens(shape) * shape.model.hidden * ACTIVATION


def product_input(shape: Shape) -> float:
    """Return the bytes of an element that a matrix product saves of its input.

    In FP8, Transformer Engine saves the quantized tensor that the weight's gradient needs.
    """
    return QUANTIZED if shape.training.fp8 else ACTIVATION


def _spared(*modules: str) -> frozenset[str]:
    return frozenset(modules)


def grouped(shape: Shape) -> tuple[Saved, ...]:
    """List what grouped-query attention saves (core/transformer/attention.py).

    The norm is fused into linear_qkv, which saves both its own input and the normed one. Rotated
    queries and keys are new tensors, and Transformer Engine copies the value out of the projection
    (get_qkv_layout), which is thereby free; but a recomputed core keeps the view that it was given.
    Norms of queries and keys save copies of what they read, and one number a token and head.
    Flash attention saves its output, which is linear_proj's input too, and one number a token and
    head. An output gate is applied in FP32: its sigmoid and the gated product are saved besides.
    """
    attention, parallel = shape.model.attention, shape.parallel
    inside, outside = tokens(shape), own_tokens(shape)
    heads = attention.heads / parallel.tensor
    groups = attention.query_groups / min(parallel.tensor, attention.query_groups)
    queries, keys = heads * attention.head_dim, groups * attention.head_dim
    viewed = "core_attn" in shape.training.recompute_modules
    values = queries * (1 + attention.output_gate) + 2 * keys if viewed else keys
    saved = [
        Saved("attention's input", layer_input(shape), offloaded_by="attn_norm"),
        Saved(
            "normed input",
            outside * shape.model.hidden * product_input(shape),
            offloaded_by="qkv_linear",
        ),
        Saved(
            "query, key and value",
            inside * (queries + keys + values) * ACTIVATION,
            offloaded_by="core_attn",
        ),
        *_core(shape, queries, attention.heads),
    ]
    if attention.qk_norm:
        copies = (queries + keys) * ACTIVATION + (heads + groups) * SINGLE
        saved.append(Saved("query and key before their norms", inside * copies))
    if attention.output_gate:
        saved.append(Saved("output gate", inside * queries * (SINGLE + ACTIVATION)))
    return tuple(saved)


def _core(shape: Shape, width: float, heads: int) -> tuple[Saved, ...]:
    """List attention's output, its statistics, and in FP8 the output quantized for linear_proj."""
    inside = tokens(shape)
    saved = [
        Saved("attention's output", inside * width * ACTIVATION, offloaded_by="attn_proj"),
        Saved(
            "softmax statistics",
            inside * heads / shape.parallel.tensor * SINGLE,
            spared_by=_spared("core_attn"),
        ),
    ]
    if shape.training.fp8:
        saved.append(Saved("quantized output", inside * width * QUANTIZED))
    return tuple(saved)


def latent(shape: Shape) -> tuple[Saved, ...]:
    """List what multi-latent attention saves (core/transformer/multi_latent_attention.py).

    The input norm is a module of its own; both down projections read its output, in FP8 each
    its own quantized copy. Norms of the compressed tensors are fused into the up projections.
    Query, key and value are whole again behind them: this is what mla_up_proj recomputes from the
    compressed ones.
    """
    model, attention = shape.model, shape.model.attention
    inside, outside = tokens(shape), own_tokens(shape)
    heads = attention.heads / shape.parallel.tensor
    product = product_input(shape)
    compressed = attention.kv_rank + (attention.q_rank or 0)
    copies = 2 if shape.training.fp8 and attention.q_rank else 1
    again = _spared("mla_up_proj")
    wide = 2 * (attention.qk_dim + attention.rope_dim) + attention.v_dim
    return (
        Saved("attention's input", layer_input(shape), offloaded_by="attn_norm"),
        Saved(
            "normed input",
            outside * model.hidden * product * copies,
            spared_by=_spared("layernorm"),
            offloaded_by="qkv_linear",
        ),
        *(
            # Without compression, Megatron 0.19 norms the input once more for the query.
            [Saved("query's normed input", outside * model.hidden * product)]
            if attention.qk_norm and not attention.q_rank
            else []
        ),
        Saved(
            "compressed query and key-value",
            (outside * compressed + inside * attention.rope_dim) * ACTIVATION,
        ),
        Saved("normed compressed tensors", outside * compressed * product, spared_by=again),
        Saved(
            "query, key and value",
            inside * heads * wide * ACTIVATION,
            spared_by=again,
            offloaded_by="core_attn",
        ),
        *_core(shape, heads * attention.v_dim, attention.heads),
    )


def linear_attention(shape: Shape, net: LinearAttention) -> tuple[Saved, ...]:
    """List what a gated delta net saves (core/ssm/gated_delta_net; flash-linear-attention's fla/).

    The norm is fused into in_proj. The convolution saves its input, which is part of the whole
    projection; the norm of queries and keys its output, which is repeated to the value heads; the
    chunked delta rule its inputs and a matrix of 64 by 64 for every 64 tokens and head, and
    computes states again. The gated norm saves what it reads: output, normed output and gate.
    """
    model, parallel = shape.model, shape.parallel
    inside, outside = tokens(shape), own_tokens(shape)
    keys, values = net.keys / parallel.tensor, net.values / parallel.tensor
    heads = net.value_heads / parallel.tensor
    again = _spared("gdn_norm_out")
    return (
        Saved("attention's input", layer_input(shape), offloaded_by="attn_norm"),
        Saved("normed input", outside * model.hidden * product_input(shape)),
        Saved("projections", inside * (2 * keys + 2 * values + 2 * heads) * ACTIVATION),
        Saved("normed query and key", inside * 2 * keys * ACTIVATION),
        Saved(
            "delta rule",
            inside * (2 * heads * net.key_dim + values + heads * 64) * ACTIVATION,
        ),
        Saved("decay and its input", inside * heads * 4 * SINGLE),
        Saved("output and gate", inside * 2 * values * ACTIVATION),
        Saved("normed output", inside * values * ACTIVATION, again),
        Saved("gated output", inside * values * product_input(shape), again),
    )


def dense(shape: Shape) -> tuple[Saved, ...]:
    """List what a dense feed-forward network saves (core/transformer/mlp.py).

    The norm is fused into linear_fc1. Recomputing `mlp` leaves the network's input.
    """
    model, inside = shape.model, tokens(shape)
    width = model.ffn / shape.parallel.tensor
    again, product = _spared("mlp"), product_input(shape)
    return (
        Saved("feed-forward input", layer_input(shape), offloaded_by="mlp_norm"),
        Saved("normed input", own_tokens(shape) * model.hidden * product, again),
        Saved("first product", inside * width * (1 + model.gated) * ACTIVATION, again),
        *_unfused(shape, "activation", inside * width, again, 2),
        Saved("activation", inside * width * product, again),
    )


def _unfused(
    shape: Shape, what: str, elements: float, again: frozenset[str], tensors: int
) -> tuple[Saved, ...]:
    """List what SwiGLU saves besides the first product where no kernel fuses it.

    Both factors of the gate's product (MLP.forward, core/transformer/mlp.py), of which shared
    experts that overlap use one as it is; of experts also what the probabilities are applied to.
    """
    if shape.training.fused_activation:
        return ()
    return (Saved(f"{what}'s factors", elements * tensors * ACTIVATION, again),)


def experts(shape: Shape, moe: Experts, imbalance: float | None = None) -> tuple[Saved, ...]:
    """List what an MoE layer saves (core/transformer/moe).

    The norm is a module of its own; router and shared experts read its output. Of the routed
    tokens, the input of each product and that of the activation are saved, and the
    probabilities, which the activation applies; permutation and communication save indices only.
    Recomputing `moe` leaves the norm's output, and nothing with `layernorm`.
    """
    model, outside = shape.model, own_tokens(shape)
    product, fp8 = product_input(shape), shape.training.fp8 is not None
    routed = routed_tokens(shape, moe, imbalance)
    width = moe.ffn / shape.parallel.expert_tensor
    shared = moe.shared_ffn / shape.parallel.tensor
    again, shared_again = _spared("moe"), _spared("moe", "shared_experts")
    saved = [
        Saved("feed-forward input", layer_input(shape), offloaded_by="mlp_norm"),
        Saved("normed input", layer_input(shape), _spared("layernorm")),
        # Logits and probabilities in FP32, and the routing map.
        Saved("router", outside * moe.count * (2 * SINGLE + 1), again),
        Saved(
            "dispatched tokens",
            routed * (moe.latent or model.hidden) * product,
            again,
            offloaded_by="expert_fc1",
        ),
        Saved("probabilities", routed * SINGLE, again),
        Saved(
            "experts' first product",
            routed * width * (1 + model.gated) * ACTIVATION,
            again,
            offloaded_by="moe_act",
        ),
        *_unfused(shape, "experts' activation", routed * width, _spared("moe", "moe_act"), 3),
        Saved("experts' activation", routed * width * product, _spared("moe", "moe_act")),
    ]
    if moe.shared_ffn:
        inside = tokens(shape)
        saved += [
            Saved(
                "shared experts' first product",
                inside * shared * (1 + model.gated) * ACTIVATION,
                shared_again,
            ),
            *_unfused(
                shape,
                "shared experts' activation",
                inside * shared,
                shared_again,
                1 if moe.shared_overlap else 2,
            ),
            Saved("shared experts' activation", inside * shared * product, shared_again),
        ]
        if fp8:
            saved.append(
                Saved(
                    "shared experts' input",
                    outside * model.hidden * product,
                    _spared("moe", "shared_experts", "layernorm"),
                )
            )
        if moe.shared_overlap and shape.parallel.sequence:
            # Gathered by hand, so that it can overlap, instead of by the first product.
            whole = inside * model.hidden * ACTIVATION
            saved.append(Saved("shared experts' gathered input", whole, shared_again))
        if moe.shared_gate:
            saved.append(Saved("shared experts' output", layer_input(shape), again))
    return tuple(saved)


def mtp_head(shape: Shape) -> tuple[Saved, ...]:
    """List what MTP saves before its layer: two states, normed, side by side for eh_proj; and
    behind it, the input and output of its final norm (core/transformer/multi_token_prediction.py).
    """
    width = own_tokens(shape) * shape.model.hidden
    return (
        Saved("hidden state and embedding", 2 * width * ACTIVATION),
        Saved("both, normed", 2 * width * product_input(shape)),
        Saved("final norm", 2 * width * ACTIVATION),
    )


def logits(shape: Shape, chunk: Chunk) -> float:
    """Return the logits of one micro-batch where the loss is: FP32 softmax saved for each head.

    Both cross entropies work on an FP32 copy that becomes the softmax; the BF16 logits, or their
    gradient, are there beside one of them (core/tensor_parallel/cross_entropy.py,
    core/fusions/fused_cross_entropy.py). MTP has logits of its own at each depth.
    """
    if not chunk.loss:
        return 0.0
    one = tokens(shape) * shape.model.vocabulary / shape.parallel.tensor
    return one * (SINGLE * (1 + shape.model.mtp) + ACTIVATION)


def working(shape: Shape, layer: Layer, imbalance: float | None = None) -> float:
    """Return what a layer needs while it is at work, and gives back.

    Whatever it recomputes or had sent to the CPU; and the gradients of its widest part: of
    experts, those of the tokens before and behind them and of the products between.
    """
    model = shape.model
    returned = sum(one.size for one in layer_activations(shape, layer, imbalance))
    if shape.training.recompute == "full":
        returned *= (
            shape.training.recompute_layers
            if shape.training.recompute_method == "uniform" and not layer.mtp
            else 1
        )
    else:
        returned -= kept(shape, layer, imbalance)
    if layer.moe and model.experts is not None:
        moe = model.experts
        inner = moe.ffn / shape.parallel.expert_tensor * (2 + model.gated)
        width = 2 * (moe.latent or model.hidden) + inner
        gradients_at_work = routed_tokens(shape, moe, imbalance) * width * ACTIVATION
    else:
        inner = model.ffn / shape.parallel.tensor * (2 + model.gated)
        gradients_at_work = tokens(shape) * (model.hidden + inner) * ACTIVATION
    return returned + gradients_at_work
