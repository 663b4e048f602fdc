"""A model is known by its dimensions, whatever its file is called."""

from __future__ import annotations

import csv

import pytest

from launcher.config.arguments import merge, parse
from launcher.plan import architectures, published
from launcher.plan.shape import read
from tests.plan.test_models import arguments_of
from tests.plan.test_parameters import shape_of, words, world_size
from tests.support.launching import preview


@pytest.mark.parametrize(
    "name",
    ["DeepSeek-V2", "DeepSeek-V2-Lite", "DeepSeek-V3", "Kimi-K2", "Mixtral-8x22B", "Mixtral-8x7B", "Qwen2-57B-A14B", "Qwen3-235B-A22B", "Qwen3-30B-A3B", "Qwen3-Next-80B-A3B"],
)  # fmt: skip
def test_a_model_of_the_zoo_is_known(name):
    assert architectures.name(shape_of(name).model) == name


@pytest.mark.parametrize(
    ("file", "name"),
    [("gpt-oss-120b", "GPT-OSS-120B"), ("gpt-oss-20b", "GPT-OSS-20B"), ("GLM-5", "GLM-5.2"), ("Moonlight-16B-A3B", "Moonlight-16B-A3B")],
)  # fmt: skip
def test_a_model_of_2026_is_known(file, name):
    assert architectures.name(read(arguments_of(file), 1).model) == name


def test_another_depth_is_another_model():
    arguments = parse(words("DeepSeek-V3"), "job")
    fewer = parse(["--num-layers", "14", "--moe-layer-freq", "([0]*3+[1]*11)"], "test")
    shape = read(merge(arguments, fewer), world_size("DeepSeek-V3"))
    assert architectures.name(shape.model) is None
    assert architectures.name(shape_of("DeepSeek-V3-Proxy").model) is None


def test_every_published_model_can_be_recognized():
    with published.DATA.open(encoding="utf-8", newline="") as file:
        models = {row["model"] for row in csv.DictReader(file)}
    # Cut short, or of dimensions that no stored source has.
    assert models - architectures.KNOWN.keys() <= {"Nemotron-3.5-Lightning", "Grok1-314B", "DeepSeek-V2-4layers", "DeepSeek-V3-4layers"}  # fmt: skip


def test_results_follow_the_architecture():
    seen = preview(
        ["--num-layers", "14", "--moe-layer-freq", "([0]*3+[1]*11)"],
        MODEL="DeepSeek-V3", PP="2", NNODES="128", GPU="H100",
    )  # fmt: skip
    assert "published  nothing for this model on H100" in seen.stderr
