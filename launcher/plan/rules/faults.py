"""Faults of releases that nobody sees at the start: wrong numbers, late crashes, hangs.

faults.csv has a line for each, from Megatron-LM's history: the pull request and the commit on main
that fixed it; the first release with the faulty code, of those that we know; the first release that
has the fix (empty: none yet); whether the dev branch of August 2026 (d48bd6be0a) is free of it; and
when it strikes, read off the commit's change. `when` is words that all hold: `--flag`, `!--flag`,
`--flag=value`, `--flag>1`, or a size such as `TP>1` and `ETP!=TP`.
"""

from __future__ import annotations

import csv
import functools
import operator
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from launcher.config.releases import index
from launcher.plan.rules.case import Case, Unreadable

DATA = Path(__file__).parents[1] / "faults.csv"


class Fault(NamedTuple):
    """One line of faults.csv."""

    request: str  # number of the pull request in NVIDIA/Megatron-LM
    commit: str
    since: str
    fixed: str
    dev: str  # yes or no
    when: str
    what: str

    def is_in(self, release: str) -> bool:
        """Say whether the release has the fault."""
        if release == "dev":
            return self.dev == "no"
        begun = index(release) >= index(self.since)
        return begun and (not self.fixed or index(release) < index(self.fixed))


@functools.cache
def known() -> tuple[Fault, ...]:
    """Return all known faults."""
    with DATA.open(encoding="utf-8", newline="") as file:
        return tuple(Fault(**row) for row in csv.DictReader(file))


_SIZES: dict[str, Callable[[Case], int]] = {
    "TP": lambda case: case.tensor,
    "PP": lambda case: case.pipeline,
    "CP": lambda case: case.context,
    "EP": lambda case: case.expert,
    "ETP": lambda case: case.expert_tensor,
    "EDP": lambda case: case.expert_data,
    "MBS": lambda case: case.size("--micro-batch-size"),
    "MTP": lambda case: case.mtp,
    "KV": lambda case: case.size("--num-query-groups"),
}
_COMPARE = {"=": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt}


def holds(word: str, case: Case) -> bool:
    """Say whether one word of `when` holds for a job. Raises Unreadable."""
    if word.startswith("!"):
        return not case.has(word[1:])
    match = re.fullmatch(r"(--[\w-]+|[A-Z]+)(?:(!=|[=<>])(\w+))?", word)
    if match is None:
        raise ValueError(f"{word!r} is no condition")
    left, sign, right = match.groups()
    if sign is None:
        return _used(case, left)
    if left.startswith("--") and not right.isdecimal():
        return right in case.words(left)
    number = case.size(left) if left.startswith("--") else _SIZES[left](case)
    other = int(right) if right.isdecimal() else _SIZES[right](case)
    return _COMPARE[sign](number, other)


def _used(case: Case, flag: str) -> bool:
    """Say whether a flag is given, and not as a number that switches it off."""
    if not case.has(flag):
        return False
    try:
        return case.real(flag) != 0
    except Unreadable:
        return True


def known_faults(case: Case) -> Iterator[str]:
    """Pull requests of Megatron-LM that the job's release does not have."""
    for fault in known():
        words = fault.when.split()
        if not fault.is_in(case.release) or not all(_holds(word, case) for word in words):
            continue
        cure = f"fixed in {fault.fixed}" if fault.fixed else "fixed in no release yet"
        strikes = " ".join(word for word in words if not word.startswith("!"))
        yield (
            f"{_release(case)} has a known fault with {strikes}: {fault.what} "
            f"({cure}: NVIDIA/Megatron-LM#{fault.request}, {fault.commit})"
        )


def _holds(word: str, case: Case) -> bool:
    try:
        return holds(word, case)
    except Unreadable:
        return False


def _release(case: Case) -> str:
    return "Megatron's dev branch" if case.release == "dev" else f"Megatron-Core {case.release}"


ERRORS = ()
RUN_TIME = ()
WARNINGS = (known_faults,)
