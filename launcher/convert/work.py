"""Files written by several processes, so that an end at any point can be gone on from.

Everything goes to `TARGET.incomplete/`, beside the target and on its file system:

    plan.json       what is being made; another plan is refused there
    lock            held by the process that works on it
    records/        one JSON a finished file: its bytes, SHA-256, and what the writer said of it
    files/          the target-to-be; a file has its name only once it is whole and on disk

When all files are there, the manifest is written and `files/` is renamed to the target: one step
of the file system, so a target that exists is a whole one. What a file holds depends on nothing
but the plan, so a conversion that was killed and gone on with equals one that was not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from launcher.convert.audit import stop
from launcher.convert.files import Output, Progress, digest
from launcher.errors import UsageError

MANIFEST = "manifest.json"

Item, Found = TypeVar("Item"), TypeVar("Found")


@dataclass(frozen=True)
class Unit:
    """One output file: the work of one process at a time."""

    file: str  # relative to the target
    size: int  # bytes of tensors, for the progress and the disk; the file is a little larger
    write: Callable[[Output], Any]  # writes it, returns what the finish needs (JSON)


def incomplete(target: Path) -> Path:
    """Return the folder in which a target is made."""
    return target.with_name(target.name + ".incomplete")


def run(
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
            print(f"going on: {_gigabytes(done)} were already written", file=sys.stderr)
        _in_processes(partial(_write, folder), left, lambda unit: unit.size, workers)
        records = {unit.file: _record(folder, unit) for unit in units}
        with _disk_errors(folder):
            finish(files, records)
            _write_manifest(folder, plan, records)
            # The records and the plan go with the folder's name; the lock is released after.
            if target.exists():
                target.rmdir()
            os.rename(files, target)
            _sync_folder(target.parent)
            shutil.rmtree(folder)


def _finished(target: Path, folder: Path, plan: Mapping[str, object]) -> bool:
    """Say whether a conversion ended between the renaming and the removal of its folder."""
    manifest = target / MANIFEST
    if not folder.exists() or (folder / "files").exists() or not manifest.exists():
        return False
    made = json.loads(manifest.read_text(encoding="utf-8"))["made"]
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
def _locked(folder: Path):
    with _disk_errors(folder):
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
    """Write down the plan, or refuse one that is not what the folder was begun with."""
    path = folder / "plan.json"
    text = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    if not path.exists():
        with _disk_errors(folder):
            _write_text(path, text)
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
    """Return what was written down of a finished file; None where it is not there in full."""
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
            f"{folder.parent} has {_gigabytes(free)} free, the conversion needs {_gigabytes(need)}"
        )


def _in_processes(
    act: Callable[[Item, Progress], Found],
    items: Sequence[Item],
    bytes_of: Callable[[Item], int],
    workers: int,
) -> list[Found]:
    """Return act(item, count) of each item, done by worker processes; `count` moves the bar."""
    if not items:
        return []
    context = multiprocessing.get_context("fork")
    done = context.Value("q", 0)
    bar = Bar(sum(map(bytes_of, items)))
    workers = max(1, min(workers, len(items)))
    pool = ProcessPoolExecutor(workers, context, _begin, (act, items, done, os.getpid()))
    try:
        # Large files first: the end then waits for a small one.
        order = sorted(range(len(items)), key=lambda number: -bytes_of(items[number]))
        found = {number: pool.submit(_do, number) for number in order}
        pending = set(found.values())
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.show(done.value)
            for future in finished:
                future.result()
        return [found[number].result() for number in range(len(items))]
    except BrokenProcessPool:
        raise UsageError(
            "a worker process was killed (out of memory?); run again to go on"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.end(done.value)


# Of a worker process; set once, when it begins.
_state: dict[str, Any] = {}


def _begin(act: Callable, items: Sequence, done: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker must not outlive the process that would take its files for unfinished.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)
    _state.update(act=act, items=items, done=done)


def _do(number: int) -> Any:
    return _state["act"](_state["items"][number], _count)


def _count(size: int) -> None:
    with _state["done"].get_lock():
        _state["done"].value += size


def _write(folder: Path, unit: Unit, progress: Progress) -> None:
    """Write a file and what is to be known of it."""
    path = folder / "files" / unit.file
    part = folder / (unit.file.replace("/", "+") + ".part")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        output = Output(part, progress)
        details = unit.write(output)
        sha256 = output.close()
        os.rename(part, path)
        record = {"bytes": output.bytes, "sha256": sha256, "details": details}
        _write_text(_record_path(folder, unit), json.dumps(record))


@contextmanager
def _disk_errors(path: Path):
    """Say in one line what the file system refused."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = f"the disk is full ({os.strerror(error.errno)})"
        else:
            reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(
            f"cannot write {path}: {reason}; what is finished is kept, run again to go on"
        ) from None


def _write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either there in full or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_manifest(folder: Path, plan: Mapping[str, object], records: Mapping[str, dict]) -> None:
    """Write every file's size and SHA-256; those without a record are small and hashed here."""
    listed, files = {}, folder / "files"
    for path in sorted(files.rglob("*")):
        name = str(path.relative_to(files))
        if path.is_file() and name != MANIFEST:
            record = records.get(name)
            listed[name] = {
                "bytes": path.stat().st_size,
                "sha256": record["sha256"] if record else digest(path),
            }
    manifest = {"made": plan, "files": listed}
    # Written outside and moved: what an interruption leaves of it must not be listed as a file.
    _write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    os.rename(folder / MANIFEST, files / MANIFEST)


def verify(target: Path, workers: int) -> int:
    """Compare a target with its manifest; return how many files there are. Raises UsageError."""
    path = target / MANIFEST
    if not path.is_file():
        raise UsageError(f"{target} has no {MANIFEST}: it is no finished conversion")
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
    found = _in_processes(partial(_difference, target), both, lambda one: one[1], workers)
    problems += [difference for difference in found if difference]
    stop(problems, f"{target} differs from its manifest in")
    return len(expected)


def _difference(folder: Path, expected: tuple[str, int, str], progress: Progress) -> str:
    """Say how a file differs from what was written down of it, if it does."""
    name, size, sha256 = expected
    try:
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes, not {size}"
        return "" if digest(folder / name, progress) == sha256 else f"{name} has other content"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


class Bar:
    """Bytes, rate and time left: one line that renews itself, or one every 30 s in a log."""

    def __init__(self, total: int):
        self._total = total
        self._start = time.monotonic()
        self._live = sys.stderr.isatty()
        self._last = self._start if not self._live else 0.0

    def show(self, done: int) -> None:
        """Print how far it is, if it is time to."""
        now = time.monotonic()
        if now - self._last >= (0.5 if self._live else 30):
            self._last = now
            self._print(done, now)

    def end(self, done: int) -> None:
        """Print the last line."""
        self._print(done, time.monotonic())
        if self._live:
            print(file=sys.stderr)

    def _print(self, done: int, now: float) -> None:
        seconds = max(now - self._start, 1e-3)
        done = min(done, self._total)  # files are a little larger than their tensors
        rate = done / seconds
        left = (self._total - done) / rate if rate else 0.0
        share = done / self._total if self._total else 1.0
        text = (
            f"{'█' * round(20 * share):·<20} {share:4.0%}  {_gigabytes(done)} "
            f"of {_gigabytes(self._total)}  {rate / 1e9:.2f} GB/s  {max(0, round(left))} s left"
        )
        print(
            f"\r{text}\033[K" if self._live else text,
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
