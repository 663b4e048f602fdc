"""Global batches that change over a run, by release."""

from __future__ import annotations

import pytest

from launcher.config.arguments import merge, parse
from launcher.plan.batches import Step, steps
from launcher.plan.plan import plan
from launcher.plan.rules import Case, check
from tests.plan.test_rules import GOOD
from tests.support.launching import launch


def case(further: str, release: str) -> Case:
    arguments = merge(parse(GOOD.split(), "test"), parse(further.split(), "test"))
    return Case(arguments, 64, release, {"CUDA_DEVICE_MAX_CONNECTIONS": ("1", "test")}, "H100")


def said(further: str, release: str) -> list[str]:
    return [one.message for one in check(case(further, release)) if one.rule.startswith("ramp.")]


@pytest.mark.parametrize("release", ["0.15", "0.16", "0.17"])
@pytest.mark.parametrize(
    ("further", "fault"),
    [
        ("--rampup-batch-size 16 16 1000", None),
        ("--rampup-batch-size 16 10 1000", "48 sequences are no multiple of 10"),
        ("--rampup-batch-size 128 16 1000", "not below --global-batch-size 64"),
        ("--rampup-batch-size 0 16 1000", "below 1"),
        ("--rampup-batch-size 24 8 1000", "the batch of 24 from sample 0 on is not a multiple of MBS*DP = 16"),
        ("--rampup-batch-size 16 16 1000 --train-iters 50", "needs --train-samples"),
    ],
)  # fmt: skip
def test_rampup(release, further, fault):
    found = said(further, release)
    assert any(fault in line for line in found) if fault else found == []


@pytest.mark.parametrize("release", ["0.18", "0.19", "dev"])
def test_rampup_is_read_and_ignored_later(release):
    (line,) = said("--rampup-batch-size 16 16 1000", release)
    assert "has no effect from Megatron-Core 0.18 on" in line
    assert (
        plan(case("--rampup-batch-size 16 16 1000", release)).shaped.shape.training.first_batch
        == 64
    )


@pytest.mark.parametrize(
    ("schedule", "fault"),
    [
        ("0:64,1B:128", None),
        ("1B:64", "no entry for the start"),
        ("0:64,nonsense", "is no THRESHOLD:BATCH"),
        ("0:64,1X:128", "is no number"),
        ("0:64,1B:100", "the batch of 100 from sample 244,140 on is not a multiple of MBS*DP = 16"),
        ("0:64,100:128", "two batches for the same sample"),
    ],
)
def test_schedule(schedule, fault):
    found = said(f"--step-batch-size-schedule {schedule}", "0.19")
    assert any(fault in line for line in found) if fault else found == []


def test_steps_are_megatrons():
    arguments = parse(["--rampup-batch-size", "32", "16", "300"], "test")
    assert steps(arguments, 80, 4096, "0.17") == (Step(0, 32), Step(100, 48), Step(200, 64), Step(300, 80))  # fmt: skip


def test_a_schedule_takes_the_global_batch_away():
    """The row's --global-batch-size goes; first and last batch are shown."""
    words = ["--step-batch-size-schedule", "0:512 250B:1024"]
    seen = launch(words, MODEL="Qwen3-30B-A3B", DRY_RUN="1")
    assert seen.status == 0, seen.stderr
    assert seen.flag("--global-batch-size") is None
    assert seen.flag("--step-batch-size-schedule") == ["0:512 250B:1024"]
    assert "batch      1024 sequences of 4096 tokens" in seen.stderr
    assert "at the start 512 sequences" in seen.stderr
