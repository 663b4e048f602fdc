"""Do the same work on many items in several processes, with a progress bar."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from launcher.convert.files import Progress
from launcher.errors import UsageError

Item, Found = TypeVar("Item"), TypeVar("Found")


def run(
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
    # A worker must end with its parent, because a new run takes its files for unfinished.
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


class Bar:
    """A progress bar of bytes, rate and time left; in a log it is a line every 30 s."""

    def __init__(self, total: int):
        self._total = total
        self._start = time.monotonic()
        self._live = sys.stderr.isatty()
        self._last = self._start if not self._live else 0.0

    def show(self, done: int) -> None:
        """Print the progress, if a new line is due."""
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
            f"{'█' * round(20 * share):·<20} {share:4.0%}  {gigabytes(done)} "
            f"of {gigabytes(self._total)}  {rate / 1e9:.2f} GB/s  {max(0, round(left))} s left"
        )
        print(
            f"\r{text}\033[K" if self._live else text,
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )


def gigabytes(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
