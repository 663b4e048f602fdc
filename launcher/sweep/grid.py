"""The points of a sweep, from a YAML file.

recipe: best_practice/…/run_….sh    # what is launched; without it, sbatch_benchmarking.sh
in_flight: 4                        # jobs that wait or run at once
variables: {NAME: value}            # a list is an axis of the grid, any other value is fixed
arguments: {--flag: value}          # the same for flags; an axis may hold lists, true, false
exclude: [{NAME: value}]            # leaves out points with all of these values (a list: any)
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import yaml

from launcher.config import bash_layers, misspelt, plain_yaml
from launcher.config.arguments import quote
from launcher.errors import UsageError, did_you_mean
from launcher.secrets import SECRETS, is_secret

KEYS = ("recipe", "in_flight", "variables", "arguments", "exclude")
IN_FLIGHT = 4
STDIN = Path("/dev/stdin")
POINTS = 10_000  # more is a mistake, not a sweep
# Variables of a single launch, and secrets, which no file may hold.
NOT_HERE = (*SECRETS, "DRY_RUN", "WAIT", "EXPLAIN", "TIMESTAMP", "WORKSPACE", "MODEL_NAME")
Given = Optional[tuple[str, ...]]  # the words of a value; None: a flag that is left out


@dataclass(frozen=True)
class Point:
    """One combination."""

    values: Mapping[str, Given]  # by axis; they identify the point
    variables: Mapping[str, str]
    words: tuple[str, ...]  # Megatron arguments

    @property
    def key(self) -> str:
        """The point's identity, in this file and in its later versions."""
        return json.dumps(self.values, sort_keys=True, ensure_ascii=False)

    @property
    def label(self) -> str:
        """The point as a reader sees it."""
        words = [
            f"{name}={quote(' '.join(given))}" if given else name
            for name, given in self.values.items()
            if given is not None
        ]
        return " ".join(words) or "-"


@dataclass(frozen=True)
class Grid:
    """A sweep's file, read."""

    path: Path
    script: Path
    in_flight: int
    axes: Mapping[str, tuple[Given, ...]]
    fixed: Mapping[str, Given]
    exclude: tuple[Mapping[str, tuple[Given, ...]], ...]
    doubts: tuple[str, ...] = ()  # variables that no program may read

    def points(self) -> list[Point]:
        """Return the combinations that are not excluded, the last axis running fastest."""
        combined = (
            dict(zip(self.axes, values)) for values in itertools.product(*self.axes.values())
        )
        return [self._point(values) for values in combined if not self._excluded(values)]

    def _point(self, values: Mapping[str, Given]) -> Point:
        given = {**self.fixed, **values}
        variables = {
            name: words[0] for name, words in given.items() if words and not _is_flag(name)
        }
        flags = [
            (name, *words) for name, words in given.items() if _is_flag(name) and words is not None
        ]
        return Point(values, variables, tuple(itertools.chain(*flags)))

    def _excluded(self, values: Mapping[str, Given]) -> bool:
        return any(
            all(values[name] in these for name, these in rule.items()) for rule in self.exclude
        )


def read(path: Path) -> Grid:
    """Read a sweep's file. Raises UsageError with file and line for anything unexpected."""
    if not os.path.isfile(path) and not (path == STDIN and os.access(path, os.R_OK)):
        raise UsageError(f"{str(path)!r}: there is no such file")
    shown = "the standard input" if path == STDIN else str(path)
    sections = plain_yaml.sections(path, shown, KEYS)
    axes: dict[str, tuple[Given, ...]] = {}
    fixed: dict[str, Given] = {}
    doubts: list[str] = []
    for section in ("variables", "arguments"):
        for name, node, where in _named(sections.get(section, (None, ""))[0], shown, section):
            if section == "variables":
                doubts += misspelt.unknown([name], where, "only a config that reads it will")
            if isinstance(node, yaml.SequenceNode):
                axes[name] = _alternatives(name, node, where)
            else:
                fixed[name] = _given(name, node, where)
    count = math.prod(map(len, axes.values()))
    if count > POINTS:
        raise UsageError(f"{shown}: {count:,} points are more than {POINTS:,}")
    return Grid(
        path,
        _script(path, *sections.get("recipe", (None, ""))),
        _in_flight(*sections.get("in_flight", (None, ""))),
        axes,
        fixed,
        _exclude(*sections.get("exclude", (None, "")), shown, axes),
        tuple(doubts),
    )


def _is_flag(name: str) -> bool:
    return name.startswith("--")


def _named(node: yaml.Node | None, shown: str, section: str) -> list[tuple[str, yaml.Node, str]]:
    """Return name, value and place of each entry, the names checked."""
    found = plain_yaml.named(node, shown, section, section == "arguments")
    for name, _, where in found:
        if name in NOT_HERE or is_secret(name):
            raise UsageError(f"{where}: {name} cannot be in a sweep: set it in the environment")
    return found


def _alternatives(name: str, node: yaml.SequenceNode, where: str) -> tuple[Given, ...]:
    found = tuple(_given(name, child, where) for child in node.value)
    if not found:
        raise UsageError(f"{where}: {name} has no values")
    if len(set(found)) < len(found):
        raise UsageError(f"{where}: {name} has the same value twice")
    return found


def _given(name: str, node: yaml.Node, where: str) -> Given:
    """Return a value's words: one for a variable, any number for a flag, None to leave it out."""
    read = plain_yaml.value(node, where)
    if _is_flag(name):
        return (
            read
            if isinstance(read, tuple)
            else {True: (), False: None, None: None}.get(read, (read,))
        )
    if isinstance(read, tuple):
        raise UsageError(
            f"{where}: {name} is a variable, so each of its values is one word, not a list"
        )
    return ("" if read is None else node.value,)


def _script(path: Path, node: yaml.Node | None, where: str) -> Path:
    if node is None:
        return bash_layers.ENTRY
    name = str(plain_yaml.value(node, where))
    for folder in (path.parent, bash_layers.ROOT):
        if os.path.isfile(folder / name):
            return folder / name
    raise UsageError(f"{where}: recipe: {name}: there is no such file")


def _in_flight(node: yaml.Node | None, where: str) -> int:
    if node is None:
        return IN_FLIGHT
    text = plain_yaml.value(node, where)
    if not isinstance(text, str) or not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise UsageError(f"{where}: in_flight={text!r} is not allowed: integer ≥ 1")
    return int(text)


def _exclude(
    node: yaml.Node | None, where: str, shown: str, axes: Mapping[str, tuple[Given, ...]]
) -> tuple[Mapping[str, tuple[Given, ...]], ...]:
    if node is None:
        return ()
    if not isinstance(node, yaml.SequenceNode):
        raise UsageError(f"{where}: exclude must be a list of maps: - {{TP: 2, VPP: 4}}")
    rules = []
    for child in node.value:
        rule: dict[str, tuple[Given, ...]] = {}
        for key, value in plain_yaml.pairs(child, shown, "an entry of exclude"):
            name, where = str(key.value), f"{shown}:{key.start_mark.line + 1}"
            if name not in axes:
                hint = did_you_mean(name, axes)
                raise UsageError(f"{where}: {name} is no axis; axes: {', '.join(axes)}.{hint}")
            these = value.value if isinstance(value, yaml.SequenceNode) else [value]
            rule[name] = tuple(_given(name, each, where) for each in these)
            for each in rule[name]:
                if each not in axes[name]:
                    raise UsageError(
                        f"{where}: {name} never has the value {' '.join(each or ('false',))!r}"
                    )
        if rule:
            rules.append(rule)
    return tuple(rules)
