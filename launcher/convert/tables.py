"""The mapping tables: a row for each Megatron parameter, with its Hugging Face tensors.

A row is (Megatron's name, transform, Hugging Face's names), within a layer; the fragments below are
shared by the architectures that have the part, and an architecture is a few fragments. Megatron's
names are those of parameters.py. {expert} stands for every expert's number.

Sources: the modelling code of each architecture in transformers, and, for MTP, the published
tensor lists of deepseek-ai/DeepSeek-V3 and Qwen/Qwen3-Next-80B-A3B-Instruct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from launcher.convert import parameters
from launcher.convert.transforms import (
    Alternating,
    Concatenated,
    Copy,
    DeltaNetInput,
    PadRows,
    QueryKeyValue,
    Stack,
    Transform,
    ZeroCentred,
)
from launcher.plan.shape import Model
from launcher.plan.stages import Layer, mtp_layer


@dataclass(frozen=True)
class Row:
    """One Megatron parameter and the tensors it is made of."""

    target: str
    how: Transform
    sources: tuple[str, ...]


Rows = tuple[tuple[str, Transform, tuple[str, ...]], ...]
Fragment = Callable[[Model, Layer], Rows]

copy, stack = Copy(), Stack()

NORMS: Rows = (
    ("input_layernorm.weight", copy, ("input_layernorm.weight",)),
    ("pre_mlp_layernorm.weight", copy, ("post_attention_layernorm.weight",)),
)


def _grouped(model: Model, biases: bool = False, norms: bool = False) -> Rows:
    """Grouped-query attention."""
    join = QueryKeyValue.of(model.attention)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    rows: Rows = (
        ("self_attention.linear_qkv.weight", join, tuple(f"{name}.weight" for name in names)),
        ("self_attention.linear_proj.weight", copy, ("self_attn.o_proj.weight",)),
    )
    if biases:
        rows += (("self_attention.linear_qkv.bias", join, tuple(f"{name}.bias" for name in names)),)
    if norms:
        rows += (
            ("self_attention.q_layernorm.weight", copy, ("self_attn.q_norm.weight",)),
            ("self_attention.k_layernorm.weight", copy, ("self_attn.k_norm.weight",)),
        )
    return rows


def _latent(model: Model) -> Rows:
    """Multi-latent attention; the queries compressed or not."""
    kv: Rows = (
        (
            "self_attention.linear_kv_down_proj.weight",
            copy,
            ("self_attn.kv_a_proj_with_mqa.weight",),
        ),
        ("self_attention.kv_layernorm.weight", copy, ("self_attn.kv_a_layernorm.weight",)),
        ("self_attention.linear_kv_up_proj.weight", copy, ("self_attn.kv_b_proj.weight",)),
        ("self_attention.linear_proj.weight", copy, ("self_attn.o_proj.weight",)),
    )
    if model.attention.q_rank is None:
        return (*kv, ("self_attention.linear_q_proj.weight", copy, ("self_attn.q_proj.weight",)))
    return (
        *kv,
        ("self_attention.linear_q_down_proj.weight", copy, ("self_attn.q_a_proj.weight",)),
        ("self_attention.q_layernorm.weight", copy, ("self_attn.q_a_layernorm.weight",)),
        ("self_attention.linear_q_up_proj.weight", copy, ("self_attn.q_b_proj.weight",)),
    )


INDEXER: Rows = tuple(
    (f"self_attention.core_attention.indexer.{ours}", copy, (f"self_attn.indexer.{theirs}",))
    for ours, theirs in (
        ("linear_wq_b.weight", "wq_b.weight"),
        ("linear_wk.weight", "wk.weight"),
        ("k_norm.weight", "k_norm.weight"),
        ("k_norm.bias", "k_norm.bias"),
        ("linear_weights_proj.weight", "weights_proj.weight"),
    )
)


def _delta_net(model: Model, how: Transform, inputs: tuple[str, ...]) -> Rows:
    """Gated delta net. Its own norm is centred on one in transformers, on zero in Megatron."""
    names = tuple(f"linear_attn.{name}.weight" for name in inputs)
    return (
        ("self_attention.in_proj.weight", how, names),
        ("self_attention.conv1d.weight", copy, ("linear_attn.conv1d.weight",)),
        ("self_attention.dt_bias", copy, ("linear_attn.dt_bias",)),
        ("self_attention.A_log", copy, ("linear_attn.A_log",)),
        ("self_attention.out_norm.weight", ZeroCentred(), ("linear_attn.norm.weight",)),
        ("self_attention.out_proj.weight", copy, ("linear_attn.out_proj.weight",)),
    )


def _network(
    target: str, source: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> Rows:
    """A gated feed-forward network."""
    return (
        (
            f"{target}.linear_fc1.weight",
            stack,
            (f"{source}.{gate}.weight", f"{source}.{up}.weight"),
        ),
        (f"{target}.linear_fc2.weight", copy, (f"{source}.{down}.weight",)),
    )


def _experts(model: Model, source: str = "mlp", **matrices: str) -> Rows:
    """Router and routed experts."""
    return (
        ("mlp.router.weight", copy, (f"{source}.gate.weight",)),
        *_network("mlp.experts.{expert}", f"{source}.experts.{{expert}}", **matrices),
    )


DENSE = _network("mlp", "mlp")
SHARED_EXPERTS = _network("mlp.shared_experts", "mlp.shared_experts")
SCORE_BIAS: Rows = (("mlp.router.expert_bias", copy, ("mlp.gate.e_score_correction_bias",)),)
SHARED_GATE: Rows = (("mlp.shared_experts.gate_weight", copy, ("mlp.shared_expert_gate.weight",)),)


def _mixtral(model: Model, layer: Layer) -> Rows:
    experts = _experts(model, "block_sparse_moe", gate="w1", up="w3", down="w2")
    return NORMS + _grouped(model) + experts


def _qwen2(model: Model, layer: Layer) -> Rows:
    shared = _network("mlp.shared_experts", "mlp.shared_expert") + SHARED_GATE
    experts = _experts(model) + shared if layer.moe else DENSE
    return NORMS + _grouped(model, biases=True) + experts


def _qwen3(model: Model, layer: Layer) -> Rows:
    return NORMS + _grouped(model, norms=True) + (_experts(model) if layer.moe else DENSE)


def _qwen3_next(model: Model, layer: Layer) -> Rows:
    assert model.linear_attention is not None
    join = DeltaNetInput.of(model.linear_attention)
    return _hybrid(model, layer, join, ("in_proj_qkvz", "in_proj_ba"))


def _qwen3_5(model: Model, layer: Layer) -> Rows:
    net = model.linear_attention
    assert net is not None
    sizes = (2 * net.keys + net.values, net.values, net.value_heads, net.value_heads)
    names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    return _hybrid(model, layer, Concatenated(sizes), names)


def _hybrid(model: Model, layer: Layer, how: Transform, inputs: tuple[str, ...]) -> Rows:
    """Gated delta nets with gated attention between them."""
    attention = _delta_net(model, how, inputs) if layer.linear else _grouped(model, norms=True)
    shared = _network("mlp.shared_experts", "mlp.shared_expert") + SHARED_GATE
    return NORMS + attention + (_experts(model) + shared if layer.moe else DENSE)


def _deepseek_v2(model: Model, layer: Layer) -> Rows:
    return NORMS + _latent(model) + (_experts(model) + SHARED_EXPERTS if layer.moe else DENSE)


def _deepseek_v3(model: Model, layer: Layer) -> Rows:
    return _deepseek_v2(model, layer) + (SCORE_BIAS if layer.moe else ())


def _deepseek_v3_2(model: Model, layer: Layer) -> Rows:
    return _deepseek_v3(model, layer) + INDEXER


def _glm4_moe(model: Model, layer: Layer) -> Rows:
    attention = _grouped(model, model.attention.qkv_bias, model.attention.qk_norm)
    experts = _experts(model) + SHARED_EXPERTS + SCORE_BIAS if layer.moe else DENSE
    return NORMS + attention + experts


def _gpt_oss(model: Model, layer: Layer) -> Rows:
    attention: Rows = (
        *_grouped(model, biases=True),
        ("self_attention.linear_proj.bias", copy, ("self_attn.o_proj.bias",)),
        ("self_attention.core_attention.softmax_offset", copy, ("self_attn.sinks",)),
    )
    fc1, fc2 = ("mlp.experts.{expert}.linear_fc1", "mlp.experts.{expert}.linear_fc2")
    gate_up, down = ("mlp.experts.{expert}.gate_up_proj", "mlp.experts.{expert}.down_proj")
    experts = tuple(
        row
        for kind in ("weight", "bias")
        for row in (
            (f"mlp.router.{kind}", copy, (f"mlp.router.{kind}",)),
            (f"{fc1}.{kind}", Alternating(), (f"{gate_up}.{kind}",)),
            (f"{fc2}.{kind}", copy, (f"{down}.{kind}",)),
        )
    )
    return NORMS + attention + experts


@dataclass(frozen=True)
class Mtp:
    """The place of multi-token prediction in an architecture's tensor list."""

    # All by the number of decoder layers and that of the MTP layer, from 0.
    layer: Callable[[int, int], str]  # what the names of its transformer layer start with
    rows: Callable[[int, int], Rows]  # of its own parts; sources by their full names
    # Layers where config.json lacks num_nextn_predict_layers; None where it never has it.
    default: int | None
    # Tensors published twice: what they repeat. They are compared, and written back.
    twins: Callable[[int, int], tuple[tuple[str, str], ...]] = lambda layers, number: ()


def _head(enorm: str, hnorm: str, projection: str, norm: str) -> Rows:
    return (
        ("enorm.weight", copy, (enorm,)),
        ("hnorm.weight", copy, (hnorm,)),
        ("eh_proj.weight", copy, (projection,)),
        ("final_layernorm.weight", copy, (norm,)),
    )


def _deepseek_mtp_layer(layers: int, number: int) -> str:
    return f"model.layers.{layers + number}."


def _deepseek_head(layers: int, number: int) -> Rows:
    start = _deepseek_mtp_layer(layers, number)
    names = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    return _head(*(f"{start}{name}.weight" for name in names))


def _deepseek_twins(layers: int, number: int) -> tuple[tuple[str, str], ...]:
    start = _deepseek_mtp_layer(layers, number)
    return (
        (f"{start}embed_tokens.weight", EMBEDDING),
        (f"{start}shared_head.head.weight", OUTPUT),
    )


def _qwen3_next_head(layers: int, number: int) -> Rows:
    names = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")
    return _head(*(f"mtp.{name}.weight" for name in names))


EMBEDDING, NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True)
class Table:
    """An architecture."""

    name: str
    model_types: tuple[str, ...]  # config.json's model_type
    layer: Fragment
    mtp: Mtp | None = None
    # Buffers that some publications contain, and that no weight needs.
    ignored: tuple[str, ...] = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    # Where its experts are, and what it calls their gate, up and down projections.
    experts: tuple[str, str, str, str] = ("mlp", "gate_proj", "up_proj", "down_proj")
    # Its experts are published in stacks only: [e, h, 2f], rows of gate and up projection in turn.
    alternating: bool = False
    # Arguments that the architecture needs, where they are not those of ARGUMENTS.
    arguments: Mapping[str, object] = field(default_factory=dict)


# Arguments that change what a model computes, and that config.json does not say. True is a flag
# that is set; values are Megatron's defaults. A table has others where its architecture has.
ARGUMENTS: Mapping[str, object] = {
    "--activation-func-clamp-value": None,
    "--apply-layernorm-1p": False,
    "--apply-residual-connection-post-layernorm": False,
    "--disable-bias-linear": True,
    "--disable-dsa-indexer-scoring-relu": False,
    "--dsa-indexer-rope-interleaved": False,
    "--dsa-indexer-topk-freq": "1",
    "--glu-linear-offset": "0",
    "--moe-apply-probs-on-input": False,
    "--no-dsa-indexer-scoring-relu": False,
    "--no-rope-freq": None,
    "--qk-l2-norm": False,
    "--quick-geglu": False,
    "--rotary-interleaved": False,
    "--softmax-type": "vanilla",
    "--swiglu": True,
    "--use-rope-scaling": False,
    "--window-attn-skip-freq": None,
    "--window-size": None,
}
_ZERO_CENTRED = {"--apply-layernorm-1p": True}
IN_CONFIG = object()  # it is compared with a key of config.json

TABLES = {
    table.name: table
    for table in (
        Table("mixtral", ("mixtral",), _mixtral, experts=("block_sparse_moe", "w1", "w3", "w2")),
        Table("qwen2-moe", ("qwen2_moe",), _qwen2),
        Table("qwen3-moe", ("qwen3_moe",), _qwen3),
        Table(
            "qwen3-next",
            ("qwen3_next",),
            _qwen3_next,
            Mtp(lambda layers, number: f"mtp.layers.{number}.", _qwen3_next_head, None),
            arguments=_ZERO_CENTRED,
        ),
        Table(
            "qwen3-5-moe",
            ("qwen3_5_moe_text",),
            _qwen3_5,
            Mtp(lambda layers, number: f"mtp.layers.{number}.", _qwen3_next_head, None),
            arguments=_ZERO_CENTRED,
        ),
        Table("deepseek-v2", ("deepseek_v2",), _deepseek_v2),
        Table(
            "deepseek-v3",
            ("deepseek_v3", "kimi_k2"),
            _deepseek_v3,
            Mtp(_deepseek_mtp_layer, _deepseek_head, 1, _deepseek_twins),
        ),
        Table(
            "deepseek-v3.2",
            ("deepseek_v32",),
            _deepseek_v3_2,
            Mtp(_deepseek_mtp_layer, _deepseek_head, 1, _deepseek_twins),
        ),
        Table(
            "glm-moe-dsa",
            ("glm_moe_dsa",),
            _deepseek_v3_2,
            Mtp(_deepseek_mtp_layer, _deepseek_head, 1, _deepseek_twins),
            arguments={"--dsa-indexer-rope-interleaved": True},
        ),
        Table(
            "glm4-moe",
            ("glm4_moe",),
            _glm4_moe,
            Mtp(_deepseek_mtp_layer, _deepseek_head, 1, _deepseek_twins),
        ),
        Table(
            "gpt-oss",
            ("gpt_oss",),
            _gpt_oss,
            alternating=True,
            arguments={
                "--disable-bias-linear": False,
                "--swiglu": False,
                "--quick-geglu": True,
                "--glu-linear-offset": "1",
                "--softmax-type": "learnable",
                **dict.fromkeys(
                    (
                        "--activation-func-clamp-value",
                        "--window-attn-skip-freq",
                        "--window-size",
                    ),
                    IN_CONFIG,
                ),
            },
        ),
    )
}


def rows(table: Table, model: Model, vocabulary: int) -> Iterator[Row]:
    """Return every row for a model; `vocabulary` is the published number of tokens."""
    pad = PadRows(vocabulary, model.vocabulary)
    yield Row(parameters.EMBEDDING, pad, (EMBEDDING,))
    for number in range(model.layers):
        layer = Layer(number, model.moe[number], model.linear[number], False)
        yield from _expanded(table, model, layer, f"model.layers.{number}.")
    yield Row(parameters.FINAL_NORM, copy, (NORM,))
    if table.mtp:
        for number in range(model.mtp_built):
            for target, how, sources in table.mtp.rows(model.layers, number):
                yield Row(f"mtp.layers.{number}.{target}", how, sources)
            start = table.mtp.layer(model.layers, number)
            yield from _expanded(table, model, mtp_layer(model, number), start)
    if not model.tied:
        yield Row(parameters.OUTPUT, pad, (OUTPUT,))


def twins(table: Table, model: Model) -> dict[str, str]:
    """Return the tensors that repeat another one: their name and the other's."""
    found = {OUTPUT: EMBEDDING} if model.tied else {}
    for number in range(model.mtp_built) if table.mtp else ():
        found.update(table.mtp.twins(model.layers, number))
    # With tied embeddings a copy of the output layer is one of the embedding.
    return {name: found.get(other, other) for name, other in found.items()}


def _expanded(table: Table, model: Model, layer: Layer, source: str) -> Iterator[Row]:
    target = parameters.prefix(layer)
    for name, how, sources in table.layer(model, layer):
        numbers = range(model.experts.count) if model.experts and "{expert}" in name else (None,)
        for expert in numbers:
            filled = tuple(source + one.replace("{expert}", str(expert)) for one in sources)
            yield Row(target + name.replace("{expert}", str(expert)), how, filled)
