"""The Bash layers of a sweep's points: sourced once for all points that they cannot tell apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Union

from launcher.config import bash_layers
from launcher.config.settings import by_layer
from launcher.errors import UsageError
from launcher.sweep.grid import Grid, Point

Sourced = Union[tuple[dict[str, str], list[str]], UsageError]  # environment and words, or the error
# These choose the layers' files or rows, whatever the texts say.
_CHOOSING = {"MODEL", "CLUSTER", "MODEL_NAME", "WORKSPACE"}
# With these a text may read any variable, or any word of the command line.
_ANY_VARIABLE = re.compile(
    r"\$\{!|\b(eval|compgen|env|declare|python3?)\b|^\s*(source|\.)\s", re.MULTILINE
)
_ANY_WORD = re.compile(r"\$[1-9#*]|\$\{[1-9#@*]|\bshift\b|\bgetopts\b")


def of_points(
    read: Grid, points: Sequence[Point], words: Sequence[str], environ: Mapping[str, str]
) -> list[Sourced]:
    """Return each point's environment and words, as the layers leave them."""
    given = [_given(point, environ) for point in points]
    known = _names(read, [*points[0].words, *words], {**environ, **given[0]}) if points else None
    keys = []
    for point, variables in zip(points, given):
        seen = variables if known is None else {n: v for n, v in variables.items() if n in known}
        keys.append((tuple(seen.items()), point.words if _reads_words(read) else ()))

    def source(key: tuple[tuple[tuple[str, str], ...], tuple[str, ...]]) -> Sourced:
        variables, flags = key
        try:
            return bash_layers.source(read.script, [*flags, *words], {**environ, **dict(variables)})
        except UsageError as error:
            return error

    distinct = list(dict.fromkeys(keys))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sourced = dict(zip(distinct, pool.map(source, distinct)))
    return [
        _for_point(sourced[key], _unread(variables, key[0]), () if key[1] else point.words, words)
        for key, variables, point in zip(keys, given, points)
    ]


def _given(point: Point, environ: Mapping[str, str]) -> dict[str, str]:
    """Return a point's variables; the environment wins over the file's fixed values."""
    return {name: text for name, text in point.variables.items() if not environ.get(name)}


def _unread(variables: Mapping[str, str], seen: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that the layers were not given, because none of them names these."""
    given = {name for name, _ in seen}
    return {name: text for name, text in variables.items() if name not in given}


def _for_point(
    sourced: Sourced, unread: Mapping[str, str], flags: Sequence[str], words: Sequence[str]
) -> Sourced:
    """Return what the layers left, with the variables and flags that they did not read."""
    if isinstance(sourced, UsageError):
        return sourced
    left, all_words = sourced
    before = all_words[: len(all_words) - len(words)]
    return {**left, **unread}, [*before, *flags, *all_words[len(before) :]]


def _names(read: Grid, words: Sequence[str], environ: Mapping[str, str]) -> set[str] | None:
    """Return the names that the layers' texts have; None where they may read any variable."""
    try:
        left, _ = bash_layers.source(read.script, words, environ)
    except UsageError:
        return None
    files = [Path(bash_layers.ROOT, layer) for layer in by_layer(left)]
    if read.script != bash_layers.ENTRY:
        files.append(read.script)
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    text = re.sub(r"(?m)(^|\s)#.*", "", text)
    if _ANY_VARIABLE.search(text):
        return None
    return {*re.findall(r"[A-Za-z_]\w*", text), *_CHOOSING}


def _reads_words(read: Grid) -> bool:
    """Say whether a recipe may look at its words; the entry point hands Megatron's on."""
    if read.script == bash_layers.ENTRY:
        return False
    text = read.script.read_text(encoding="utf-8", errors="replace")
    return text.count("$@") != 1 or bool(_ANY_WORD.search(text))
