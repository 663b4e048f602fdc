"""The Megatron side: read from the launcher, and which ranks there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launcher.config.arguments import argv
from launcher.convert import description, legacy
from launcher.errors import UsageError
from tests.support.launching import preview
from tests.support.synthetic import FAMILIES, environment


def test_arguments_are_the_launchers() -> None:
    environ = environment(Path("DeepSeek-V3"), FAMILIES["deepseek-v3"], TP=2, PP=16, EP=64)
    described = description.from_launcher(["--mtp-num-layers", "1"], environ)
    shown = preview(["--mtp-num-layers", "1"], TP="2", PP="16", EP="64", VPP="1").command
    assert argv(described.arguments) == shown[-len(argv(described.arguments)) :]
    assert described.dtype == torch.bfloat16
    assert [len(stage.layers) for stage in described.stages] == [4, *[4] * 14, 2]


def test_the_launchers_refusals_are_passed_on() -> None:
    with pytest.raises(UsageError, match="'DeepSeek-V9' is unknown"):
        description.from_launcher([], environment(Path("DeepSeek-V9"), FAMILIES["deepseek-v3"]))
    environ = environment(Path("DeepSeek-V3"), FAMILIES["deepseek-v3"])
    slip = ["--expert-tensor-paralel-size", "1"]
    with pytest.raises(UsageError, match=r"no argument of .* mean --expert-tensor-parallel-size"):
        description.from_launcher(slip, environ)


@pytest.mark.parametrize(
    ("tp", "ep", "etp", "expected"),
    [
        (1, 2, 1, {(0, 0, 0), (0, 1, 0)}),
        (2, 2, 2, {(0, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 1)}),
        # Each tensor rank is one expert rank here: four files, not eight.
        (2, 4, 1, {(0, 0, 0), (1, 1, 0), (0, 2, 0), (1, 3, 0)}),
        (4, 2, 2, {(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)}),
    ],
)
def test_ranks_that_occur_together(tp: int, ep: int, etp: int, expected: set) -> None:
    words = ["--expert-tensor-parallel-size", str(etp)]
    environ = environment(Path("Qwen3-30B-A3B"), FAMILIES["qwen3"], TP=tp, EP=ep)
    described = description.from_launcher(words, environ)
    assert set(described.tensor_expert) == expected
    assert len(legacy.ranks(described)) == len(expected)
