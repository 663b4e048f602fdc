"""Compare the whole of config.json with the arguments of the job.

Sizes are checked with the tensors' shapes too. The other values change what the model computes, and
no other check would notice. So a key is compared, or allowed one value, or known to be without
influence (config_keys.py). Any other key is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config.arguments import Arguments, value
from launcher.config.layout import layer_pattern
from launcher.convert import tables
from launcher.convert.config_keys import KEYS, Keys
from launcher.convert.tables import Table
from launcher.errors import UsageError
from launcher.plan.shape import Model

Config = Mapping[str, Any]


def language_model(config: Config) -> dict[str, Any]:
    """Return what config.json says of the language model, in text_config where it has one."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return dict(config)
    kept = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    kept["model_type"] = config.get("model_type")
    return {**kept, **text}


def check_kind(config: Config, table: Table) -> None:
    """Refuse another architecture. Raises UsageError."""
    kind = language_model(config).get("model_type")
    if kind not in table.model_types:
        outer = config.get("model_type")
        inside = f" (in text_config of {outer!r})" if kind != outer else ""
        raise UsageError(
            f"config.json says model_type {kind!r}{inside}; this script is for "
            f"{' and '.join(map(repr, table.model_types))}"
        )


def check(config: Config, table: Table, model: Model, arguments: Arguments) -> None:
    """Compare config.json with the job, key by key. Raises UsageError that names every difference.

    An absent key counts as the default of transformers' configuration class.
    """
    model_config = language_model(config)
    keys = KEYS[str(model_config["model_type"])]
    problems = [*_contradictions(model_config, keys), *_unsupported(model_config, keys)]
    if not problems:
        problems += _differences(Published(model_config, keys), Described(table, model, arguments))
    if problems:
        raise UsageError("the source is another model: " + "; ".join(dict.fromkeys(problems)))


def notes(config: Config, model: Model) -> Iterator[str]:
    """Yield the differences between Megatron and the published model that no flag can change."""
    config = language_model(config)
    published, moe = Published(config, KEYS[str(config["model_type"])]), model.experts
    beta = published.positions.get("beta_fast", YARN_BETA_FAST)
    if (
        model.attention.latent
        and published.rope_type == "yarn"
        and not _equal(beta, YARN_BETA_FAST)
    ):
        yield (
            f"the published positions have beta_fast {beta}, Megatron's latent attention has the "
            f"constant {YARN_BETA_FAST}: its logits will not be the published model's"
        )
    epsilon = published["rms_norm_eps"]
    if model.attention.latent and not _equal(epsilon, LATENT_EPSILON):
        yield (
            f"the published norms of compressed queries, keys and values have epsilon "
            f"{LATENT_EPSILON} and the others {epsilon}, Megatron's all have {epsilon}: its logits "
            "differ a little"
        )
    groups = config.get("topk_group")
    if config.get("topk_method") == "group_limited_greedy" and moe and isinstance(groups, int):
        best = moe.top_k // groups
        if best > 1:
            yield (
                "the published router ranks a group by its best expert, Megatron by the sum of "
                f"its best {best}: some tokens will have other experts"
            )


# Megatron's constants for latent attention (MLATransformerConfig).
YARN_BETA_FAST = 32
YARN_BETA_SLOW = 1
YARN_ORIGINAL = 4096
# transformers' constant for q_a_layernorm and kv_a_layernorm (DeepseekV3RMSNorm's default).
LATENT_EPSILON = 1e-6

# What config.json says of positions, in rope_parameters (transformers 5) or rope_scaling (4).
_PLACES = ("rope_parameters", "rope_scaling")
_POSITION_DEFAULTS: dict[str, Any] = {
    "rope_type": None,
    "type": None,
    "rope_theta": None,
    "partial_rotary_factor": None,
    "factor": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": None,
    "mscale_all_dim": None,
    "original_max_position_embeddings": None,
    "attention_factor": None,
    "truncate": True,
}


@dataclass(frozen=True)
class Published:
    """The values of config.json, with the class's defaults for absent keys."""

    config: Config
    keys: Keys

    def __getitem__(self, key: str) -> Any:
        """Return the value of a compared key."""
        if key in ("rope_theta", "partial_rotary_factor") and key in self.positions:
            return self.positions[key]
        names = [key, *(alias for alias, name in self.keys.aliases.items() if name == key)]
        given = [self.config[name] for name in names if self.config.get(name) is not None]
        return given[0] if given else self.config.get(key, self.keys.compared[key])

    @property
    def positions(self) -> dict[str, Any]:
        """The place that describes rotary positions; empty where neither does."""
        places = [self.config[p] for p in _PLACES if isinstance(self.config.get(p), Mapping)]
        default = self.keys.compared["rope_parameters"]
        if not places and isinstance(default, Mapping):
            places = [default]  # the class's own, where neither is there
        return {key: v for place in places for key, v in place.items() if v is not None}

    @property
    def rope_type(self) -> str:
        """The kind of rotary positions, as Megatron says it."""
        kind = self.positions.get("rope_type") or self.positions.get("type") or "default"
        return "rope" if kind == "default" else str(kind)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self["num_hidden_layers"])


@dataclass(frozen=True)
class Described:
    """The Megatron side of the comparison."""

    table: Table
    model: Model
    arguments: Arguments

    def value(self, flag: str, default: object = None) -> Any:
        """Return a flag's value, or what Megatron takes where it is absent."""
        found = value(self.arguments, flag)
        return default if found is None else found


@dataclass(frozen=True)
class Difference:
    """A key of config.json, its value there, and the value of the job."""

    key: str
    published: Any
    flag: str
    have: Any


def _contradictions(config: Config, keys: Keys) -> Iterator[str]:
    """Yield the values that config.json has twice, and that differ."""
    for alias, key in keys.aliases.items():
        one, other = config.get(alias), config.get(key)
        if one is not None and other is not None and not _equal(one, other):
            yield f"config.json contradicts itself: {alias} {one} and {key} {other}"
    places = [
        ("", config),
        *((f"{p}.", config[p]) for p in _PLACES if isinstance(config.get(p), Mapping)),
    ]
    found: dict[str, tuple[str, Any]] = {}
    for start, place in places:
        for key in _POSITION_DEFAULTS:
            given = place.get(key)
            name = "rope_type" if key == "type" else key
            if given is None:
                continue
            before = found.setdefault(name, (start + key, given))
            if not _equal(before[1], given):
                yield (
                    f"config.json contradicts itself: {before[0]} {before[1]} and "
                    f"{start}{key} {given}"
                )


def _unsupported(config: Config, keys: Keys) -> Iterator[str]:
    """Yield the unknown keys, and the values that no table converts."""
    for key, given in config.items():
        if key in keys.only:
            if given is not None and not any(_equal(given, one) for one in keys.only[key]):
                allowed = keys.only[key][0]
                yield f"{key} {given!r} in config.json is not supported, only {allowed!r} is"
        elif key in keys.compared or key in keys.aliases or key in keys.ignored:
            continue
        elif not _is_nothing(given):
            yield _unknown(key, given)
    for place in _PLACES:
        inside = config.get(place)
        if inside is not None and not isinstance(inside, Mapping):
            yield f"{place} {inside!r} in config.json is no object"
            continue
        for key, given in (inside or {}).items():
            known = key in _POSITION_DEFAULTS or key in keys.positions
            if not known and not _is_nothing(given):
                yield _unknown(f"{place}.{key}", given)


def _unknown(key: str, given: Any) -> str:
    return (
        f"{key} {given!r} in config.json is unknown here, so Megatron may compute something else; "
        "take the key out if it has no influence on what the model computes"
    )


def _is_nothing(given: Any) -> bool:
    """Say whether a value switches nothing on."""
    return given is None or given is False or given in ("", [], {})


def _differences(published: Published, job: Described) -> Iterator[str]:
    yield from _architecture(job)
    found = _positions(published, job)
    for key in published.keys.compared:
        if key not in _READ_ELSEWHERE:
            found += _RULES[key](published, job)
    for one in found:
        if not _equal(one.published, one.have):
            yield f"{one.key} {_short(one.published)} in config.json, {one.flag} {_short(one.have)}"


def _architecture(job: Described) -> Iterator[str]:
    """Yield the arguments that the architecture fixes, and that the job has otherwise."""
    for flag, usual in tables.ARGUMENTS.items():
        wanted = job.table.arguments.get(flag, usual)
        given = job.value(flag, flag in job.arguments if isinstance(usual, bool) else usual)
        if wanted is tables.IN_CONFIG or _equal(wanted, given):
            continue
        if isinstance(wanted, bool):
            yield f"{job.table.name} models are {'' if wanted else 'not '}trained with {flag}"
        else:
            yield f"{job.table.name} models have {flag} {wanted}, the job {given}"
    # weighted_bias_quick_geglu_impl (megatron/core/fusions/fused_bias_geglu.py)
    fused = not {"--moe-grouped-gemm", "--no-bias-gelu-fusion"} & set(job.arguments)
    if fused and job.model.linear_bias and job.value("--activation-func-clamp-value"):
        yield (
            "without --moe-grouped-gemm Megatron's fused activation clamps before it adds the "
            "biases of experts; set --no-bias-gelu-fusion"
        )


def _positions(published: Published, job: Described) -> list[Difference]:
    """Return the comparisons of rotary positions."""
    theta = job.value("--rotary-base", 10000)
    found = [Difference("rope_theta", published["rope_theta"], "--rotary-base", theta)]
    if job.model.attention.latent:
        return [*found, *_latent_positions(published, job)]
    kind, flag = job.value("--position-embedding-type"), "--position-embedding-type"
    part, percent = published["partial_rotary_factor"], "--rotary-percent"
    found += [
        Difference("rope_type", published.rope_type, flag, kind),
        Difference("partial_rotary_factor", part, percent, job.value(percent, 1.0)),
    ]
    if published.rope_type != "yarn":
        return found
    rounded, whole = "--yarn-correction-range-round-to-int", "truncate"
    slow, fast = "--yarn-beta-slow", "--yarn-beta-fast"
    context = "--yarn-original-max-position-embeddings"
    yarn = _yarn(published)
    return [
        *found,
        *_scaling(yarn, job),
        Difference("beta_slow", yarn["beta_slow"], slow, job.value(slow, YARN_BETA_SLOW)),
        Difference("beta_fast", yarn["beta_fast"], fast, job.value(fast, YARN_BETA_FAST)),
        Difference(_ORIGINAL, yarn[_ORIGINAL], context, job.value(context, YARN_ORIGINAL)),
        Difference(whole, yarn[whole], rounded, f"--no-{rounded[2:]}" not in job.arguments),
    ]


_ORIGINAL = "original_max_position_embeddings"


def _yarn(published: Published) -> dict[str, Any]:
    """Return the published positions of YaRN, with transformers' defaults."""
    found = {**_POSITION_DEFAULTS, **published.positions}
    found[_ORIGINAL] = found[_ORIGINAL] or published.config.get("max_position_embeddings")
    for key, default in (("mscale", 1.0), ("mscale_all_dim", 0.0)):
        found[key] = default if found[key] is None else found[key]
    return found


def _scaling(yarn: Mapping[str, Any], job: Described) -> Iterator[Difference]:
    """Yield what all kinds of attention read of YaRN from the same flags."""
    flags = {"factor": "--rotary-scaling-factor", "mscale": "--mscale"}
    flags["mscale_all_dim"] = "--mscale-all-dim"
    defaults = {"factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    for key, flag in flags.items():
        yield Difference(key, yarn[key], flag, job.value(flag, defaults[key]))
    yield Difference("attention_factor", yarn["attention_factor"], "Megatron's constant", None)


def _latent_positions(published: Published, job: Described) -> Iterator[Difference]:
    """Yield the comparisons of latent attention's positions."""
    kind = job.value("--rope-type", "yarn")
    yield Difference("rope_type", published.rope_type, "--rope-type", kind)
    factor, whole = job.value("--rotary-scaling-factor", 1.0), job.value("--mscale-all-dim", 0.0)
    if published.rope_type != "yarn":
        # Megatron multiplies the scores of attention by these two, whatever the kind.
        scaled = 1.0 if _equal(whole, 0.0) else factor
        yield Difference("factor", 1.0, "--rotary-scaling-factor with --mscale-all-dim", scaled)
        return
    yarn, constant = _yarn(published), "Megatron's constant"
    yield from _scaling(yarn, job)
    yield Difference("beta_slow", yarn["beta_slow"], constant, YARN_BETA_SLOW)
    yield Difference(_ORIGINAL, yarn[_ORIGINAL], constant, YARN_ORIGINAL)
    yield Difference("truncate", yarn["truncate"], constant, True)


Rule = Callable[[Published, Described], Sequence[Difference]]


def _plain(key: str, flag: str, have: Callable[[Described], Any]) -> tuple[str, Rule]:
    """Return the rule of a key that has the same meaning as one flag."""
    return key, lambda published, job: [Difference(key, published[key], flag, have(job))]


def _tied(published: Published, job: Described) -> list[Difference]:
    flag = "--untie-embeddings-and-output-weights absent:"
    return [
        Difference("tie_word_embeddings", published["tie_word_embeddings"], flag, job.model.tied)
    ]


def _vocabulary(published: Published, job: Described) -> list[Difference]:
    """Nothing: the rows of the embedding are compared with the padded size (to_megatron.py)."""
    return []


def _key_value_heads(published: Published, job: Described) -> list[Difference]:
    attention, given = job.model.attention, published["num_key_value_heads"]
    flag = "--num-attention-heads" if attention.latent else "--num-query-groups"
    have = attention.heads if attention.latent else attention.query_groups
    if given is None:
        given = published["num_attention_heads"]
    return [Difference("num_key_value_heads", given, flag, have)]


def _head_dim(published: Published, job: Described) -> list[Difference]:
    given = published["head_dim"] or int(published["hidden_size"]) // int(
        published["num_attention_heads"]
    )
    return [Difference("head_dim", given, "--kv-channels", job.model.attention.head_dim)]


def _dense_width(published: Published, job: Described) -> list[Difference]:
    if "moe_intermediate_size" not in published.keys.compared:  # it is the experts' width
        flag = "--moe-ffn-hidden-size"
        have = job.model.experts.ffn if job.model.experts else None
        return [Difference("intermediate_size", published["intermediate_size"], flag, have)]
    if all(job.model.moe):
        return []  # no layer is dense
    have = job.model.ffn
    return [
        Difference("intermediate_size", published["intermediate_size"], "--ffn-hidden-size", have)
    ]


def _moe_layers(published: Published, job: Described) -> list[Difference]:
    """Which layers are mixtures of experts; DeepSeek's keys or Qwen's."""
    number = published.layers
    if "first_k_dense_replace" in published.keys.compared:
        first, every = (
            int(published["first_k_dense_replace"] or 0),
            int(published["moe_layer_freq"] or 1),
        )
        key = "first_k_dense_replace, moe_layer_freq"
        pattern = [n >= first and n % every == 0 for n in range(number)]
    else:
        every, dense = (
            int(published["decoder_sparse_step"] or 1),
            published["mlp_only_layers"] or (),
        )
        key = "mlp_only_layers, decoder_sparse_step"
        pattern = [n not in dense and (n + 1) % every == 0 for n in range(number)]
    have = [int(moe) for moe in job.model.moe]
    return [Difference(f"MoE layers ({key})", [int(m) for m in pattern], "--moe-layer-freq", have)]


def _layer_types(published: Published, job: Described) -> list[Difference]:
    """Which layers have linear attention, a sliding window, or keys that an indexer chooses."""
    types = published["layer_types"]
    if types is None and "index_topk" in published.keys.compared:
        types = ["indexed"] * published.layers
    elif types is None and "sliding_window" in published.keys.compared:
        types = ["full" if number % 2 else "sliding" for number in range(published.layers)]
    elif types is None:
        some = "full_attention_interval" in published.keys.compared
        every = int(published["full_attention_interval"]) if some else 1
        types = ["full" if (n + 1) % every == 0 else "linear" for n in range(published.layers)]
    types = [str(kind).removesuffix("_attention") for kind in types]
    usual = "indexed" if job.model.indexer else "full"
    have = [
        "linear" if linear else "sliding" if window else usual
        for linear, window in zip(job.model.linear, _windows(job))
    ]
    flags = {
        "sliding": "--window-attn-skip-freq",
        "indexed": "--experimental-attention-variant",
        "linear": "--linear-attention-freq",
    }
    flag = next((flags[kind] for kind in flags if kind in {*types, *have}), flags["linear"])
    return [Difference("layer_types", types, flag, have)]


def _mlp_layer_types(published: Published, job: Described) -> list[Difference]:
    """Which layers are mixtures of experts, where a list says it."""
    types = published["mlp_layer_types"]
    have = ["sparse" if moe else "dense" for moe in job.model.moe]
    return [Difference("mlp_layer_types", types or have, "--moe-layer-freq", have)]


def _indexer_types(published: Published, job: Described) -> list[Difference]:
    """Whether each layer has an indexer of its own; --dsa-indexer-topk-freq is 1 here."""
    have = ["full"] * job.model.layers
    types = published["indexer_types"] or have
    return [Difference("indexer_types", types, "--dsa-indexer-topk-freq", have)]


def _windows(job: Described) -> list[bool]:
    """Return for each layer whether its attention has a window (is_layer_window_attention)."""
    size, skip = job.value("--window-size"), job.value("--window-attn-skip-freq")
    layers = job.model.layers
    if size is None or skip is None:
        return [size is not None] * layers
    if skip.isdecimal():
        return [number % int(skip) != 0 for number in range(1, layers + 1)]
    return list(map(bool, layer_pattern(skip, layers)))


def _window(published: Published, job: Described) -> list[Difference]:
    """Compare the tokens that a query sees, itself among them; Megatron counts those before it."""
    flag, given = "--window-size", job.value("--window-size")
    if given is None:
        return [Difference("sliding_window", published["sliding_window"], flag, None)]
    before, _, after = given.strip("()").partition(",")
    wanted = f"{published['sliding_window'] - 1},0" if published["sliding_window"] else None
    have = f"{before.strip()},{after.strip()}"
    return [Difference("sliding_window less the token itself,", wanted, flag, have)]


def _shared(published: Published, job: Described) -> list[Difference]:
    have = job.model.experts.shared_ffn if job.model.experts else 0
    flag = "--moe-shared-expert-intermediate-size"
    if "n_shared_experts" in published.keys.compared:
        width = int(published["n_shared_experts"] or 0) * int(published["moe_intermediate_size"])
        return [Difference("n_shared_experts times moe_intermediate_size", width, flag, have)]
    key = "shared_expert_intermediate_size"
    return [Difference(key, published[key] or 0, flag, have)]


def _normalised(published: Published, job: Described) -> list[Difference]:
    # Megatron divides the chosen scores by their sum unless the softmax came first.
    score = job.value("--moe-router-score-function", "softmax")
    first = "--moe-router-pre-softmax" in job.arguments
    flag = "--moe-router-pre-softmax" if first else "without --moe-router-pre-softmax:"
    have = score == "sigmoid" or not first
    return [Difference("norm_topk_prob", bool(published["norm_topk_prob"]), flag, have)]


def _groups(published: Published, job: Described) -> list[Difference]:
    groups = int(published["n_group"] or 1)
    if "topk_method" in published.keys.compared and published["topk_method"] == "greedy":
        groups = 1  # the router reads them with this method alone
    flag, limit = "--moe-router-num-groups", "--moe-router-group-topk"
    found = [Difference("n_group", groups, flag, job.value(flag, 1))]
    if groups > 1:
        found.append(Difference("topk_group", published["topk_group"], limit, job.value(limit)))
    return found


def _group_method(published: Published, job: Described) -> list[Difference]:
    grouped = int(job.value("--moe-router-num-groups", 1)) > 1
    have = "group_limited_greedy" if grouped else "greedy"
    return [
        Difference("topk_method", published["topk_method"], "--moe-router-num-groups says", have)
    ]


def _attention(field: str) -> Callable[[Described], Any]:
    return lambda job: getattr(job.model.attention, field)


def _net(field: str) -> Callable[[Described], Any]:
    return lambda job: getattr(job.model.linear_attention, field, None)


def _chooser(field: str) -> Callable[[Described], Any]:
    return lambda job: getattr(job.model.indexer, field, None)


def _moe(field: str) -> Callable[[Described], Any]:
    return lambda job: getattr(job.model.experts, field, None)


_SCALING, _SCORE = "--moe-router-topk-scaling-factor", "--moe-router-score-function"
_TOPK, _CLAMP = "--dsa-indexer-topk", "--activation-func-clamp-value"
# These keys are read with another key, or with the positions.
_READ_ELSEWHERE = frozenset(
    {
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "moe_layer_freq",
        "mlp_only_layers",
        "full_attention_interval",
        "topk_group",
    }
)
_RULES: dict[str, Rule] = {
    "tie_word_embeddings": _tied,
    "vocab_size": _vocabulary,
    "num_key_value_heads": _key_value_heads,
    "head_dim": _head_dim,
    "intermediate_size": _dense_width,
    "first_k_dense_replace": _moe_layers,
    "decoder_sparse_step": _moe_layers,
    "layer_types": _layer_types,
    "n_shared_experts": _shared,
    "shared_expert_intermediate_size": _shared,
    "norm_topk_prob": _normalised,
    "n_group": _groups,
    "sliding_window": _window,
    "mlp_layer_types": _mlp_layer_types,
    "indexer_types": _indexer_types,
    "topk_method": _group_method,
    **dict(
        [
            _plain("num_hidden_layers", "--num-layers", lambda job: job.model.layers),
            _plain("hidden_size", "--hidden-size", lambda job: job.model.hidden),
            _plain(
                "num_attention_heads",
                "--num-attention-heads",
                lambda job: job.model.attention.heads,
            ),
            _plain("rms_norm_eps", "--norm-epsilon", lambda job: job.value("--norm-epsilon", 1e-5)),
            _plain("q_lora_rank", "--q-lora-rank", _attention("q_rank")),
            _plain("kv_lora_rank", "--kv-lora-rank", _attention("kv_rank")),
            _plain("qk_nope_head_dim", "--qk-head-dim", _attention("qk_dim")),
            _plain("qk_rope_head_dim", "--qk-pos-emb-head-dim", _attention("rope_dim")),
            _plain("v_head_dim", "--v-head-dim", _attention("v_dim")),
            _plain("qkv_bias", "--add-qkv-bias", _attention("qkv_bias")),
            _plain("attention_bias", "--add-qkv-bias", _attention("qkv_bias")),
            _plain("index_topk", _TOPK, lambda job: job.value(_TOPK)),
            _plain("index_n_heads", "--dsa-indexer-n-heads", _chooser("heads")),
            _plain("index_head_dim", "--dsa-indexer-head-dim", _chooser("head_dim")),
            _plain(
                "index_k_norm_eps",
                "--dsa-indexer-k-norm-epsilon",
                lambda job: job.value(
                    "--dsa-indexer-k-norm-epsilon", job.value("--norm-epsilon", 1e-5)
                ),
            ),
            _plain("use_qk_norm", "--qk-layernorm", _attention("qk_norm")),
            _plain("swiglu_limit", _CLAMP, lambda job: job.value(_CLAMP)),
            _plain("moe_intermediate_size", "--moe-ffn-hidden-size", _moe("ffn")),
            _plain("num_experts", "--num-experts", _moe("count")),
            _plain("num_local_experts", "--num-experts", _moe("count")),
            _plain("n_routed_experts", "--num-experts", _moe("count")),
            _plain("num_experts_per_tok", "--moe-router-topk", _moe("top_k")),
            _plain("routed_scaling_factor", _SCALING, lambda job: job.value(_SCALING, 1.0)),
            _plain("scoring_func", _SCORE, lambda job: job.value(_SCORE, "softmax")),
            _plain("linear_conv_kernel_dim", "--linear-conv-kernel-dim", _net("kernel")),
            _plain("linear_num_key_heads", "--linear-num-key-heads", _net("key_heads")),
            _plain("linear_num_value_heads", "--linear-num-value-heads", _net("value_heads")),
            _plain("linear_key_head_dim", "--linear-key-head-dim", _net("key_dim")),
            _plain("linear_value_head_dim", "--linear-value-head-dim", _net("value_dim")),
        ]
    ),
}


def _short(given: Any) -> str:
    """Return a value for a message; a long list by its beginning."""
    text = str(given)
    return text if len(text) <= 60 else text[:57] + "…"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if one is None or other is None:
        return one is other
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) == bool(other)
    try:
        return float(str(one)) == float(str(other))
    except ValueError:
        return str(one) == str(other)
