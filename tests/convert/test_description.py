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


MODELS = Path(__file__).parent / "models"


def test_sparse_attention_of_an_old_release_is_refused() -> None:
    """Releases before 0.19 choose other keys (NVIDIA/Megatron-LM, pull request 3026)."""
    environ = environment(MODELS / "DeepSeek-V3.2.yaml", FAMILIES["deepseek-v3"])
    found = description.from_launcher([], environ)
    assert found.shape.model.indexer
    with pytest.raises(UsageError, match=r"0\.18 rotates the queries and keys of the sparse"):
        description.from_arguments(found.arguments, 8, "0.18")


def test_experts_with_biases_are_not_split() -> None:
    environ = environment(MODELS / "gpt-oss-20b.yaml", FAMILIES["gpt-oss"], TP=2)
    with pytest.raises(UsageError, match="ETP=2: Megatron does not split experts that have biases"):
        description.from_launcher(["--expert-tensor-parallel-size", "2"], environ)
