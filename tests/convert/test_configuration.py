"""config.json against the job: values that no tensor's shape would give away."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from launcher.config.arguments import argv, parse
from launcher.convert import configuration, description
from launcher.convert.config_keys import KEYS
from launcher.convert.tables import TABLES
from launcher.errors import UsageError

SIZES = Path(__file__).parents[1] / "megatron" / "published"
ABSENT = "absent"
YARN = {"type": "yarn", "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
V2 = {
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {**YARN, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707},
}
GPT_OSS_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
V3 = {"scoring_func": "sigmoid", "norm_topk_prob": True, "rms_norm_eps": 1e-6}
QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None}
# What the published config.json of each model says that is no size.
PUBLISHED = {
    "Mixtral-8x7B": ("mixtral", {"rms_norm_eps": 1e-5, "rope_theta": 1e6}),
    "Mixtral-8x22B": ("mixtral", {"rms_norm_eps": 1e-5, "rope_theta": 1e6}),
    "Qwen2-57B-A14B": ("qwen2-moe", {**QWEN, "norm_topk_prob": False}),
    "Qwen3-30B-A3B": ("qwen3-moe", {**QWEN, "norm_topk_prob": True}),
    "Qwen3-235B-A22B": ("qwen3-moe", {**QWEN, "norm_topk_prob": True}),
    "Qwen3-Next-80B-A3B": (
        "qwen3-next",
        {**QWEN, "norm_topk_prob": True, "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    ),
    "DeepSeek-V2": (
        "deepseek-v2",
        {
            **V2,
            "topk_method": "group_limited_greedy",
            "n_group": 8,
            "topk_group": 3,
            "routed_scaling_factor": 16.0,
        },
    ),
    "DeepSeek-V2-Lite": (
        "deepseek-v2",
        {
            **V2,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
        },
    ),
    "DeepSeek-V3": (
        "deepseek-v3",
        {
            **V3,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "rope_theta": 10000,
            "rope_scaling": {**YARN, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "Kimi-K2": (
        "deepseek-v3",
        {
            **V3,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "rope_theta": 50000.0,
            "rope_scaling": {
                **YARN,
                "factor": 32.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 1.0,
            },
        },
    ),
}
FURTHER = Path(__file__).parent / "models"  # their files have the whole of config.json
PUBLISHED.update(
    {
        "gpt-oss-20b": ("gpt-oss", {}),
        "gpt-oss-120b": ("gpt-oss", {}),
        "DeepSeek-V3.2": ("deepseek-v3.2", {}),
        "GLM-5": ("glm-moe-dsa", {}),
    }
)
# What Megatron has no flag for.
NOTED = {
    "DeepSeek-V2": "ranks a group by its best expert",
    "Kimi-K2": "beta_fast 1.0",
    "GLM-5": "epsilon 1e-06 and the others 1e-05",
}


@cache
def described(model: str) -> description.Description:
    """The job that a model's defaults describe."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    release = "0.18" if model == "DeepSeek-V2-Lite" else "0.19"
    further = FURTHER / f"{model}.yaml"
    model = str(further) if further.exists() else model
    environ = {**kept, "MODEL": model, "OUTPUT_PATH": "/output", "MCORE_RELEASE_VERSION": release}
    return description.from_launcher([], environ)


def published(model: str) -> dict:
    """A model's config.json: its sizes, and what it says besides."""
    folder = FURTHER if (FURTHER / f"{model}.json").exists() else SIZES
    sizes = json.loads((folder / f"{model}.json").read_text())["config"]
    return {**sizes, **PUBLISHED[model][1]}


def check(model: str, **changes: object) -> None:
    found, config = described(model), {**published(model), **changes}
    kept = {key: value for key, value in config.items() if value != ABSENT}
    table = TABLES[PUBLISHED[model][0]]
    configuration.check(kept, table, found.shape.model, found.arguments)


@pytest.mark.parametrize("model", PUBLISHED)
def test_defaults_are_the_published_models(model: str) -> None:
    check(model)
    found = list(configuration.notes(published(model), described(model).shape.model))
    assert len(found) == (model in NOTED)
    assert NOTED.get(model, "") in " ".join(found)


@pytest.mark.parametrize(
    ("model", "key", "wrong"),
    [
        ("Mixtral-8x7B", "rope_theta", 10000),
        ("Mixtral-8x7B", "sliding_window", 4096),
        ("Mixtral-8x7B", "num_experts_per_tok", 3),
        ("Mixtral-8x7B", "num_local_experts", 16),
        ("Qwen2-57B-A14B", "norm_topk_prob", True),
        ("Qwen2-57B-A14B", "qkv_bias", False),
        ("Qwen2-57B-A14B", "use_sliding_window", True),
        ("Qwen2-57B-A14B", "rope_theta", ABSENT),
        ("Qwen2-57B-A14B", "layer_types", ["full_attention", "sliding_attention"] * 14),
        ("Qwen3-30B-A3B", "norm_topk_prob", False),
        ("Qwen3-30B-A3B", "norm_topk_prob", ABSENT),
        ("Qwen3-30B-A3B", "attention_bias", True),
        ("Qwen3-30B-A3B", "hidden_act", "gelu"),
        ("Qwen3-30B-A3B", "head_dim", ABSENT),
        ("Qwen3-30B-A3B", "mlp_only_layers", [0]),
        ("Qwen3-30B-A3B", "decoder_sparse_step", 2),
        ("Qwen3-30B-A3B", "shared_expert_intermediate_size", 768),
        ("Qwen3-30B-A3B", "tie_word_embeddings", True),
        ("Qwen3-30B-A3B", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("Qwen3-30B-A3B", "rope_scaling", {"rope_type": "linear", "factor": 4.0}),
        ("Qwen3-Next-80B-A3B", "partial_rotary_factor", 0.5),
        ("Qwen3-Next-80B-A3B", "full_attention_interval", 3),
        ("Qwen3-Next-80B-A3B", "layer_types", ["linear_attention"] * 47 + ["full_attention"]),
        ("Qwen3-Next-80B-A3B", "linear_conv_kernel_dim", 3),
        ("DeepSeek-V2", "scoring_func", "sigmoid"),
        ("DeepSeek-V2", "topk_method", "greedy"),
        ("DeepSeek-V2", "first_k_dense_replace", 3),
        ("DeepSeek-V2-Lite", "topk_method", "group_limited_greedy"),
        ("DeepSeek-V2-Lite", "q_lora_rank", ABSENT),
        ("DeepSeek-V3", "topk_method", "greedy"),
        ("DeepSeek-V3", "rope_interleave", False),
        ("DeepSeek-V3", "n_group", 4),
        ("DeepSeek-V3", "topk_group", 2),
        ("DeepSeek-V3", "n_shared_experts", 2),
        ("DeepSeek-V3", "moe_layer_freq", 2),
        ("DeepSeek-V3", "rope_scaling", None),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "factor": 32}),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "factor": 40, "mscale_all_dim": 0.707}),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "original_max_position_embeddings": 8192}),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "beta_slow": 2}),
        ("Kimi-K2", "routed_scaling_factor", 2.5),
        ("Kimi-K2", "routed_scaling_factor", ABSENT),
        ("DeepSeek-V3.2", "index_topk", 1024),
        ("DeepSeek-V3.2", "index_n_heads", 32),
        ("DeepSeek-V3.2", "index_head_dim", 64),
        ("DeepSeek-V3.2", "indexer_rope_interleave", True),
        ("DeepSeek-V3.2", "mlp_layer_types", ["dense"] * 4 + ["sparse"] * 57),
        ("DeepSeek-V3.2", "layer_types", ["full_attention"] * 61),
        ("GLM-5", "indexer_rope_interleave", False),
        ("GLM-5", "index_topk_freq", 4),
        ("GLM-5", "index_topk_pattern", "FFFS" * 19 + "FF"),
        ("GLM-5", "indexer_types", ["full", "full", "shared"] * 26),
        ("gpt-oss-20b", "sliding_window", 127),
        ("gpt-oss-20b", "sliding_window", None),
        ("gpt-oss-20b", "layer_types", ["full_attention", "sliding_attention"] * 12),
        ("gpt-oss-20b", "layer_types", ["full_attention"] * 24),
        ("gpt-oss-20b", "swiglu_limit", 10.0),
        ("gpt-oss-20b", "swiglu_alpha", 1.0),
        ("gpt-oss-20b", "attention_bias", False),
        ("gpt-oss-20b", "experts_per_token", 8),
        ("gpt-oss-20b", "rope_theta", 10000),
        ("gpt-oss-20b", "rope_scaling", {**GPT_OSS_YARN, "truncate": True}),
        ("gpt-oss-20b", "rope_scaling", {**GPT_OSS_YARN, "beta_fast": 16}),
        ("gpt-oss-20b", "rope_scaling", {**GPT_OSS_YARN, "factor": 16}),
        ("gpt-oss-20b", "rope_scaling", {**GPT_OSS_YARN, "original_max_position_embeddings": 8192}),
        ("gpt-oss-20b", "rope_scaling", {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_a_model_that_computes_otherwise_is_refused(model: str, key: str, wrong: object) -> None:
    with pytest.raises(UsageError, match="the source is another model: ") as refusal:
        check(model, **{key: wrong})
    named = {
        "rope_scaling": "rope_type|factor|mscale_all_dim|original_max|beta_slow|beta_fast|truncate",
        "experts_per_token": "num_experts_per_tok",
        "full_attention_interval": "layer_types",
    }
    named = named.get(key, key)
    assert any(name in str(refusal.value) for name in named.split("|"))


def test_norms_of_other_epsilon_are_noted() -> None:
    config = {**published("DeepSeek-V3"), "rms_norm_eps": 1e-5}
    (note,) = configuration.notes(config, described("DeepSeek-V3").shape.model)
    assert "have epsilon 1e-06 and the others 1e-05, Megatron's all have 1e-05" in note


def test_a_key_that_nobody_knows_is_named() -> None:
    with pytest.raises(UsageError, match=r"attention_sinks 4 in config\.json is unknown here"):
        check("Qwen3-30B-A3B", attention_sinks=4)
    with pytest.raises(
        UsageError, match=r"rope_scaling\.low_freq_factor 1\.0 in config\.json is unknown here"
    ):
        check("DeepSeek-V3", rope_scaling={**YARN, "low_freq_factor": 1.0})
    # What switches nothing on says nothing.
    check("Qwen3-30B-A3B", attention_sinks=None, use_something=False, more={})


def test_a_contradiction_is_named() -> None:
    positions = {"rope_type": "default", "rope_theta": 1e6}
    check("Qwen3-30B-A3B", rope_parameters=positions)
    with pytest.raises(
        UsageError, match="contradicts itself: rope_theta 1000000 and rope_parameters"
    ):
        check("Qwen3-30B-A3B", rope_parameters={**positions, "rope_theta": 1e4})
    with pytest.raises(
        UsageError, match="contradicts itself: num_local_experts 64 and num_experts"
    ):
        check("Qwen3-30B-A3B", num_local_experts=64)


@pytest.mark.parametrize(
    ("model", "word", "value"),
    [
        ("Qwen3-30B-A3B", "--window-size", "128,0"),
        ("Qwen3-30B-A3B", "--apply-layernorm-1p", None),
        ("Qwen3-30B-A3B", "--rotary-interleaved", None),
        ("Qwen3-30B-A3B", "--softmax-type", "off-by-one"),
        ("Qwen3-30B-A3B", "--position-embedding-type", "yarn"),
        ("DeepSeek-V3", "--glu-linear-offset", "1.0"),
        ("DeepSeek-V3.2", "--dsa-indexer-rope-interleaved", None),
        ("DeepSeek-V3.2", "--no-dsa-indexer-scoring-relu", None),
        ("DeepSeek-V3.2", "--dsa-indexer-topk-freq", "4"),
        ("GLM-5", "--dsa-indexer-k-norm-epsilon", "1e-5"),
        ("gpt-oss-20b", "--softmax-type", "vanilla"),
        ("gpt-oss-20b", "--glu-linear-offset", "0"),
        ("gpt-oss-20b", "--window-attn-skip-freq", "4"),
        ("gpt-oss-20b", "--window-size", "128,0"),
        ("gpt-oss-20b", "--window-size", "127,1"),
        ("gpt-oss-20b", "--activation-func-clamp-value", "8"),
        ("gpt-oss-20b", "--qk-l2-norm", None),
    ],
)
def test_flags_that_change_an_architecture(model: str, word: str, value: str | None) -> None:
    table, found = TABLES[PUBLISHED[model][0]], described(model)
    arguments = parse([*argv(found.arguments), word, *([value] if value else [])], "test")
    with pytest.raises(UsageError, match=word):
        configuration.check(published(model), table, found.shape.model, arguments)


def test_a_flag_at_its_default_changes_nothing() -> None:
    table, found = TABLES["qwen3-moe"], described("Qwen3-30B-A3B")
    words = ["--softmax-type", "vanilla", "--glu-linear-offset", "0.0"]
    arguments = parse([*argv(found.arguments), *words], "test")
    configuration.check(published("Qwen3-30B-A3B"), table, found.shape.model, arguments)


def test_biases_are_part_of_an_architecture() -> None:
    """gpt-oss has them in every linear layer, the others in none."""
    for model, change in (("gpt-oss-20b", "with"), ("Qwen3-30B-A3B", "without")):
        table, found = TABLES[PUBLISHED[model][0]], described(model)
        flag = "--disable-bias-linear"
        words = [word for word in argv(found.arguments) if word != flag]
        arguments = parse([*words, flag] if change == "with" else words, "test")
        with pytest.raises(UsageError, match=flag):
            configuration.check(published(model), table, found.shape.model, arguments)


def test_the_clamp_comes_after_the_biases() -> None:
    """Megatron's experts one by one, fused, would clamp first."""
    table, found = TABLES["gpt-oss"], described("gpt-oss-20b")
    words = [word for word in argv(found.arguments) if word != "--moe-grouped-gemm"]
    config, model = published("gpt-oss-20b"), found.shape.model
    with pytest.raises(UsageError, match="set --no-bias-gelu-fusion"):
        configuration.check(config, table, model, parse(words, "test"))
    words.append("--no-bias-gelu-fusion")
    configuration.check(config, table, model, parse(words, "test"))


def test_the_window_by_a_list_of_layers() -> None:
    table, found = TABLES["gpt-oss"], described("gpt-oss-20b")
    for pattern, good in (("([1,0]*12)", True), ("([0,1]*12)", False)):
        words = [*argv(found.arguments), "--window-attn-skip-freq", pattern]
        arguments = parse(words, "test")
        if good:
            configuration.check(published("gpt-oss-20b"), table, found.shape.model, arguments)
        else:
            with pytest.raises(UsageError, match="layer_types"):
                configuration.check(published("gpt-oss-20b"), table, found.shape.model, arguments)


def test_what_is_said_of_the_language_model_alone() -> None:
    """Models that see have a text_config; its model_type decides."""
    inner = {**published("DeepSeek-V3"), "model_type": "deepseek_v3"}
    config = {"model_type": "kimi_vl", "text_config": inner, "vision_config": {"depth": 3}}
    table, found = TABLES["deepseek-v3"], described("DeepSeek-V3")
    configuration.check_kind(config, table)
    configuration.check(config, table, found.shape.model, found.arguments)
    changed = {**config, "text_config": {**inner, "n_group": 4}}
    with pytest.raises(UsageError, match="n_group 4 in config"):
        configuration.check(changed, table, found.shape.model, found.arguments)
    with pytest.raises(
        UsageError, match=r"'deepseek_v3' \(in text_config of 'kimi_vl'\); this script"
    ):
        configuration.check_kind(config, TABLES["qwen3-moe"])


KINDS = [kind for table in TABLES.values() for kind in table.model_types]
# None until they are known.
SIZED_BY_OTHERS = {
    "head_dim",
    "indexer_types",
    "layer_types",
    "mlp_layer_types",
    "num_key_value_heads",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_transformers_is_in_one_list(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the training extra is not installed")
    if kind == "kimi_k2":
        kind = "deepseek_v3"  # transformers has no other class for it
    keys = KEYS[kind]
    lists = [set(keys.compared), set(keys.only), set(keys.ignored), set(keys.aliases)]
    assert sum(map(len, lists)) == len(set().union(*lists)), "a key is in two lists"
    config = transformers.CONFIG_MAPPING[kind]().to_dict()
    assert config.keys() - set().union(*lists) == set()
    for key, default in keys.compared.items():
        if key in config and key not in SIZED_BY_OTHERS | {"rope_parameters"}:
            assert configuration._equal(config[key] or 0, default or 0), key
    theta = config["rope_parameters"]["rope_theta"]
    assert theta == keys.compared["rope_theta"]
    part = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    assert part == keys.compared.get("partial_rotary_factor", 1.0)
    for key, allowed in keys.only.items():
        assert config.get(key) in (*allowed, None), key
    for key in keys.compared:
        assert key in configuration._RULES or key in configuration._READ_ELSEWHERE
