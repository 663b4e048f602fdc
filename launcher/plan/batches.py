"""Global batches that change over a run: --rampup-batch-size and --step-batch-size-schedule.

Sources: RampupBatchsizeNumMicroBatchesCalculator (up to 0.17) and
StepBatchsizeNumMicroBatchesCalculator (from 0.18 on), core/num_microbatches_calculator.py.
"""

from __future__ import annotations

import re

from launcher.config.arguments import Arguments, shortened, value, whole_number
from launcher.config.releases import index
from launcher.records import dataclass

RAMPUP = "--rampup-batch-size"
SCHEDULE = "--step-batch-size-schedule"
MOST_STEPS = 10_000
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Step:
    """A global batch that holds from a number of samples on."""

    samples: int
    batch: int  # sequences


def ignored(release: str) -> bool:
    """Say whether a release accepts --rampup-batch-size without any effect."""
    return index(release) >= index("0.18")


def steps(arguments: Arguments, final: int, sequence: int, release: str) -> tuple[Step, ...]:
    """Return the global batches of a run, one that never changes included.

    `final` is --global-batch-size, and `sequence` is the tokens of one sequence. Raises ValueError
    for a schedule that Megatron cannot read.
    """
    if SCHEDULE in arguments:
        return _schedule(value(arguments, SCHEDULE) or "", sequence)
    if RAMPUP in arguments and not ignored(release):
        return _rampup(arguments, final)
    return (Step(0, final),)


def _rampup(arguments: Arguments, final: int) -> tuple[Step, ...]:
    given = arguments[RAMPUP].values
    if len(given) != 3:
        raise ValueError(f"{RAMPUP} takes a start, an increment and a number of samples")
    start, increment, samples = map(whole_number, given)
    if start < 1 or increment < 1 or samples < 0:
        raise ValueError(f"{RAMPUP} {' '.join(given)}: a batch or an increment is below 1")
    if start >= final:
        raise ValueError(
            f"{RAMPUP} starts with {start}, which is not below --global-batch-size {final}"
        )
    count, rest = divmod(final - start, increment)
    if rest:
        raise ValueError(f"{RAMPUP}: {final - start} sequences are no multiple of {increment}")
    if count > MOST_STEPS:
        raise ValueError(f"{RAMPUP} has more than {MOST_STEPS:,} steps")
    return tuple(Step(n * samples // count, start + n * increment) for n in range(count + 1))


def _schedule(text: str, sequence: int) -> tuple[Step, ...]:
    """Read 'THRESHOLD:BATCH …', thresholds in tokens, with K, M, B or T."""
    found = []
    for entry in text.replace(",", " ").split()[: MOST_STEPS + 1]:
        threshold, colon, batch = entry.partition(":")
        if not colon:
            raise ValueError(f"{SCHEDULE}: {shortened(entry)!r} is no THRESHOLD:BATCH")
        found.append(Step(_number(threshold) // sequence, _number(batch)))
    found.sort(key=lambda step: step.samples)
    if not found or found[0].samples != 0:
        raise ValueError(f"{SCHEDULE} has no entry for the start, 0:BATCH")
    if len(found) > MOST_STEPS:
        raise ValueError(f"{SCHEDULE} has more than {MOST_STEPS:,} steps")
    if any(one.samples == other.samples for one, other in zip(found, found[1:])):
        raise ValueError(f"{SCHEDULE} has two batches for the same sample")
    if any(step.batch < 1 for step in found):
        raise ValueError(f"{SCHEDULE} has a batch below 1")
    return tuple(found)


def _number(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)([KMBT]?)", text.strip().upper())
    if match is None:
        raise ValueError(f"{SCHEDULE}: {shortened(text)!r} is no number such as 250B")
    return int(float(match[1]) * _UNITS[match[2]])
