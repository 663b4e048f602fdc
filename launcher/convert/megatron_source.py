"""Find a Megatron checkpoint: the folder of one iteration, however the user named it.

A source may be what --save wrote, with its tracker or without; or one iteration's folder in it.
Sources: get_checkpoint_name, save_checkpoint (megatron/training/checkpointing.py); an asynchronous
save writes the tensors first and .metadata, metadata.json and the tracker when they are on disk.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from launcher.convert import legacy, torch_dist
from launcher.errors import UsageError

TRACKER = "latest_checkpointed_iteration.txt"
_ITERATION = re.compile(r"release|iter_\d+")


@dataclass(frozen=True)
class Checkpoint:
    """One iteration of a Megatron checkpoint."""

    folder: Path
    form: str  # torch_dist or legacy

    @property
    def mtp(self) -> int:
        """The number of its layers of multi-token prediction."""
        names = (torch_dist if self.form == "torch_dist" else legacy).names_in(self.folder)
        found = (re.match(r"mtp\.layers\.(\d+)\.", name) for name in names)
        return max((int(one[1]) + 1 for one in found if one), default=0)


def is_megatron(source: Path) -> bool:
    """Say whether a folder is a Megatron checkpoint, whole or not, and no published model."""
    return (
        (source / TRACKER).exists()
        or _kind(source) is not None
        or _started(source)
        or bool(_iterations(source))
    )


def find(source: Path) -> Checkpoint:
    """Return the iteration that a source names. Raises UsageError where none is complete."""
    if _kind(source) or _started(source):
        return _whole(source)
    tracker = source / TRACKER
    iterations = _iterations(source)
    if tracker.is_file():
        named = tracker.read_text(encoding="utf-8").strip()
        if named != "release" and not named.isdigit():
            raise UsageError(f"{tracker} says {named!r}, neither a number nor release")
        folder = source / (named if named == "release" else f"iter_{int(named):07d}")
        if not folder.is_dir():
            there = ", ".join(one.name for one in iterations) or "no iteration"
            raise UsageError(f"{tracker} names {folder.name}, which is not there; {there} is")
        return _whole(folder)
    whole = [one for one in iterations if _kind(one)]
    if len(whole) == 1:
        return _whole(whole[0])
    if whole:
        names = ", ".join(one.name for one in whole)
        raise UsageError(
            f"{source} has no {TRACKER} and several iterations: name the folder of one of {names}"
        )
    if iterations:
        return _whole(iterations[-1])  # raises a UsageError that names the missing part
    raise UsageError(f"{source} has neither {TRACKER} nor an iteration's folder")


def _iterations(source: Path) -> list[Path]:
    """Return the folders of iterations, oldest first."""
    return sorted(
        one for one in source.glob("*") if one.is_dir() and _ITERATION.fullmatch(one.name)
    )


def _kind(folder: Path) -> str | None:
    """Return the format of an iteration's folder if it is finished."""
    if (folder / "metadata.json").is_file() and (folder / ".metadata").is_file():
        return "torch_dist"
    if any(folder.glob(f"mp_rank_*/{legacy.FILE}")):
        return "legacy"
    return None


def _started(folder: Path) -> bool:
    """Say whether a folder has some file of an iteration."""
    parts = ("*.distcp", "mp_rank_*", "metadata.json", ".metadata")
    return any(any(folder.glob(part)) for part in parts)


def _whole(folder: Path) -> Checkpoint:
    """Return the checkpoint in an iteration's folder. Raises UsageError that says what it lacks."""
    kind = _kind(folder)
    if kind == "torch_dist":
        backend = _backend(folder / "metadata.json")
        if backend != "torch_dist":
            raise UsageError(
                f"{folder} is a {backend} checkpoint; torch_dist and legacy are read. "
                "Megatron's --ckpt-convert-format torch_dist makes one of it"
            )
    if kind:
        return Checkpoint(folder, kind)
    tensors = len(list(folder.glob("*.distcp")))
    if (folder / ".metadata").is_file():
        raise UsageError(
            f"{folder} has no metadata.json: it is PyTorch's own distributed checkpoint "
            "(torch_dcp), or a copy that is not whole; torch_dist and legacy are read"
        )
    others = [one.name for one in _iterations(folder.parent) if _kind(one)]
    instead = f"; finished there: {', '.join(others)}" if others else ""
    if tensors or (folder / "metadata.json").is_file():
        raise UsageError(
            f"{folder} was not finished: {tensors} *.distcp files and no .metadata, which a save "
            f"writes last{instead}"
        )
    if any(folder.glob("mp_rank_*")):
        raise UsageError(
            f"{folder} was not finished: no mp_rank_* folder has {legacy.FILE}{instead}"
        )
    raise UsageError(
        f"{folder} has neither metadata.json (torch_dist) nor mp_rank_* (legacy){instead}"
    )


def _backend(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sharded_backend"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged: it names no sharded_backend") from None
