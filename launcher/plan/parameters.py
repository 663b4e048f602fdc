"""Exact numbers of parameters: of each pipeline rank, and of the whole model.

The counts are those of Megatron-Core 0.19's GPT model with Transformer Engine. A rank's numbers
are those of the first tensor-parallel rank of its stage, which all others share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass  # of these a plan makes thousands

from launcher.plan.shape import Model, Parallel, Shape
from launcher.plan.stages import Layer, Stage, mtp_layer

_WHOLE = Parallel(
    world=1,
    tensor=1,
    pipeline=1,
    virtual=1,
    context=1,
    expert=1,
    expert_tensor=1,
    sequence=False,
)


@dataclass(frozen=True)
class Count:
    """Parameters of a part of the model.

    `matrices` and `routed` are the weights that Transformer Engine keeps or caches in FP8 where
    that is on; embedding, output layer, router, norms and convolutions stay as they are.
    """

    dense: int = 0  # reduced over DP times CP
    routed: int = 0  # of the experts between which the router chooses
    matrices: int = 0  # part of `dense`: the weights of Transformer Engine's linear layers

    @property
    def total(self) -> int:
        """All parameters."""
        return self.dense + self.routed

    def __add__(self, other: Count) -> Count:
        return Count(
            self.dense + other.dense,
            self.routed + other.routed,
            self.matrices + other.matrices,
        )

    def __mul__(self, times: int) -> Count:
        return Count(
            self.dense * times,
            self.routed * times,
            self.matrices * times,
        )


@dataclass(frozen=True)
class WholeModel:
    """Parameters of the model without any parallelism."""

    total: int  # without MTP
    active: int  # the parameters that one token uses: all but the experts that it is not sent to
    mtp: int  # on top, for multi-token prediction


def stage(shape: Shape, held: Stage) -> Count:
    """Count a pipeline rank's parameters."""
    model, parallel = shape.model, shape.parallel
    count = Count()
    kinds = {one.kind: one for one in held.layers}
    for kind, times in Counter(one.kind for one in held.layers).items():
        count += layer(model, parallel, kinds[kind]) * times
    for chunk in held.chunks:
        if chunk.embedding or chunk.embedding_copy:
            count += embedding(model, parallel)
        if chunk.final_norm:
            count += norm(model)
        if chunk.loss:
            # A tied output layer has no weight of its own where the embedding is.
            count += output(model, parallel, shared=model.tied and chunk.embedding)
    return count


def stages(shape: Shape, split: Sequence[Stage]) -> tuple[Count, ...]:
    """Count every pipeline rank's parameters."""
    return tuple(stage(shape, held) for held in split)


def expert_parameters(shape: Shape, count: Count) -> int:
    """Return the parameters reduced over the expert data parallel group alone.

    Where experts are split as everything else is, Megatron reduces them with everything else
    (`use_expert_pgs`, core/tensor_parallel/layers.py).
    """
    parallel = shape.parallel
    apart = parallel.expert > 1 or parallel.expert_tensor != parallel.tensor
    return count.routed if apart else 0


def by_layer(model: Model) -> list[tuple[Layer, Count]]:
    """Count each layer of the model itself, MTP's layers last."""
    layers = [Layer(n, model.moe[n], model.linear[n], False) for n in range(model.layers)]
    layers += [mtp_layer(model, n) for n in range(model.mtp_built)]
    return [(one, layer(model, _WHOLE, one)) for one in layers]


def whole(model: Model) -> WholeModel:
    """Count the model itself."""
    layers = by_layer(model)
    decoder = sum((count for one, count in layers if not one.mtp), Count())
    total = (
        decoder + embedding(model, _WHOLE) + norm(model) + output(model, _WHOLE, shared=model.tied)
    ).total
    extra = sum((count for one, count in layers if one.mtp), Count()).total
    return WholeModel(
        total=total,
        active=total - sum(model.moe) * idle_experts(model),
        mtp=extra,
    )


def idle_experts(model: Model) -> int:
    """Return the parameters of an MoE layer's experts that a token is not sent to."""
    if model.experts is None:
        return 0
    chosen = min(model.experts.top_k, model.experts.count)
    return (model.experts.count - chosen) * _expert(model, 1)


def layer(model: Model, parallel: Parallel, one: Layer) -> Count:
    """Count a transformer layer: two norms, attention, feed-forward; MTP's own parts with it.

    Source: TransformerLayer (core/transformer/transformer_layer.py).
    """
    attend = linear_attention if one.linear else latent if model.attention.latent else grouped
    feed = experts if one.moe else dense
    count = norm(model) * 2 + attend(model, parallel) + feed(model, parallel) + indexer(model)
    if model.attention.sinks and not one.linear:
        count += Count(dense=model.attention.heads // parallel.tensor)
    return count + mtp_head(model, parallel) if one.mtp else count


def norm(model: Model, width: int | None = None) -> Count:
    """Count a norm over the hidden size, or over `width`; never split."""
    return Count(dense=(model.hidden if width is None else width) * (1 + model.norm_bias))


def grouped(model: Model, parallel: Parallel) -> Count:
    """Count grouped-query attention: linear_qkv, linear_proj and the norms on query and key.

    Source: SelfAttention (core/transformer/attention.py). The output gate widens linear_qkv by
    the queries' width.
    """
    attention = model.attention
    queries = attention.heads * attention.head_dim
    keys = attention.query_groups * attention.head_dim
    qkv = queries * (1 + attention.output_gate) + 2 * keys
    matrices = (model.hidden * qkv + queries * model.hidden) // parallel.tensor
    count = Count(dense=matrices, matrices=matrices)
    if attention.qkv_bias:
        count += Count(dense=qkv // parallel.tensor)
    if model.linear_bias:
        count += Count(dense=model.hidden)
    if attention.qk_norm:
        count += norm(model, attention.head_dim) * 2
    return count


def latent(model: Model, parallel: Parallel) -> Count:
    """Count multi-latent attention; the down projections are whole on every tensor rank.

    Source: MLASelfAttention (core/transformer/multi_latent_attention.py); the norms' places:
    QKNormConfigResolver (mla_qk_norm_config.py). Without query compression 0.19 alone norms the
    query, by a norm over the hidden state, fused into linear_q_proj.
    """
    attention = model.attention
    q_width = attention.heads * (attention.qk_dim + attention.rope_dim)
    kv_width = attention.heads * (attention.qk_dim + attention.v_dim)
    whole_on_each = model.hidden * (attention.kv_rank + attention.rope_dim)
    split = attention.kv_rank * kv_width + attention.heads * attention.v_dim * model.hidden
    normed = attention.kv_rank
    if attention.q_rank is None:
        split += model.hidden * q_width
        normed += model.hidden if attention.hidden_norm else 0
    else:
        whole_on_each += model.hidden * attention.q_rank
        split += attention.q_rank * q_width
        normed += attention.q_rank
    matrices = whole_on_each + split // parallel.tensor
    count = Count(dense=matrices, matrices=matrices)
    if model.linear_bias:
        count += Count(dense=model.hidden)
    return count + norm(model, normed) if attention.qk_norm else count


def indexer(model: Model) -> Count:
    """Count what chooses the keys of sparse attention, whole on every tensor rank.

    Source: DSAIndexer (core/transformer/experimental_attention_variant/dsa.py): queries from the
    compressed ones, one key head with a LayerNorm, and a weight a head.
    """
    chooser, attention = model.indexer, model.attention
    if chooser is None:
        return Count()
    queries = (attention.q_rank or model.hidden) * chooser.heads * chooser.head_dim
    matrices = queries + model.hidden * (chooser.head_dim + chooser.heads)
    return Count(dense=matrices + 2 * chooser.head_dim, matrices=matrices)


def linear_attention(model: Model, parallel: Parallel) -> Count:
    """Count a gated delta net: in_proj, causal convolution, decay and its bias, norm, out_proj.

    Source: core/ssm/gated_delta_net/common.py. in_proj makes queries, keys, values, their gate,
    and two numbers a value head.
    """
    net = model.linear_attention
    if net is None:
        return Count()
    projected = 2 * net.keys + 2 * net.values + 2 * net.value_heads
    matrices = (model.hidden * projected + net.values * model.hidden) // parallel.tensor
    convolution = (2 * net.keys + net.values) * net.kernel
    small = (convolution + 2 * net.value_heads) // parallel.tensor
    return Count(dense=matrices + small, matrices=matrices) + norm(model, net.value_dim)


def _matrices(model: Model, width: int, ffn: int) -> int:
    """Return the weights of a feed-forward network: two input matrices where gated, one output."""
    return width * ffn * (2 + model.gated)


def dense(model: Model, parallel: Parallel) -> Count:
    """Count a dense feed-forward network. Source: MLP (core/transformer/mlp.py)."""
    matrices = _matrices(model, model.hidden, model.ffn) // parallel.tensor
    count = Count(dense=matrices, matrices=matrices)
    if model.linear_bias:
        count += Count(dense=model.ffn * (1 + model.gated) // parallel.tensor + model.hidden)
    return count


def experts(model: Model, parallel: Parallel) -> Count:
    """Count an MoE layer: router, this rank's experts, shared experts.

    Source: core/transformer/moe/{router,experts,shared_experts,moe_layer}.py. The router is whole
    on every rank; its expert bias is a buffer, not a parameter. Shared experts are split like a
    dense network, over TP, and their gate is whole.
    """
    moe = model.experts
    if moe is None:
        return dense(model, parallel)
    shared = _matrices(model, model.hidden, moe.shared_ffn) // parallel.tensor
    latents = 2 * model.hidden * moe.latent if moe.latent else 0
    gate = model.hidden if moe.shared_gate and moe.shared_ffn else 0
    router = moe.count * (model.hidden + model.linear_bias)
    local = moe.count // parallel.expert
    return Count(
        dense=router + shared + latents + gate,
        routed=local * _expert(model, parallel.expert_tensor),
        matrices=shared + latents,
    )


def _expert(model: Model, expert_tensor: int) -> int:
    """Return the parameters of one routed expert on a rank."""
    moe = model.experts
    if moe is None:
        return 0
    width = moe.latent or model.hidden
    matrices = _matrices(model, width, moe.ffn) // expert_tensor
    bias = moe.ffn * (1 + model.gated) // expert_tensor + width if model.linear_bias else 0
    return matrices + bias


def products(shape: Shape, one: Layer) -> set[tuple[int, int]]:
    """Return the rows and columns of a layer's weights that Transformer Engine multiplies by.

    They are a rank's part of each matrix, and one matrix for each routed expert.
    """
    model, split = shape.model, shape.parallel.tensor
    attention, net, moe = model.attention, model.linear_attention, model.experts
    if one.linear and net is not None:
        projected = 2 * net.keys + 2 * net.values + 2 * net.value_heads
        found = {(projected // split, model.hidden), (model.hidden, net.values // split)}
    elif attention.latent:
        queries = attention.heads * (attention.qk_dim + attention.rope_dim) // split
        found = {
            (attention.kv_rank + attention.rope_dim, model.hidden),
            (attention.heads * (attention.qk_dim + attention.v_dim) // split, attention.kv_rank),
            (model.hidden, attention.heads * attention.v_dim // split),
            (queries, attention.q_rank or model.hidden),
        }
        if attention.q_rank:
            found.add((attention.q_rank, model.hidden))
    else:
        groups = max(split, attention.query_groups)
        heads = attention.heads * (1 + attention.output_gate) + 2 * groups
        found = {
            (heads * attention.head_dim // split, model.hidden),
            (model.hidden, attention.heads * attention.head_dim // split),
        }
    feeds = [(model.hidden, model.ffn // split)]
    if one.moe and moe is not None:
        feeds = [(moe.latent or model.hidden, moe.ffn // shape.parallel.expert_tensor)]
        feeds += [(model.hidden, moe.shared_ffn // split)] if moe.shared_ffn else []
    for hidden, width in feeds:
        found |= {(width * (1 + model.gated), hidden), (hidden, width)}
    if one.mtp:
        found.add((model.hidden // split, 2 * model.hidden))
    return found


def mtp_head(model: Model, parallel: Parallel) -> Count:
    """Count what MTP adds to its transformer layer: three norms and eh_proj.

    Source: MultiTokenPredictionLayer (core/transformer/multi_token_prediction.py).
    """
    matrices = 2 * model.hidden * model.hidden // parallel.tensor
    return Count(dense=matrices, matrices=matrices) + norm(model) * 3


def embedding(model: Model, parallel: Parallel) -> Count:
    """Count the word embedding, split over the vocabulary, and learned positions, whole.

    Source: LanguageModelEmbedding (core/models/common/embeddings/language_model_embedding.py).
    """
    words = model.vocabulary * model.hidden // parallel.tensor
    return Count(dense=words + model.positions * model.hidden)


def output(model: Model, parallel: Parallel, shared: bool) -> Count:
    """Count the output layer; nothing where it uses the embedding of its own chunk.

    Source: GPTModel (core/models/gpt/gpt_model.py).
    """
    return Count(dense=0 if shared else model.vocabulary * model.hidden // parallel.tensor)
