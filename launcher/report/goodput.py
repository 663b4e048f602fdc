"""Goodput: how a run's lost time divides among its causes.

Time is lost where it does not go into steps of the steady speed. Megatron stops the iteration's
clock while it evaluates or saves, so that time shows only between two lines.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from launcher.report import steady
from launcher.report.steady import Window
from launcher.report.training_log import Log

PAUSE = 0.5  # a longer gap in seconds between two iterations is more than rounding


@dataclass(frozen=True)
class _Step:
    """A logged iteration with its times."""

    number: int
    life: int
    at: float  # when it was printed
    seconds: float  # each of the iterations that the line covers
    after: frozenset[str]
    why: str  # it was excluded from the steady state


def lost(log: Log, window: Window, seconds: float | None) -> dict[str, float]:
    """Return the lost seconds by cause, the largest first; empty for a log without times."""
    steps = [
        _Step(one.number, one.life, one.at, one.seconds, one.after, window.excluded.get(place, ""))
        for place, one in enumerate(log.iterations)
        if one.at is not None and one.seconds is not None
    ]
    if not steps or seconds is None:
        return {}
    interval = _interval(steps)
    repeated = _repeated(steps)
    found: defaultdict[str, float] = defaultdict(float)
    before: _Step | None = None
    for one in steps:
        if before is None or before.life != one.life:
            covered = min(one.number, interval)
            began = log.starts.get(one.life, before.at if before else None)
            if before and began is not None:
                found["restarts"] += max(0.0, began - before.at)
            if began is not None:
                found["start-up"] += max(0.0, one.at - one.seconds * covered - began)
        else:
            covered = max(1, one.number - before.number)
            pause = one.at - before.at - one.seconds * covered
            if pause > PAUSE and log.stride == 1:
                cause = "checkpoints" if "checkpoint" in one.after else "evaluation"
                found[cause if one.after else "other pauses"] += pause
        if one.number >= repeated.get(one.life, one.number + 1):
            found["work done again"] += one.seconds * covered
        elif one.why == "warm-up":
            found["warm-up"] += max(0.0, one.seconds - seconds) * covered
        elif one.seconds > steady.SLOW * seconds:
            found["slow steps"] += (one.seconds - seconds) * covered
        before = one
    ordered = sorted(found.items(), key=lambda one: one[1], reverse=True)
    return {cause: round(time, 3) for cause, time in ordered if time > 0}


def _interval(steps: list[_Step]) -> int:
    """Return how many iterations a line covers."""
    apart = [b.number - a.number for a, b in zip(steps, steps[1:]) if a.life == b.life]
    return max(1, min(apart, default=1))


def _repeated(steps: list[_Step]) -> dict[int, int]:
    """Return the iteration from which on a life's work was done again, by life."""
    first: dict[int, int] = {}
    for one in steps:
        first.setdefault(one.life, one.number)
    again: dict[int, int] = {}
    least: int | None = None
    for life in sorted(first, reverse=True):
        if least is not None:
            again[life] = least
        least = first[life] if least is None else min(least, first[life])
    return again
