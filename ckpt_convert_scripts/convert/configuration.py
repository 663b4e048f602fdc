"""config.json held against the arguments of the job: each difference one line.

Sizes decide shapes and are checked with the tensors too; the other values change what the model
computes and nothing else would notice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt_convert_scripts.convert.tables import Table
from launcher.arguments import Arguments, value
from launcher.errors import UsageError
from launcher.plan.shape import Model


def check_kind(config: Mapping[str, object], table: Table) -> None:
    """Refuse another architecture. Raises UsageError."""
    kind = config.get("model_type")
    if kind not in table.model_types:
        raise UsageError(
            f"config.json says model_type {kind!r}; this script is for "
            f"{' and '.join(map(repr, table.model_types))}"
        )


def check(config: Mapping[str, object], table: Table, model: Model, arguments: Arguments) -> None:
    """Compare all that both say. Raises UsageError."""
    problems = [
        f"{key} {config[key]} in config.json, {flag} {have}"
        for key, flag, have in _said(table, model, arguments)
        if config.get(key) is not None and have is not None and not _equal(config[key], have)
    ]
    positions = config.get("rope_parameters")
    base = config.get("rope_theta")
    if base is None and isinstance(positions, Mapping):
        base = positions.get("rope_theta")
    given = value(arguments, "--rotary-base") or "10000"
    if base is not None and not _equal(base, given):
        problems.append(f"rope_theta {base} in config.json, --rotary-base {given}")
    if problems:
        raise UsageError("the source is another model: " + "; ".join(problems))


def _said(table: Table, model: Model, arguments: Arguments) -> Iterator[tuple[str, str, object]]:
    """Return config.json's key, Megatron's flag, and what the arguments make of it."""
    attention, moe = model.attention, model.experts
    yield "num_hidden_layers", "--num-layers", model.layers
    yield "hidden_size", "--hidden-size", model.hidden
    yield "num_attention_heads", "--num-attention-heads", attention.heads
    yield "rms_norm_eps", "--norm-epsilon", value(arguments, "--norm-epsilon") or "1e-5"
    yield "tie_word_embeddings", "--untie-embeddings-and-output-weights absent:", model.tied
    if attention.latent:
        yield "q_lora_rank", "--q-lora-rank", attention.q_rank
        yield "kv_lora_rank", "--kv-lora-rank", attention.kv_rank
        yield "qk_nope_head_dim", "--qk-head-dim", attention.qk_dim
        yield "qk_rope_head_dim", "--qk-pos-emb-head-dim", attention.rope_dim
        yield "v_head_dim", "--v-head-dim", attention.v_dim
    else:
        yield "num_key_value_heads", "--num-query-groups", attention.query_groups
        yield "head_dim", "--kv-channels", attention.head_dim
    if not all(model.moe) and table.name != "mixtral":
        yield "intermediate_size", "--ffn-hidden-size", model.ffn
    if moe:
        width = "intermediate_size" if table.name == "mixtral" else "moe_intermediate_size"
        yield width, "--moe-ffn-hidden-size", moe.ffn
        yield table.experts, "--num-experts", moe.count
        yield "num_experts_per_tok", "--moe-router-topk", moe.top_k
        scaling = value(arguments, "--moe-router-topk-scaling-factor")
        yield "routed_scaling_factor", "--moe-router-topk-scaling-factor", scaling
    net = model.linear_attention
    if net:
        yield "linear_num_key_heads", "--linear-num-key-heads", net.key_heads
        yield "linear_num_value_heads", "--linear-num-value-heads", net.value_heads
        yield "linear_key_head_dim", "--linear-key-head-dim", net.key_dim
        yield "linear_value_head_dim", "--linear-value-head-dim", net.value_dim


def _equal(one: object, other: object) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) == bool(other)
    try:
        return float(str(one)) == float(str(other))
    except ValueError:
        return str(one) == str(other)
