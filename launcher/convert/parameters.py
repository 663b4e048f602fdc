"""Every parameter of a Megatron-Core GPT model: its name, its whole shape, and its split.

Names are those of Megatron's local modules, where each norm stands by itself, with the decoder's
own layer number and the expert's global number:

    decoder.layers.3.mlp.experts.7.linear_fc1.weight

names.py turns them into what a legacy or a torch_dist checkpoint says. The shapes follow from the
same launcher.plan.shape.Model that the launcher plans a job with. Sources: the modules of
megatron/core/transformer, as named in launcher/plan/parameters.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from launcher.plan.shape import Model
from launcher.plan.stages import Layer, mtp_layer

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"


@dataclass(frozen=True)
class Parameter:
    """One parameter, unsplit."""

    name: str
    shape: tuple[int, ...]
    axis: int | None = None  # split over the tensor parallel ranks; None: whole on each
    sections: tuple[int, ...] = ()  # of axis 0: each is split by itself, then they are joined
    section_names: tuple[
        str, ...
    ] = ()  # where torch_dist keeps the sections as tensors of their own
    expert: bool = False  # split over the expert tensor parallel ranks instead
    float32: bool = False  # whatever the model's precision

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def every(model: Model) -> Iterator[Parameter]:
    """Return all parameters of the model, in the order of the forward pass."""
    yield Parameter(EMBEDDING, (model.vocabulary, model.hidden), axis=0)
    for number in range(model.layers):
        layer = Layer(number, model.moe[number], model.linear[number], False)
        yield from of_layer(model, layer, prefix(layer))
    yield Parameter(FINAL_NORM, (model.hidden,))
    for number in range(model.mtp_built):
        layer = mtp_layer(model, number)
        yield from _mtp_head(model, f"mtp.layers.{number}.")
        yield from of_layer(model, layer, prefix(layer))
    if not model.tied:
        yield Parameter(OUTPUT, (model.vocabulary, model.hidden), axis=0)


def prefix(layer: Layer) -> str:
    """Return what the names of a layer's parameters start with."""
    if layer.mtp:
        return f"mtp.layers.{layer.number}.transformer_layer."
    return f"decoder.layers.{layer.number}."


def of_layer(model: Model, layer: Layer, start: str) -> Iterator[Parameter]:
    """Return a transformer layer's parameters, their names begun with `start`."""
    for one in _kind(model, layer.moe, layer.linear):
        yield replace(one, name=start + one.name)


@cache
def _kind(model: Model, moe: bool, linear: bool) -> tuple[Parameter, ...]:
    """Return the parameters of a kind of layer, their names within it."""
    attend = _delta_net if linear else _latent if model.attention.latent else _grouped
    feed = _experts if moe else _dense
    return (
        Parameter("input_layernorm.weight", (model.hidden,)),
        *(replace(one, name=f"self_attention.{one.name}") for one in attend(model)),
        Parameter("pre_mlp_layernorm.weight", (model.hidden,)),
        *(replace(one, name=f"mlp.{one.name}") for one in feed(model)),
    )


def _grouped(model: Model) -> Iterator[Parameter]:
    attention = model.attention
    queries = attention.heads * attention.head_dim
    rows = queries * (1 + attention.output_gate)
    rows += 2 * attention.query_groups * attention.head_dim
    yield Parameter("linear_qkv.weight", (rows, model.hidden), axis=0)
    if attention.qkv_bias:
        yield Parameter("linear_qkv.bias", (rows,), axis=0)
    if attention.qk_norm:
        yield Parameter("q_layernorm.weight", (attention.head_dim,))
        yield Parameter("k_layernorm.weight", (attention.head_dim,))
    if attention.sinks:
        yield Parameter("core_attention.softmax_offset", (attention.heads,), axis=0)
    yield Parameter("linear_proj.weight", (model.hidden, queries), axis=1)
    if model.linear_bias:
        yield Parameter("linear_proj.bias", (model.hidden,))


def _latent(model: Model) -> Iterator[Parameter]:
    attention = model.attention
    hidden, rank = model.hidden, attention.q_rank
    q_rows = attention.heads * (attention.qk_dim + attention.rope_dim)
    if rank is None:
        yield Parameter("linear_q_proj.weight", (q_rows, hidden), axis=0)
    else:
        yield Parameter("linear_q_down_proj.weight", (rank, hidden))
        if attention.qk_norm:
            yield Parameter("q_layernorm.weight", (rank,))
        yield Parameter("linear_q_up_proj.weight", (q_rows, rank), axis=0)
    kv_rows = attention.heads * (attention.qk_dim + attention.v_dim)
    down = (attention.kv_rank + attention.rope_dim, hidden)
    yield Parameter("linear_kv_down_proj.weight", down)
    if attention.qk_norm:
        yield Parameter("kv_layernorm.weight", (attention.kv_rank,))
    yield Parameter("linear_kv_up_proj.weight", (kv_rows, attention.kv_rank), axis=0)
    yield from _indexer(model)
    yield Parameter("linear_proj.weight", (hidden, attention.heads * attention.v_dim), axis=1)


def _indexer(model: Model) -> Iterator[Parameter]:
    """Return what chooses the keys of sparse attention; it is whole on every rank."""
    chooser, start = model.indexer, "core_attention.indexer."
    if chooser:
        queries = (chooser.heads * chooser.head_dim, model.attention.q_rank or model.hidden)
        yield Parameter(f"{start}linear_wq_b.weight", queries)
        yield Parameter(f"{start}linear_wk.weight", (chooser.head_dim, model.hidden))
        yield Parameter(f"{start}k_norm.weight", (chooser.head_dim,))
        yield Parameter(f"{start}k_norm.bias", (chooser.head_dim,))
        yield Parameter(f"{start}linear_weights_proj.weight", (chooser.heads, model.hidden))


def _delta_net(model: Model) -> Iterator[Parameter]:
    net = model.linear_attention
    assert net is not None
    heads = net.value_heads
    inputs = (net.keys, net.keys, net.values, net.values, heads, heads)
    yield Parameter(
        "in_proj.weight",
        (sum(inputs), model.hidden),
        axis=0,
        sections=inputs,
        section_names=("query", "key", "value", "z", "beta", "alpha"),
    )
    yield Parameter(
        "conv1d.weight",
        (sum(inputs[:3]), 1, net.kernel),
        axis=0,
        sections=inputs[:3],
        section_names=("query", "key", "value"),
    )
    yield Parameter("dt_bias", (heads,), axis=0)
    yield Parameter("A_log", (heads,), axis=0)
    yield Parameter("out_norm.weight", (net.value_dim,))
    yield Parameter("out_proj.weight", (model.hidden, net.values), axis=1)


def _network(model: Model, width: int, start: str = "", expert: bool = False):
    """Return a gated feed-forward network: gate and up projection in one matrix, and down."""
    fc1 = Parameter(
        f"{start}linear_fc1.weight",
        (2 * width, model.hidden),
        axis=0,
        sections=(width, width),
        expert=expert,
    )
    yield fc1
    if model.linear_bias:
        yield replace(fc1, name=f"{start}linear_fc1.bias", shape=(2 * width,))
    yield Parameter(f"{start}linear_fc2.weight", (model.hidden, width), axis=1, expert=expert)
    if model.linear_bias:
        yield Parameter(f"{start}linear_fc2.bias", (model.hidden,), expert=expert)


def _dense(model: Model) -> Iterator[Parameter]:
    yield from _network(model, model.ffn)


def _experts(model: Model) -> Iterator[Parameter]:
    moe = model.experts
    assert moe is not None
    yield Parameter("router.weight", (moe.count, model.hidden))
    if model.linear_bias:
        yield Parameter("router.bias", (moe.count,))
    if moe.score_bias:
        yield Parameter("router.expert_bias", (moe.count,), float32=True)
    for number in range(moe.count):
        yield from _network(model, moe.ffn, f"experts.{number}.", expert=True)
    if moe.shared_ffn:
        yield from _network(model, moe.shared_ffn, "shared_experts.")
        if moe.shared_gate:
            yield Parameter("shared_experts.gate_weight", (1, model.hidden))


def _mtp_head(model: Model, start: str) -> Iterator[Parameter]:
    yield Parameter(f"{start}enorm.weight", (model.hidden,))
    yield Parameter(f"{start}hnorm.weight", (model.hidden,))
    yield Parameter(f"{start}eh_proj.weight", (model.hidden, 2 * model.hidden), axis=0)
    yield Parameter(f"{start}final_layernorm.weight", (model.hidden,))


def expert_number(name: str) -> int | None:
    """Return the number of the routed expert that a parameter belongs to."""
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.")
