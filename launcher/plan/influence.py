"""The influence of each Megatron flag on the plan: modelled, none, or not modelled.

influence.csv has a line for each flag of every catalogue. A flag whose values differ in influence
has several lines, of which the first that fits counts. `spoils` names the numbers that become wrong
by a flag that is not modelled: `memory`, or `parameters` and everything computed from them.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from pathlib import Path

from launcher.config.arguments import Arguments
from launcher.plan import Finding
from launcher.records import dataclass

DATA = Path(__file__).parent / "influence.csv"
MODELLED, NONE, UNMODELLED = "modelled", "none", "unmodelled"
# The numbers that depend on this one.
SPOILED = {
    "memory": frozenset({"memory"}),
    "parameters": frozenset({"parameters", "memory", "FLOPs"}),
}


@dataclass(frozen=True)
class Influence:
    """One line of the table."""

    influence: str  # MODELLED, NONE or UNMODELLED
    values: tuple[str, ...]  # the values that this line is about; empty: all others
    spoils: str  # a key of SPOILED, of UNMODELLED
    why: str  # the module that models it, or the reason why none has to


def table() -> Mapping[str, tuple[Influence, ...]]:
    """Return the lines of every flag."""
    return {flag: lines(flag) for flag in _texts()}


@functools.cache
def lines(flag: str) -> tuple[Influence, ...]:
    """Return the lines of one flag; none for a flag that the table lacks."""
    rows = csv.reader(_texts().get(flag, []))
    return tuple(
        Influence(influence, tuple(values.split()), spoils, why)
        for _, influence, values, spoils, why in rows
    )


@functools.cache
def _texts() -> Mapping[str, list[str]]:
    """Return the file's lines by flag, unread: a job has a tenth of the flags."""
    found: dict[str, list[str]] = {}
    for text in DATA.read_text(encoding="utf-8").splitlines()[1:]:
        found.setdefault(text.partition(",")[0], []).append(text)
    return found


def of(flag: str, values: tuple[str, ...]) -> Influence | None:
    """Return the influence of a flag with these values; None for a flag that the table lacks."""
    for line in lines(flag):
        if not line.values or set(values) & set(line.values):
            return line
    return None


def unknown(arguments: Arguments) -> tuple[frozenset[str], list[Finding]]:
    """Return the numbers that a plan cannot know, and a line for each flag that is a reason."""
    spoiled: set[str] = set()
    found = []
    for flag, argument in arguments.items():
        line = of(flag, argument.values)
        if line is None or line.influence != UNMODELLED:
            continue
        wrong = SPOILED[line.spoils]
        spoiled |= wrong
        numbers = "parameters, memory and FLOPs" if len(wrong) > 1 else "memory"
        written = " ".join((flag, *argument.values)) if len(lines(flag)) > 1 else flag
        found.append(
            Finding(
                "warning",
                f"{written} ({argument.origin}) is not modelled ({line.why}): no {numbers} here",
                "influence",
            )
        )
    return frozenset(spoiled), found
