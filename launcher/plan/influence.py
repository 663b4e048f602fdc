"""What each Megatron flag does to the plan: modelled, without influence, or not modelled.

influence.csv has a line for each flag of every catalogue; of a flag whose values differ, a line
for each kind of value, the first that fits counting. `spoils` names what is wrong by a flag that is
not modelled: `memory`, or `parameters` and with them everything that is computed from them.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.config.arguments import Arguments
from launcher.plan import Finding

DATA = Path(__file__).parent / "influence.csv"
MODELLED, NONE, UNMODELLED = "modelled", "none", "unmodelled"
# What is wrong where this is.
SPOILED = {
    "memory": frozenset({"memory"}),
    "parameters": frozenset({"parameters", "memory", "FLOPs"}),
}


@dataclass(frozen=True)
class Influence:
    """One line of the table."""

    influence: str  # MODELLED, NONE or UNMODELLED
    values: tuple[str, ...]  # of which this holds; none: of all others
    spoils: str  # a key of SPOILED, of UNMODELLED
    why: str  # by what it is modelled, or why it need not be


@functools.cache
def table() -> Mapping[str, tuple[Influence, ...]]:
    """Return the lines of every flag."""
    found: dict[str, tuple[Influence, ...]] = {}
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for flag, influence, values, spoils, why in rows:
            line = Influence(influence, tuple(values.split()), spoils, why)
            found[flag] = (*found.get(flag, ()), line)
    return found


def of(flag: str, values: tuple[str, ...]) -> Influence | None:
    """Return what a flag with these values does; None where the table does not know the flag."""
    for line in table().get(flag, ()):
        if not line.values or set(values) & set(line.values):
            return line
    return None


def unknown(arguments: Arguments) -> tuple[frozenset[str], list[Finding]]:
    """Return what the plan of a job cannot know, and a line for each flag that is the reason."""
    spoiled: set[str] = set()
    found = []
    for flag, argument in arguments.items():
        line = of(flag, argument.values)
        if line is None or line.influence != UNMODELLED:
            continue
        wrong = SPOILED[line.spoils]
        spoiled |= wrong
        numbers = "parameters, memory and FLOPs" if len(wrong) > 1 else "memory"
        written = " ".join((flag, *argument.values)) if len(table()[flag]) > 1 else flag
        found.append(
            Finding(
                "warning",
                f"{written} ({argument.origin}) is not modelled ({line.why}): no {numbers} here",
                "influence",
            )
        )
    return frozenset(spoiled), found
