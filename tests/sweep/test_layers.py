"""A sweep's layers are sourced once for points that they cannot tell apart, with the same result."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from launcher.config import bash_layers
from launcher.sweep import grid, layers
from tests.support.launching import ROOT

SEEDS = "arguments:\n  --seed: [1, 2, 3]\n"
RECIPE = "recipe: best_practice/Qwen3/run_qwen3_30b_h100.sh\n"


@pytest.mark.parametrize(
    ("text", "sourced"),
    [
        (
            f"variables: {{MODEL: DeepSeek-V3, PROFILE: [0, torch]}}\n{SEEDS}",
            3,
        ),  # common.conf has PROFILE
        (f"variables: {{MODEL: DeepSeek-V3, FORCE: [0, 1]}}\n{SEEDS}", 2),
        (f"variables: {{MODEL: [DeepSeek-V3, Kimi-K2], TP: [1, 2]}}\n{SEEDS}", 5),
        (f"{RECIPE}{SEEDS}", 2),
        (f"{RECIPE}variables: {{EP: [8, 16]}}\n{SEEDS}", 3),
    ],
)
def test_as_many_sourcings_as_needed_with_the_same_result(text: str, sourced: int, tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    read = grid.read(path)
    environ = {"PATH": os.environ["PATH"], "HOME": "/root", "CLUSTER": "example-h100", "USER": "me"}
    with mock.patch.object(bash_layers, "source", wraps=bash_layers.source) as source:
        found = layers.of_points(read, read.points(), ["--lr", "1"], environ)
    assert source.call_count == sourced
    for point, (left, words) in list(zip(read.points(), found))[::2]:
        alone = bash_layers.source(
            read.script, [*point.words, "--lr", "1"], {**environ, **point.variables}
        )
        assert (left, words) == alone


def test_a_layer_that_may_read_anything_is_sourced_for_each(tmp_path: Path):
    conf = tmp_path / "mine.conf"
    template = (ROOT / "cluster_configs/benchmarking/example-h100.conf").read_text()
    conf.write_text(f"{template}\nname=FORCE; MINE=${{!name:-}}\n")
    path = tmp_path / "sweep.yaml"
    path.write_text("variables: {MODEL: DeepSeek-V3, FORCE: [0, 1]}\n")
    read = grid.read(path)
    environ = {"PATH": os.environ["PATH"], "HOME": "/root", "CLUSTER": str(conf)}
    found = layers.of_points(read, read.points(), [], environ)
    assert [left["MINE"] for left, _ in found] == ["0", "1"]


def test_a_point_fills_an_empty_variable_of_the_shell(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("variables: {MODEL: DeepSeek-V3, PARTITION: night, FORCE: [0, 1]}\n")
    read = grid.read(path)
    environ = {"PATH": os.environ["PATH"], "CLUSTER": "example-h100", "PARTITION": "", "FORCE": ""}
    found = layers.of_points(read, read.points(), [], environ)
    assert [(left["PARTITION"], left["FORCE"]) for left, _ in found] == [
        ("night", "0"),
        ("night", "1"),
    ]
