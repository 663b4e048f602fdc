"""Why a job failed: the fatal traceback of its log, found without holding the log in memory."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import BinaryIO

from launcher.report import lines

BLOCK = 1 << 22
TRACEBACK = b"Traceback (most recent call last)"
SHOWN = 30  # lines
TAIL = 20  # lines, where there is no traceback
SPAN = 1 << 17  # bytes of one traceback, other tasks' lines between its own
EACH = 16  # tracebacks of a task
SOURCES = 1 << 12  # tasks whose tracebacks are told apart
# Exceptions of a task that only follow from another task's failure.
_CONSEQUENCE = re.compile(
    r"ChildFailedError|DistBackendError|DistNetworkError|DistStoreError|RendezvousClosed"
    r"|Connection (?:closed|reset) by peer|Broken pipe|NCCL communicator was aborted"
    r"|ncclRemoteError|Watchdog caught collective|SignalException|KeyboardInterrupt|SIGTERM"
    r"|gloo/transport|process group has been (?:aborted|destroyed)",
)
_CHAINED = ("During handling of the above", "The above exception was the direct cause")


def last_words(path: Path) -> str:
    """Return the traceback that ended a run, or the end of its log.

    It is the last traceback of the task that failed first. Tracebacks that the job survived do not
    count, nor do those of tasks that failed because another task had ended.
    """
    if not path.exists():
        return f"there is no log {path}: the job did not start"
    with path.open("rb") as file:
        places = _places(file)
        lasts = [_block(file, each[-1]) for each in sorted(places.values(), key=max)]
        first = next((block for block in lasts if not _consequence(block)), None)
        if first is None:
            # Without labels, torchrun's own traceback comes after those of the ranks.
            earlier = (_block(file, place) for place in reversed(places.get("", [])))
            first = next((block for block in earlier if not _consequence(block)), None)
        if first or lasts:
            return "\n".join(_shortened(first or lasts[0]))
        file.seek(max(0, file.seek(0, 2) - SPAN))
        end = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines.plain(line)[:2000] for line in end[-TAIL:])


def _places(file: BinaryIO) -> dict[str, deque[int]]:
    """Return where each task's last tracebacks begin."""
    places: dict[str, deque[int]] = {}
    offset, rest = 0, b""
    while block := file.read(BLOCK):
        text = rest + block
        place = text.find(TRACEBACK)
        while place >= 0:
            start = text.rfind(b"\n", 0, place) + 1
            before = text[max(0, start - 300) : start].decode(errors="replace").splitlines()
            line = lines.plain(text[start:place].decode(errors="replace"))
            # Python may print more tracebacks while it cleans up after the fatal one.
            ignored = before and "Exception ignored in" in before[-1]
            chained = any(word in text for text in before[-3:] for word in _CHAINED)
            source = lines.label(line)
            known = source in places
            if not ignored and not (chained and known) and (known or len(places) < SOURCES):
                own = places.setdefault(source, deque(maxlen=EACH))
                own.append(offset - len(rest) + start)
            place = text.find(TRACEBACK, place + len(TRACEBACK))
        offset += len(block)
        rest = text[-1000:] if len(text) > 1000 else text
    return places


def _block(file: BinaryIO, place: int) -> list[str]:
    """Return the traceback that begins at `place`: its task's lines up to the exception's."""
    file.seek(place)
    text = file.read(SPAN).decode(errors="replace").splitlines()
    if not text:
        return []
    source = lines.label(lines.plain(text[0]))
    block: list[str] = []
    inside, ended, chained = False, False, False
    for raw in text:
        line = lines.plain(raw)[:2000]
        if lines.label(line) != source:
            continue
        line = lines.unlabelled(line, source)
        bare = line.lstrip() if not source else line.strip(" ")
        if "Traceback (most recent call last)" in line:
            if ended and not chained:
                break
            inside, ended, chained = True, False, False
        elif ended and any(word in line for word in _CHAINED):
            chained = True
        elif ended and bare:
            break
        elif inside and bare and not line.lstrip("\t").startswith(("  ", " File")):
            # The exception's line, and what of its message follows.
            ended = bool(re.match(r"\s?[\w.]+(?:Error|Exception|Interrupt|Exit|\w*)\b", line))
        block.append(line)
    return block


def _consequence(block: list[str]) -> bool:
    """Say whether a task failed because another had."""
    return any(_CONSEQUENCE.search(line) for line in block[-6:])


def _shortened(block: list[str]) -> list[str]:
    """Return at most SHOWN lines; the exception, at the end, always."""
    while block and not block[-1].strip():
        block = block[:-1]
    if len(block) <= SHOWN:
        return block
    return [*block[:6], f"  … {len(block) - SHOWN + 1} lines …", *block[-(SHOWN - 7) :]]
