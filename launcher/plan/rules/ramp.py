"""Global batches that change over a run: each of them is whole micro-batches on every replica."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.batches import RAMPUP, SCHEDULE, Step, ignored, steps
from launcher.plan.rules.case import Case, Unreadable, multiples


def _steps(case: Case) -> tuple[Step, ...]:
    final = case.number("--global-batch-size") or case.size("--micro-batch-size") * case.data
    return steps(case.arguments, final, case.size("--seq-length"), case.release)


def readable_batches(case: Case) -> Iterator[str]:
    """NumMicroBatchesCalculator: a ramp or a schedule that leads to its last batch."""
    flag = next((flag for flag in (SCHEDULE, RAMPUP) if case.has(flag)), None)
    if flag is None:
        return
    try:
        _steps(case)
    except Unreadable:
        return
    except ValueError as error:
        yield f"{error} ({case.arguments[flag].origin})"
    if flag == RAMPUP and not ignored(case.release) and case.number("--train-iters"):
        yield f"{case.said(RAMPUP)} needs --train-samples, not {case.said('--train-iters')}"


def whole_steps(case: Case) -> Iterator[str]:
    """NumMicroBatchesCalculator.update: it checks a batch when the run comes to it."""
    if not case.has(SCHEDULE, RAMPUP) or case.has("--decrease-batch-size-if-needed"):
        return
    each = case.size("--micro-batch-size") * case.data
    for step in _steps(case):
        if step.batch % each:
            flag = SCHEDULE if case.has(SCHEDULE) else RAMPUP
            yield (
                f"{case.said(flag)}: the batch of {step.batch} from sample {step.samples:,} on is "
                f"not a multiple of MBS*DP = {each}: {multiples(each, step.batch)} would be"
            )
            return


def ignored_rampup(case: Case) -> Iterator[str]:
    """init_num_microbatches_calculator: from 0.18 on the ramp is read and not used."""
    if case.has(RAMPUP) and ignored(case.release):
        yield (
            f"{case.said(RAMPUP)} has no effect from Megatron-Core 0.18 on: "
            f"{SCHEDULE} 'TOKENS:BATCH …' takes its place"
        )


ERRORS = (readable_batches,)
RUN_TIME = (whole_steps,)
WARNINGS = (ignored_rampup,)
