"""`moe-zoo logs`: the end of a run's log, and what is added to it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.desk import condition, runs
from launcher.desk.runs import Run
from launcher.errors import UsageError

LINES = 40
BLOCK = 1 << 16


def logs(words: Sequence[str]) -> int:
    """Print the last lines of a run's log; with -f go on until the run is over."""
    following, count, names = _read(words)
    run = runs.named(names[0], os.environ) if names else runs.newest(os.environ)
    log = run.path / "log"
    if not log.exists() and not following:
        now = condition.of(run, runs.asked())
        raise UsageError(f"{run.path.name} has no log yet: {now.state} {now.reason}".rstrip())
    print(f"==> {log} <==", file=sys.stderr)
    if not following:
        _write(_end(log, count))
        return 0
    for text in _growing(run, count):
        _write(text)
    print(f"==> {condition.of(run, runs.asked()).state} <==", file=sys.stderr)
    return 0


def _read(words: Sequence[str]) -> tuple[bool, int, list[str]]:
    """Return whether to follow, how many lines, and the run's name."""
    following, count, names, left = False, LINES, [], list(words)
    while left:
        word = left.pop(0)
        if word in ("-f", "--follow"):
            following = True
        elif word == "-n" or word.startswith("--lines="):
            text = word.partition("=")[2] if "=" in word else (left.pop(0) if left else "")
            if not text.isdigit() or not 0 < int(text) < 10**9:
                raise UsageError(f"logs: -n {text!r} is no number of lines above 0")
            count = int(text)
        elif word.startswith("-"):
            raise UsageError(f"logs: unknown option {word!r}; known: -f, -n LINES")
        else:
            names.append(word)
    if len(names) > 1:
        raise UsageError(f"logs shows one run at a time; given: {', '.join(names)}")
    return following, count, names


def _end(log: Path, count: int) -> bytes:
    """Return a file's last lines."""
    with log.open("rb") as file:
        place, text = file.seek(0, 2), b""
        while place and text.count(b"\n") <= count:
            size = min(BLOCK, place)
            place -= size
            file.seek(place)
            text = file.read(size) + text
    return b"".join(text.splitlines(keepends=True)[-count:])


def _growing(run: Run, count: int) -> Iterator[bytes]:
    """Yield the end of a log and what is added, through the run's later jobs, to its end."""
    log, shown, place = run.path / "log", None, 0
    while True:
        live = condition.of(runs.read(run.path), runs.asked()).live  # before the last lines
        for _ in range(5 if live else 1):
            if log.exists():
                target = log.resolve()
                if target != shown:
                    end = _end(target, count) if shown is None else b""
                    place = target.stat().st_size if shown is None else 0
                    shown = target
                    yield end
                with target.open("rb") as file:
                    file.seek(place)
                    while text := file.read(BLOCK):
                        place += len(text)
                        yield text
            if live:
                time.sleep(1)
        if not live:
            return


def _write(text: bytes) -> None:
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
