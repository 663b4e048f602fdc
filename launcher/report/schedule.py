"""The pipeline schedule as Megatron runs it, in units of one chunk's forward pass.

1F1B and its interleaved form: warm-up, one forward one backward, cool-down (schedules.py of
core/pipeline_parallel; Narayanan et al., arXiv:2104.04473). A backward pass takes twice a forward
pass; communication takes no time.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKWARD = 2.0


@dataclass(frozen=True)
class Pass:
    """One micro-batch on one model chunk."""

    stage: int
    chunk: int
    micro_batch: int
    backward: bool
    start: float

    @property
    def length(self) -> float:
        """Its duration, in forward passes of a chunk."""
        return BACKWARD if self.backward else 1.0


def passes(stages: int, virtual: int, micro_batches: int) -> list[Pass]:
    """Return every pass of a step. `micro_batches` is a multiple of `stages` where virtual > 1."""
    orders = [_order(stage, stages, virtual, micro_batches) for stage in range(stages)]
    done: dict[tuple[int, int, int, bool], float] = {}
    clock, place = [0.0] * stages, [0] * stages
    found: list[Pass] = []
    waiting = True
    while waiting:
        waiting = False
        for stage in range(stages):
            while place[stage] < len(orders[stage]):
                chunk, micro_batch, backward = orders[stage][place[stage]]
                before = _before(stage, chunk, micro_batch, backward, stages, virtual)
                if before is not None and before not in done:
                    break
                start = max(clock[stage], done[before] if before else 0.0)
                one = Pass(stage, chunk, micro_batch, backward, start)
                found.append(one)
                clock[stage] = done[stage, chunk, micro_batch, backward] = start + one.length
                place[stage] += 1
                waiting = True
    return found


def _order(
    stage: int, stages: int, virtual: int, micro_batches: int
) -> list[tuple[int, int, bool]]:
    """Return (chunk, micro-batch, backward) in the order in which a stage works."""
    total = virtual * micro_batches
    if virtual == 1:
        warm_up = min(total, stages - stage - 1)
    else:
        warm_up = min(total, (stages - stage - 1) * 2 + (virtual - 1) * stages)
    forward = [_place(n, stages, virtual) for n in range(total)]
    backward = [(virtual - 1 - chunk, micro) for chunk, micro in forward]
    order = [(*one, False) for one in forward[:warm_up]]
    for n in range(total - warm_up):
        order += [(*forward[warm_up + n], False), (*backward[n], True)]
    return order + [(*one, True) for one in backward[total - warm_up :]]


def _place(number: int, stages: int, virtual: int) -> tuple[int, int]:
    """Return (chunk, micro-batch) of a stage's n-th pass: groups of PP micro-batches a chunk."""
    group, rest = divmod(number, stages * virtual)
    chunk, micro_batch = divmod(rest, stages)
    return (chunk, group * stages + micro_batch) if virtual > 1 else (0, number)


def _before(
    stage: int, chunk: int, micro_batch: int, backward: bool, stages: int, virtual: int
) -> tuple[int, int, int, bool] | None:
    """Return the pass that must end before this one starts."""
    if not backward:
        if stage > 0:
            return stage - 1, chunk, micro_batch, False
        return (stages - 1, chunk - 1, micro_batch, False) if chunk > 0 else None
    if stage < stages - 1:
        return stage + 1, chunk, micro_batch, True
    if chunk < virtual - 1:
        return 0, chunk + 1, micro_batch, True
    return stage, chunk, micro_batch, False
