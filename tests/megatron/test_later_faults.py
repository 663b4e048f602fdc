"""What Megatron starts and fails on in its first step, refused by the plan before."""

from __future__ import annotations

from typing import Callable

import pytest

from launcher.config.arguments import parse
from launcher.plan.rules import Case, check

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

# By rule: ranks, arguments on top of the tiny model, and what Megatron says when it fails.
FAULTS = {
    "batch.warmup": (1, "--lr-warmup-iters 20", "lr_warmup_steps < self.lr_decay_steps"),
    "moe.top_k": (1, "--moe-router-topk 9", "selected index k out of range"),
    "parallelism.sequence_over_tensor": (
        2,
        "--tensor-model-parallel-size 2 --sequence-parallel --seq-length 63",
        "divisible by tensor parallel size",
    ),
    "batch.interleaved_micro_batches": (
        2,
        "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"
        " --global-batch-size 3",
        "introduces dependency bubbles",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", FAULTS)
def test_megatron_fails_in_its_first_step(
    rule: str, tiny: tuple[str, ...], train: Callable
) -> None:
    ranks, flags, message = FAULTS[rule]
    arguments = parse([*tiny, *flags.split()], "test")
    found = check(Case(arguments, world_size=ranks, release="0.19"))
    assert [one.rule for one in found if one.severity == "error"] == [rule]
    run = train(*flags.split(), ranks=ranks, succeeds=False)
    assert run.status != 0
    assert not run.losses
    assert message in run.output, run.output[-3000:]
