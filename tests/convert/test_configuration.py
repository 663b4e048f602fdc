"""config.json against the job: values that no tensor's shape would give away."""

from __future__ import annotations

import os
from functools import cache

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from launcher.convert import configuration, description
from launcher.convert.tables import TABLES
from launcher.errors import UsageError

YARN = {"type": "yarn", "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
V2 = {
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {**YARN, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707},
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
# What Megatron has no flag for.
NOTED = {"DeepSeek-V2": "ranks a group by its best expert", "Kimi-K2": "beta_fast 1.0"}


@cache
def described(model: str) -> description.Description:
    """The job that a model's defaults describe."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    release = "0.18" if model == "DeepSeek-V2-Lite" else "0.19"
    environ = {**kept, "MODEL": model, "OUTPUT_PATH": "/output", "MCORE_RELEASE_VERSION": release}
    return description.from_launcher([], environ)


def check(model: str, **changes: object) -> None:
    table, config = PUBLISHED[model]
    found = described(model)
    merged = {**config, **changes}
    configuration.check(merged, TABLES[table], found.shape.model, found.arguments)


@pytest.mark.parametrize("model", PUBLISHED)
def test_defaults_are_the_published_models(model: str) -> None:
    check(model)
    found = list(configuration.notes(PUBLISHED[model][1], described(model).shape.model))
    assert len(found) == (model in NOTED)
    assert NOTED.get(model, "") in " ".join(found)


@pytest.mark.parametrize(
    ("model", "key", "wrong"),
    [
        ("Mixtral-8x7B", "rope_theta", 10000),
        ("Qwen2-57B-A14B", "norm_topk_prob", True),
        ("Qwen3-30B-A3B", "norm_topk_prob", False),
        ("Qwen3-30B-A3B", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("Qwen3-Next-80B-A3B", "partial_rotary_factor", 0.5),
        ("DeepSeek-V2", "scoring_func", "sigmoid"),
        ("DeepSeek-V3", "n_group", 4),
        ("DeepSeek-V3", "topk_group", 2),
        ("DeepSeek-V3", "rope_scaling", None),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "factor": 32}),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "mscale_all_dim": 0.707}),
        ("DeepSeek-V3", "rope_scaling", {**YARN, "original_max_position_embeddings": 8192}),
        ("Kimi-K2", "routed_scaling_factor", 2.5),
    ],
)
def test_a_model_that_computes_otherwise_is_refused(model: str, key: str, wrong: object) -> None:
    with pytest.raises(UsageError, match="the source is another model: ") as refusal:
        check(model, **{key: wrong})
    named = key if key != "rope_scaling" else "rope_type|factor|mscale_all_dim|original_max"
    assert any(name in str(refusal.value) for name in named.split("|"))
