"""Which iterations count: our rule of the steady state, and the conventions of others.

Steady state leaves out, of every start of the job,
- warm-up: the first 5 iterations, and all up to the last one among the first 20 that took more
  than 1.5 times the median of those after it (compilation, graph capture, allocator);
- the iteration after a checkpoint or an evaluation;
- profiled iterations (--profile-step-start to --profile-step-end, and the one that writes);
- iterations whose optimizer step was skipped, or whose loss was not a number;
- iterations of another global batch size than the last (ramp-up).
A line that covers several iterations (--log-interval) is left out where any of them is.
Other slow iterations count: they belong to the run, and a few of them do not move the median.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.errors import UsageError
from launcher.report.lines import Iteration

WARM_UP = 5
SETTLING = 20
SLOW = 1.5
CONVENTIONS = {
    "steady": "median of the steady state",
    "last10": "mean of the last 10 (Megatron-Bridge's cards: the last 10 of 50)",
    "30-45": "median of iterations 30 to 45 (Megatron-LM's MoE recipes)",
    "all": "mean of all, the first ones too (CloudAI)",
}


@dataclass(frozen=True)
class Window:
    """The iterations from which a number is computed."""

    convention: str  # in words
    counted: tuple[Iteration, ...]
    excluded: dict[int, str]  # index among the log's iterations → why
    mean: bool  # the convention takes the mean, not the median

    def middle(self, numbers: Sequence[float]) -> float | None:
        """Return the median, or the mean, of numbers; None of none."""
        if not numbers:
            return None
        return statistics.fmean(numbers) if self.mean else statistics.median(numbers)


def window(
    iterations: Sequence[Iteration],
    convention: str = "steady",
    profiled: tuple[int, int] | None = None,
) -> Window:
    """Return the iterations that count by a convention, or A-B for those of a range.

    Raises UsageError where there is no such convention.
    """
    span = re.fullmatch(r"(\d{1,9})-(\d{1,9})", convention)
    timed = [one for one in iterations if one.seconds is not None]
    if convention == "steady":
        excluded = _excluded(iterations, profiled)
        counted = tuple(
            one
            for place, one in enumerate(iterations)
            if place not in excluded and one.seconds is not None
        )
        return Window(CONVENTIONS["steady"], counted, excluded, mean=False)
    if convention == "last10":
        counted = tuple(timed[-10:])
    elif convention == "all":
        counted = tuple(timed)
    elif span:
        counted = tuple(one for one in timed if int(span[1]) <= one.number <= int(span[2]))
    else:
        raise UsageError(
            f"--window {convention!r} is no convention; allowed: {', '.join(CONVENTIONS)} or A-B, "
            "a range of iterations"
        )
    inside = set(map(id, counted))
    excluded = {
        place: "outside the window" for place, one in enumerate(iterations) if id(one) not in inside
    }
    words = CONVENTIONS.get(convention, f"median of iterations {convention}")
    return Window(words, counted, excluded, mean=convention in ("last10", "all"))


def tflops(iterations: Sequence[Iteration]) -> float | None:
    """Return the median TFLOPS/GPU of the steady state; None where the log has none."""
    speeds = [one.tflops for one in window(iterations).counted if one.tflops is not None]
    return statistics.median(speeds) if speeds else None


def _excluded(iterations: Sequence[Iteration], profiled: tuple[int, int] | None) -> dict[int, str]:
    found: dict[int, str] = {}
    batch = next((one.batch for one in reversed(iterations) if one.batch is not None), None)
    for places in _lives(iterations):
        for place in places[: _warm_up(iterations, places)]:
            found[place] = "warm-up"
        for before, place in zip([None, *places], places):
            one = iterations[place]
            first = iterations[before].number + 1 if before is not None else one.number
            if one.after:
                found.setdefault(place, f"after {' and '.join(sorted(one.after))}")
            if profiled and first <= profiled[1] and one.number >= profiled[0]:
                found.setdefault(place, "profiled")
            if one.skipped:
                found.setdefault(place, "skipped")
            if batch is not None and one.batch not in (None, batch):
                found.setdefault(place, "another batch size")
    left = [place for place in range(len(iterations)) if place not in found]
    if not left and iterations:
        # In a short run the fastest end is better than no number.
        found.pop(len(iterations) - 1)
    return found


def _lives(iterations: Sequence[Iteration]) -> list[list[int]]:
    lives: dict[int, list[int]] = {}
    for place, one in enumerate(iterations):
        lives.setdefault(one.life, []).append(place)
    return list(lives.values())


def _warm_up(iterations: Sequence[Iteration], places: Sequence[int]) -> int:
    """Return how many lines of one start are warm-up; never all of them."""
    interval = _interval(iterations, places)
    least = min(-(-WARM_UP // interval), max(1, len(places) // 2))
    settling = min(-(-SETTLING // interval), len(places) // 2)
    until = least
    for place in range(least, settling):
        later = [
            one.seconds for one in (iterations[at] for at in places[place + 1 :]) if one.seconds
        ]
        seconds = iterations[places[place]].seconds
        if later and seconds and seconds > SLOW * statistics.median(later):
            until = place + 1
    return min(until, len(places) - 1)


def _interval(iterations: Sequence[Iteration], places: Sequence[int]) -> int:
    steps = [
        iterations[after].number - iterations[before].number
        for before, after in zip(places, places[1:])
    ]
    return max(1, int(statistics.median(steps))) if steps else max(1, iterations[places[0]].number)
