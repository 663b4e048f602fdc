"""The state of a sweep: a file beside the sweep's own, with a JSON line for each event.

A line is on disk before and after each sbatch, so a sweep can be stopped at any moment.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import UsageError


class State:
    """The points that were begun, in a file that only one sweep at a time may hold.

    A point has run_dir before its submission, then job_id or refused, and ended later.
    """

    def __init__(self, path: Path) -> None:
        """Lock the file. Raises UsageError where another sweep or its last sbatch holds it."""
        try:
            self.file = path.open("a+b")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path} is in use: this sweep is running already") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be used: {error.strerror}") from None
        self.points = recorded(path)
        # A crash may leave half a line. What the line was to say had not been done yet.
        self.file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def note(self, key: str, **facts: str) -> None:
        """Write facts of a point to disk."""
        line = json.dumps({"point": key, **facts}, ensure_ascii=False) + "\n"
        try:
            self.file.write(line.encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise UsageError(f"{self.file.name} cannot be written: {error.strerror}") from None
        _apply(self.points, key, facts)


def recorded(path: Path) -> dict[str, dict[str, str]]:
    """Read a state file: facts by point. Raises UsageError for any other line."""
    points: dict[str, dict[str, str]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            facts = json.loads(line)
            key = facts.pop("point")
        except (ValueError, AttributeError, KeyError):
            raise UsageError(f"{path}:{number}: not a line of a sweep's state") from None
        _apply(points, key, facts)
    return points


def _apply(points: dict[str, dict[str, str]], key: str, facts: Mapping[str, str]) -> None:
    if "run_dir" in facts:  # a new attempt
        points[key] = {}
    points.setdefault(key, {}).update(facts)
