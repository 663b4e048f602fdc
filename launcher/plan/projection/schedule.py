"""Megatron's pipeline schedules, simulated: 1F1B and its interleaved form.

The order of passes on a rank is that of get_pp_rank_microbatches and get_schedule_table
(megatron/core/pipeline_parallel/schedules.py). A pass starts when its rank is free and its input
is there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from launcher.records import dataclass

GROUPS = 3  # simulated; the rest of a step repeats the last of them


@dataclass(frozen=True)
class Passes:
    """Seconds of a chunk's passes, by pipeline rank and virtual stage.

    Between warm-up and cool-down a forward and a backward pass take turns; their times differ
    there from those of lone passes where one hides the communication of the other.
    """

    forward: Sequence[Sequence[float]]
    backward: Sequence[Sequence[float]]
    steady_forward: Sequence[Sequence[float]]
    steady_backward: Sequence[Sequence[float]]
    transfer: float  # seconds until a neighbour has the result
    blocking: bool  # transfers keep both ranks waiting; interleaved schedules hide them


@dataclass(frozen=True)
class Span:
    """One micro-batch's pass through one model chunk."""

    rank: int
    chunk: int
    micro_batch: int
    backward: bool
    start: float  # seconds from the step's start
    end: float


def even(stages: int, virtual: int) -> Passes:
    """Return passes where nothing is known: forward takes 1, backward 2, a transfer no time."""
    forward, backward = ([[time] * virtual for _ in range(stages)] for time in (1.0, 2.0))
    return Passes(forward, backward, forward, backward, transfer=0.0, blocking=False)


def warm_up(
    stages: int, rank: int, virtual: int, micro_batches: int, group: int, overlap: bool = False
) -> int:
    """Return the forward passes of a rank before its first backward pass."""
    if stages == 1 and virtual == 1:
        ahead = 0
    elif virtual == 1:
        ahead = stages - rank - 1
    else:
        ahead = (stages - rank - 1) * 2 + (virtual - 1) * group + overlap
    return min(ahead, micro_batches * virtual)


@functools.lru_cache(maxsize=64)
def table(micro_batches: int, virtual: int, group: int) -> tuple[tuple[int, int], ...]:
    """Return micro-batch and chunk of every forward pass, in order; backward the chunks turn."""
    return tuple(
        (micro_batch, chunk)
        for start in range(0, micro_batches, group)
        for chunk in range(virtual)
        for micro_batch in range(start, min(start + group, micro_batches))
    )


def order(
    stages: int, rank: int, virtual: int, micro_batches: int, group: int, overlap: bool = False
) -> list[tuple[bool, int, int]]:
    """Return a rank's passes: whether it is forward, micro-batch, chunk."""
    passes = table(micro_batches, virtual, group)
    ahead = warm_up(stages, rank, virtual, micro_batches, group, overlap)
    forward = [(True, micro_batch, chunk) for micro_batch, chunk in passes]
    backward = [(False, micro_batch, virtual - 1 - chunk) for micro_batch, chunk in passes]
    turns = [one for pair in zip(forward[ahead:], backward) for one in pair]
    return forward[:ahead] + turns + backward[len(passes) - ahead :]


def seconds(passes: Passes, micro_batches: int, group: int, overlap: bool = False) -> float:
    """Return the seconds that all passes of a step take, from the first to the last.

    A few groups of micro-batches are simulated; the others take as long as the last of these.
    """
    stages = len(passes.forward)
    if stages == 1:
        lone = sum(passes.forward[0]) + sum(passes.backward[0])
        turns = sum(passes.steady_forward[0]) + sum(passes.steady_backward[0])
        return lone + turns * (micro_batches - 1)
    group = min(group, micro_batches)
    whole, rest = divmod(micro_batches, group)
    if len(passes.forward[0]) > 1 and 0 < rest < stages:
        # Megatron refuses such a last group: it would wait for itself.
        shorter = seconds(passes, whole * group, group, overlap)
        longer = seconds(passes, (whole + 1) * group, group, overlap)
        return shorter + (longer - shorter) * rest / group
    few = min(whole, GROUPS)
    end, period = _simulate(passes, few * group + rest, group, overlap)
    return end + (whole - few) * period


def timeline(passes: Passes, micro_batches: int, group: int, overlap: bool = False) -> list[Span]:
    """Return every pass of a step. Raises ValueError for micro-batches that cannot be scheduled."""
    spans: list[Span] = []
    _simulate(passes, micro_batches, min(group, micro_batches), overlap, spans)
    return spans


def _simulate(
    passes: Passes,
    micro_batches: int,
    group: int,
    overlap: bool,
    spans: list[Span] | None = None,
) -> tuple[float, float]:
    """Return when the last pass ends, and the seconds that a group more would take.

    Every pass is added to `spans`.
    """
    stages, virtual = len(passes.forward), len(passes.forward[0])
    depth = stages * virtual
    transfer = passes.transfer
    blocked = transfer if passes.blocking else 0.0
    entries = table(micro_batches, virtual, group)
    total = len(entries)
    # When the result of position (chunk times stages plus rank) is there for its neighbour.
    forward_done = [[-1.0] * micro_batches for _ in range(depth + 1)]
    backward_done = [[-1.0] * micro_batches for _ in range(depth + 1)]
    forward_done[0] = [0.0] * micro_batches  # the data
    ahead = [
        warm_up(stages, rank, virtual, micro_batches, group, overlap) for rank in range(stages)
    ]
    done_forward, done_backward = [0] * stages, [0] * stages
    free = [0.0] * stages
    steady_ends: list[float] = []  # of forward passes on the first rank
    left = 2 * total * stages
    while left:
        before = left
        for rank in range(stages):
            one, two, now = done_forward[rank], done_backward[rank], free[rank]
            limit = ahead[rank]
            while two < total:
                if one < total and one - two <= limit:
                    micro_batch, chunk = entries[one]
                    position = chunk * stages + rank
                    ready = forward_done[position][micro_batch]
                    if ready < 0:
                        break
                    times = passes.forward if one < limit else passes.steady_forward
                    now = (ready if ready > now else now) + times[rank][chunk] + blocked
                    if spans is not None:
                        begun = now - blocked - times[rank][chunk]
                        spans.append(Span(rank, chunk, micro_batch, False, begun, now - blocked))
                    forward_done[position + 1][micro_batch] = now + transfer
                    if position + 1 == depth:
                        backward_done[depth][micro_batch] = now
                    one += 1
                    if not rank:
                        steady_ends.append(now)
                else:
                    micro_batch, chunk = entries[two]
                    chunk = virtual - 1 - chunk
                    position = chunk * stages + rank
                    ready = backward_done[position + 1][micro_batch]
                    if ready < 0:
                        break
                    times = passes.steady_backward if two < total - limit else passes.backward
                    now = (ready if ready > now else now) + times[rank][chunk] + blocked
                    if spans is not None:
                        begun = now - blocked - times[rank][chunk]
                        spans.append(Span(rank, chunk, micro_batch, True, begun, now - blocked))
                    backward_done[position][micro_batch] = now + transfer
                    two += 1
                left -= 1
            done_forward[rank], done_backward[rank], free[rank] = one, two, now
        if left == before:
            raise ValueError("the schedule waits for itself")
    turn = group * virtual
    last = micro_batches // group * turn
    period = steady_ends[last - 1] - steady_ends[last - turn - 1] if last > turn else 0.0
    return max(free), period
