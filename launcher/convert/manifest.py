"""The list of a finished target's files, their sizes and SHA-256, and the check against it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from launcher.convert.audit import stop
from launcher.convert.files import Progress, digest, write_text
from launcher.convert.processes import run
from launcher.errors import UsageError

NAME = "manifest.json"


def write(folder: Path, plan: Mapping[str, object], records: Mapping[str, dict]) -> None:
    """Write every file's size and SHA-256; those without a record are small and hashed here."""
    listed, files = {}, folder / "files"
    for path in sorted(files.rglob("*")):
        name = str(path.relative_to(files))
        if path.is_file() and name != NAME:
            record = records.get(name)
            listed[name] = {
                "bytes": path.stat().st_size,
                "sha256": record["sha256"] if record else digest(path),
            }
    content = {"made": plan, "files": listed}
    # It is written elsewhere and moved here, so that no half-written file is ever listed.
    write_text(folder / NAME, json.dumps(content, indent=1) + "\n")
    os.rename(folder / NAME, files / NAME)


def verify(target: Path, workers: int) -> int:
    """Compare a target with its manifest; return how many files there are. Raises UsageError."""
    path = target / NAME
    if not path.is_file():
        raise UsageError(f"{target} has no {NAME}: it is no finished conversion")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is damaged: it lists no files") from None
    there = {
        str(file.relative_to(target))
        for file in target.rglob("*")
        if file.is_file() and file != path
    }
    problems = [f"{name} is missing" for name in sorted(expected.keys() - there)]
    problems += [f"{name} is not in the manifest" for name in sorted(there - expected.keys())]
    both = [(name, *expected[name]) for name in sorted(expected.keys() & there)]
    found = run(partial(_difference, target), both, lambda one: one[1], workers)
    problems += [difference for difference in found if difference]
    stop(problems, f"{target} differs from its manifest in")
    return len(expected)


def _difference(folder: Path, expected: tuple[str, int, str], progress: Progress) -> str:
    """Return how a file differs from its record."""
    name, size, sha256 = expected
    try:
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes, not {size}"
        return "" if digest(folder / name, progress) == sha256 else f"{name} has other content"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
