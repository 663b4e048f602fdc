"""Activation memory in bytes: the tensors that forward passes save for backward passes.

Activations are the tensors that Transformer Engine's modules and Megatron's own functions save for
the backward pass, as read in their sources and in Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (arXiv:2205.05198), whose per-layer sums they extend to
latent attention and experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass  # of these a plan makes thousands

from launcher.plan.shape import ACTIVATION, QUANTIZED, SINGLE, Experts, LinearAttention, Shape
from launcher.plan.stages import Chunk, Layer

# Tokens of the fullest rank, as a multiple of its even share, without forced balance.
IMBALANCE = 1.2


@dataclass(frozen=True)
class Saved:
    """A tensor that is saved for the backward pass."""

    what: str
    size: float  # bytes of one micro-batch
    # Any of these recomputed modules makes it unnecessary to save the tensor (--recompute-modules).
    spared_by: frozenset[str] = frozenset()
    offloaded_by: str = ""  # the module of --offload-modules that sends it to the CPU


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
    """Return the bytes that one micro-batch saves in a model chunk, without logits.

    `sizes` are the bytes that a layer of each kind keeps (`kept`).
    """
    full = shape.training.recompute == "full"
    decoder = [sizes[one.kind] for one in chunk.decoder]
    if full:
        decoder = _full(shape, decoder)
    extra = sum(layer_input(shape) if full else sizes[one.kind] for one in chunk.mtp)
    if chunk.final_norm:
        extra += 2 * layer_input(shape)  # the inputs of the final norm and of the output layer
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
    """Return the bytes that a layer keeps after selective recomputation and offloading."""
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
    """Return all tensors that a layer saves for one micro-batch without recomputation."""
    if layer.linear and shape.model.linear_attention is not None:
        attend = linear_attention(shape, shape.model.linear_attention)
    else:
        attend = latent(shape) if shape.model.attention.latent else grouped(shape)
    if layer.moe and shape.model.experts is not None:
        feed = experts(shape, shape.model.experts, imbalance)
    else:
        feed = dense(shape)
    return attend + feed + dropout(shape) + (mtp_head(shape) if layer.mtp else ())


def tokens(shape: Shape) -> float:
    """Return a micro-batch's tokens on this rank in a tensor-parallel region; CP splits them."""
    training = shape.training
    return training.micro_batch * training.sequence / shape.parallel.context


def own_tokens(shape: Shape) -> float:
    """Return the tokens outside of that region, which sequence parallelism splits over TP too."""
    return tokens(shape) / (shape.parallel.tensor if shape.parallel.sequence else 1)


def routed_tokens(shape: Shape, moe: Experts, imbalance: float | None = None) -> float:
    """Return the tokens that this rank's experts work on: top-k copies of each, unless dropped.

    The ranks of an EP group receive as many tokens as they send, so a balanced rank receives as
    many as it sends. Expert tensor parallelism gathers the tokens of its ranks.
    """
    share = own_tokens(shape) * moe.top_k * shape.parallel.expert_tensor
    return share * imbalance_of(moe, imbalance)


def imbalance_of(moe: Experts, imbalance: float | None) -> float:
    if moe.capacity_factor is not None:
        return moe.capacity_factor
    return 1.0 if moe.balanced else IMBALANCE if imbalance is None else imbalance


def scores(shape: Shape) -> float:
    """Return the scores of a micro-batch on this rank: one a query, key and head."""
    heads = shape.model.attention.heads / shape.parallel.tensor
    return tokens(shape) * shape.training.sequence * heads


def layer_input(shape: Shape) -> float:
    """Return the bytes of one micro-batch's hidden states between two layers."""
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
    if attention.qk_norm or attention.qk_l2_norm:
        copies = (queries + keys) * ACTIVATION + (heads + groups) * SINGLE
        saved.append(Saved("query and key before their norms", inside * copies))
    if attention.output_gate:
        saved.append(Saved("output gate", inside * queries * (SINGLE + ACTIVATION)))
    return tuple(saved)


def _core(shape: Shape, width: float, heads: int) -> tuple[Saved, ...]:
    """List attention's output, its statistics, and in FP8 the output quantized for linear_proj.

    Unfused attention saves, instead of statistics, the softmax of all scores, and with dropout its
    mask of a byte and what it leaves (arXiv:2205.05198, section 4.1).
    """
    inside, training = tokens(shape), shape.training
    each, what = inside * heads / shape.parallel.tensor * SINGLE, "softmax statistics"
    if training.unfused_attention:
        kept_of_a_score = ACTIVATION + training.attention_dropout * (1 + ACTIVATION)
        each, what = scores(shape) * kept_of_a_score, "softmax of the scores"
    saved = [
        Saved("attention's output", inside * width * ACTIVATION, offloaded_by="attn_proj"),
        Saved(what, each, spared_by=_spared("core_attn"), offloaded_by="core_attn"),
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
            if attention.qk_norm and not attention.q_rank and attention.hidden_norm
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


def dropout(shape: Shape) -> tuple[Saved, ...]:
    """List the masks of the two dropouts of a layer, a byte an element (bias_dropout_add)."""
    if not shape.training.dropout:
        return ()
    return (Saved("dropout masks", 2 * own_tokens(shape) * shape.model.hidden),)


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
    gradient, are there beside one of them (core/tensor_parallel/cross_entropy.py). The compiled one
    (core/fusions/fused_cross_entropy.py) writes the exponentials into a tensor of their own: on
    H100 and GB200 Megatron-LM's functional tests allocate just so much more with it. MTP has logits
    of its own at each depth.
    """
    if not chunk.loss:
        return 0.0
    one = tokens(shape) * shape.model.vocabulary / shape.parallel.tensor
    copies = 1 + shape.model.mtp + shape.training.fused_loss
    return one * (SINGLE * copies + ACTIVATION)


def working(shape: Shape, layer: Layer, imbalance: float | None = None) -> float:
    """Return the bytes that a layer needs while it works, and frees afterwards.

    They are the tensors that it recomputes or fetches from the CPU, and the gradients of its widest
    part. For experts, these are the gradients of the tokens before and after them, and of the
    products between.
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
    if shape.training.unfused_attention and not layer.linear:
        # The gradients of the scores and of their softmax.
        gradients_at_work = max(gradients_at_work, 2 * scores(shape) * ACTIVATION)
    return returned + gradients_at_work
