"""config.json held against the arguments of the job: each difference one line.

Sizes decide shapes and are checked with the tensors too; the other values change what the model
computes and nothing else would notice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.config.arguments import Arguments, value
from launcher.convert.tables import Table
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
    said = _flat(config)
    problems = [
        f"{key} {said[key]} in config.json, {flag} {have}"
        for key, flag, have in _said(table, model, arguments)
        if said.get(key) is not None and have is not None and not _equal(said[key], have)
    ]
    if problems:
        raise UsageError("the source is another model: " + "; ".join(problems))


def notes(config: Mapping[str, object], model: Model) -> Iterator[str]:
    """Return what Megatron computes otherwise than the published model, and no flag changes."""
    said, moe = _flat(config), model.experts
    beta = said.get("beta_fast")
    if model.attention.latent and beta is not None and not _equal(beta, YARN_BETA_FAST):
        yield (
            f"the published positions have beta_fast {beta}, Megatron's latent attention has the "
            f"constant {YARN_BETA_FAST}: its logits will not be the published model's"
        )
    groups = said.get("topk_group")
    if said.get("topk_method") == "group_limited_greedy" and moe and isinstance(groups, int):
        best = moe.top_k // groups
        if best > 1:
            yield (
                "the published router ranks a group by its best expert, Megatron by the sum of "
                f"its best {best}: some tokens will have other experts"
            )


# Megatron's constants for latent attention (MLATransformerConfig).
YARN_BETA_FAST = 32
YARN_CONSTANTS = (("beta_slow", 1), ("original_max_position_embeddings", 4096))


def _flat(config: Mapping[str, object]) -> dict[str, object]:
    """Return config.json with what it says of positions, in either place, among the rest."""
    places = [config[key] for key in ("rope_parameters", "rope_scaling") if key in config]
    if not places:
        return dict(config)
    positions = next((place for place in places if isinstance(place, Mapping)), {})
    kind = positions.get("rope_type") or positions.get("type") or "default"
    return {**positions, **config, "rope_type": "rope" if kind == "default" else kind}


def _said(table: Table, model: Model, arguments: Arguments) -> Iterator[tuple[str, str, object]]:
    """Return config.json's key, Megatron's flag, and what the arguments make of it."""
    attention, moe = model.attention, model.experts
    yield "num_hidden_layers", "--num-layers", model.layers
    yield "hidden_size", "--hidden-size", model.hidden
    yield "num_attention_heads", "--num-attention-heads", attention.heads
    yield "rms_norm_eps", "--norm-epsilon", value(arguments, "--norm-epsilon") or "1e-5"
    yield "tie_word_embeddings", "--untie-embeddings-and-output-weights absent:", model.tied
    yield "rope_theta", "--rotary-base", value(arguments, "--rotary-base") or "10000"
    if attention.latent:
        kind = value(arguments, "--rope-type") or "yarn"
        yield "rope_type", "--rope-type", kind
        if kind == "yarn":
            yield "factor", "--rotary-scaling-factor", value(arguments, "--rotary-scaling-factor")
            yield "mscale", "--mscale", value(arguments, "--mscale")
            yield "mscale_all_dim", "--mscale-all-dim", value(arguments, "--mscale-all-dim")
            yield from ((key, "Megatron's constant", constant) for key, constant in YARN_CONSTANTS)
        yield "q_lora_rank", "--q-lora-rank", attention.q_rank
        yield "kv_lora_rank", "--kv-lora-rank", attention.kv_rank
        yield "qk_nope_head_dim", "--qk-head-dim", attention.qk_dim
        yield "qk_rope_head_dim", "--qk-pos-emb-head-dim", attention.rope_dim
        yield "v_head_dim", "--v-head-dim", attention.v_dim
    else:
        percent = value(arguments, "--rotary-percent") or "1.0"
        yield "partial_rotary_factor", "--rotary-percent", percent
        yield "rope_type", "Megatron's positions:", "rope"
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
        score = value(arguments, "--moe-router-score-function") or "softmax"
        yield "scoring_func", "--moe-router-score-function", score
        # Megatron divides the chosen scores by their sum unless the softmax came first.
        first = "--moe-router-pre-softmax" in arguments
        flag = "--moe-router-pre-softmax" if first else "without --moe-router-pre-softmax:"
        yield "norm_topk_prob", flag, score == "sigmoid" or not first
        groups = value(arguments, "--moe-router-num-groups") or "1"
        yield "n_group", "--moe-router-num-groups", groups
        if groups != "1":
            chosen = value(arguments, "--moe-router-group-topk")
            yield "topk_group", "--moe-router-group-topk", chosen
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
