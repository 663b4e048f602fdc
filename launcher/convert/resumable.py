"""Write files in several processes, so that an interruption at any point can be continued.

Everything goes to `TARGET.incomplete/`, beside the target and on its file system:

    plan.json       what is being made; another plan in the same folder is refused
    lock            held by the process that works on it
    records/        a JSON for each finished file: its bytes, SHA-256, and the writer's result
    files/          the target-to-be; a file has its name only once it is whole and on disk

When all files are there, the manifest is written and `files/` is renamed to the target: one step
of the file system, so a target that exists is complete. The content of a file depends on the plan
alone, so a conversion that was killed and continued equals one that was not.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launcher.convert import manifest
from launcher.convert.files import Output, Progress, disk_errors, write_text
from launcher.convert.processes import gigabytes, run
from launcher.convert.values import summary
from launcher.errors import UsageError


@dataclass(frozen=True)
class Unit:
    """One output file: the work of one process at a time."""

    file: str  # relative to the target
    size: int  # bytes of tensors, for the progress and the disk; the file is a little larger
    write: Callable[[Output], Any]  # writes it, returns what the finish needs (JSON)


def incomplete(target: Path) -> Path:
    """Return the folder in which a target is made."""
    return target.with_name(target.name + ".incomplete")


def write_all(
    target: Path,
    plan: Mapping[str, object],
    units: Sequence[Unit],
    finish: Callable[[Path, Mapping[str, dict]], None],
    workers: int,
) -> None:
    """Write all units, then `finish(folder, records)`, the manifest, and rename to the target.

    Raises UsageError where the target is not free, the disk too small, or a write fails.
    """
    folder = incomplete(target)
    if _finished(target, folder, plan):
        shutil.rmtree(folder)
        return
    _check_target(target)
    with _locked(folder):
        _same_plan(folder, plan)
        (folder / "records").mkdir(exist_ok=True)
        files = folder / "files"
        files.mkdir(exist_ok=True)
        left = [unit for unit in units if _record(folder, unit) is None]
        _check_space(folder, left)
        done = sum(unit.size for unit in units) - sum(unit.size for unit in left)
        if done:
            print(f"going on: {gigabytes(done)} were already written", file=sys.stderr)
        run(partial(_write, folder), left, lambda unit: unit.size, workers)
        records = {unit.file: _record(folder, unit) for unit in units}
        for line in summary(records.values()):
            print(f"note: {line}", file=sys.stderr)
        with disk_errors(folder):
            finish(files, records)
            manifest.write(folder, plan, records)
            # The records and the plan go with the folder's name; the lock is released after.
            if target.exists():
                target.rmdir()
            os.rename(files, target)
            _sync_folder(target.parent)
            shutil.rmtree(folder)


def _finished(target: Path, folder: Path, plan: Mapping[str, object]) -> bool:
    """Say whether a conversion stopped after the renaming and before the removal of its folder."""
    path = target / manifest.NAME
    if not folder.exists() or (folder / "files").exists() or not path.exists():
        return False
    made = json.loads(path.read_text(encoding="utf-8"))["made"]
    return made == json.loads(json.dumps(plan))


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"TARGET_CKPT_PATH={str(target)!r} is no folder")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"TARGET_CKPT_PATH={str(target)!r} is not empty; nothing was changed")
    if target.is_mount():
        raise UsageError(
            f"TARGET_CKPT_PATH={str(target)!r} is a mount point; name a folder inside it"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with lock:
        # The workers of one that was just killed may live a moment longer.
        for attempt in range(30):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 29:
                    raise UsageError(f"another conversion is writing to {folder}") from None
                time.sleep(0.1)
        yield


def _same_plan(folder: Path, plan: Mapping[str, object]) -> None:
    """Write the plan, or raise UsageError where the folder was begun with another plan."""
    path = folder / "plan.json"
    text = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    if not path.exists():
        with disk_errors(folder):
            write_text(path, text)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(text)
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise UsageError(
            f"{folder} was begun with another {', '.join(changed)}; remove it to start over"
        )


def _record_path(folder: Path, unit: Unit) -> Path:
    return folder / "records" / (unit.file.replace("/", "+") + ".json")


def _record(folder: Path, unit: Unit) -> dict | None:
    """Return the record of a finished file; None where the file is not complete."""
    path = _record_path(folder, unit)
    file = folder / "files" / unit.file
    if not path.exists() or not file.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return record if file.stat().st_size == record["bytes"] else None


def _check_space(folder: Path, units: Sequence[Unit]) -> None:
    need = sum(unit.size for unit in units)
    need += need // 100 + (64 << 20)  # names, alignment, metadata
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UsageError(
            f"{folder.parent} has {gigabytes(free)} free, the conversion needs {gigabytes(need)}"
        )


def _write(folder: Path, unit: Unit, progress: Progress) -> None:
    """Write a file and its record."""
    path = folder / "files" / unit.file
    part = folder / (unit.file.replace("/", "+") + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        output = Output(part, progress)
        details = unit.write(output)
        sha256 = output.close()
        os.rename(part, path)
        record = {"bytes": output.bytes, "sha256": sha256, "details": details}
        write_text(_record_path(folder, unit), json.dumps(record))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
