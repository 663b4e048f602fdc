"""Every default fits its GPU, and a job that does not is told what would."""

from __future__ import annotations

import re

import pytest

from launcher.config.arguments import merge, parse
from launcher.config.gpus import GPUS
from launcher.plan import memory, remedies
from launcher.plan.plan import Site, plan, too_full
from launcher.plan.rules import Case
from tests.plan.test_parameters import MODELS, ROOT, words, world_size

NOTHING = "--recompute-granularity selective --recompute-modules core_attn"


def planned(name: str, *further: str):
    arguments = merge(parse(words(name), "job"), parse(further, "test"))
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": ("1", "test")}
    return plan(Case(arguments, world_size(name), "0.19", environment, gpu="H100"))


@pytest.mark.parametrize("name", MODELS)
def test_a_default_launch_fits_an_h100(name):
    made = planned(name)
    assert not [one for one in made.findings if one.severity == "error"]
    needed = memory.worst(made.shaped.memory).total / memory.GIB
    assert needed <= remedies.USABLE * GPUS["H100"].memory
    assert too_full(made.shaped, Site(name, 1, 8, "H100")) is None


@pytest.mark.parametrize(
    ("name", "further", "change"),
    [
        ("DeepSeek-V3", NOTHING, r"--recompute-modules layernorm mla_up_proj mlp moe would"),
        ("Qwen3-30B-A3B", "--micro-batch-size 4", r"moe --pipeline-model-parallel-size 2 "),
        ("Mixtral-8x22B", "--micro-batch-size 2", r"--recompute-modules layernorm moe would"),
    ],
)
def test_what_would_fit(name, further, change):
    made = planned(name, *further.split())
    told = too_full(made.shaped, Site(name, 1, 8, "H100")).message
    assert re.search(change, told), told
    # The change is one that can be made: with it, the job fits and nothing objects.
    given = re.search(r"; (--[^;]*) would need (\d+) GiB", told)
    again = planned(name, *further.split(), *given[1].split())
    assert not [one for one in again.findings if one.severity == "error"]
    assert round(memory.worst(again.shaped.memory).total / memory.GIB) == int(given[2])
    assert too_full(again.shaped, Site(name, 1, 8, "H100")) is None


def test_the_recipe_is_one_of_the_model_and_the_gpu():
    for model, gpu in (("DeepSeek-V3", "H100"), ("Qwen3-235B-A22B", "GB300"), ("Kimi-K2", "GB200")):
        path = remedies.recipe(model, gpu)
        assert f"MODEL={model}" in (ROOT / path).read_text(encoding="utf-8")
        assert gpu.lower() in path
    assert remedies.recipe("Kimi-K2", "H100") is None


def test_nearly_full_is_said_too():
    made = planned("DeepSeek-V2-Lite", "--seq-length", "4864", "--max-position-embeddings", "4864")
    needed = memory.worst(made.shaped.memory).total / memory.GIB
    assert remedies.USABLE * 79.1 < needed < 79.1, needed
    assert "4 to 7 %" in too_full(made.shaped, Site("DeepSeek-V2-Lite", 1, 8, "H100")).message
