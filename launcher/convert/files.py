"""Read and write large files past the page cache, while earlier tensors are being converted.

A checkpoint is larger than memory and most of its bytes are needed once; keeping them as pages of
the cache would cost more than all the rest of a conversion. Where a file system has no O_DIRECT,
the same calls go through the cache.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from launcher.errors import UsageError

PAGE = mmap.PAGESIZE  # O_DIRECT wants addresses, offsets and sizes to be multiples of it
BUFFER = 16 << 20  # bytes written at once
SMALL = 1 << 20  # below it, the cache's reading ahead is worth more
AHEAD = 3  # tensors

Progress = Callable[[int], None]  # told how many more bytes are done
Item, Found = TypeVar("Item"), TypeVar("Found")


def read_bytes(path: Path, begin: int, size: int) -> torch.Tensor:
    """Return `size` bytes of a file, those from `begin` on: uint8 [size].

    Raises UsageError where the file is shorter.
    """
    if size < SMALL:
        return _read_small(path, begin, size)
    first, last = begin // PAGE * PAGE, _rounded(begin + size)
    memory = torch.empty(last - first + PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % PAGE
    view = memoryview(memory.numpy())[start : start + last - first]
    file = _opened(path, True, path.stat().st_mtime_ns)
    done, wanted = 0, begin + size - first
    while done < wanted:
        count = _allowed(file, os.preadv, file.fileno(), [view[done:]], first + done)
        if not count:
            raise UsageError(f"{path}: cut short while it was read")
        done += count
    return memory[start + begin - first :][:size]


def _read_small(path: Path, begin: int, size: int) -> torch.Tensor:
    """Return the bytes by one call through the cache; a small tensor costs little else."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    data = bytearray(size)
    file = _opened(path, False, path.stat().st_mtime_ns)
    if os.preadv(file.fileno(), [data], begin) != size:
        raise UsageError(f"{path}: cut short while it was read")
    return torch.frombuffer(data, dtype=torch.uint8)


def digest(path: Path, progress: Progress = lambda count: None) -> str:
    """Return a file's SHA-256, as hexadecimal digits."""
    found, size = hashlib.sha256(), path.stat().st_size

    def part(begin: int) -> torch.Tensor:
        return read_bytes(path, begin, min(BUFFER, size - begin))

    for piece in ahead(part, range(0, size, BUFFER)):
        found.update(piece.numpy())
        progress(len(piece))
    return found.hexdigest()


def ahead(
    function: Callable[[Item], Found],
    items: Iterable[Item],
    small: Callable[[Item], bool] = lambda item: False,
) -> Iterator[Found]:
    """Yield function(item) for each item in turn; a few calls begin in threads before they are due.

    A `small` item is done when it is due, because a thread would cost more than the call.
    """
    pool, begun = ThreadPoolExecutor(2), deque[Callable[[], Found]]()
    try:
        for item in items:
            begun.append(
                partial(function, item) if small(item) else pool.submit(function, item).result
            )
            if len(begun) > AHEAD:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


class Output:
    """A file that is hashed and counted while it is written."""

    def __init__(self, path: Path, progress: Progress):
        self._file = _open(path, "w", direct=True)
        self._progress = progress
        self._hash = hashlib.sha256()
        # One buffer is filled and hashed while the other one is written.
        self._filling, self._writing = (memoryview(mmap.mmap(-1, BUFFER)) for _ in range(2))
        self._filled = 0
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self.bytes = 0

    def write(self, data: Any) -> int:
        """Append all of a buffer. Raises OSError, now or later, when the disk refuses it."""
        view = memoryview(data).cast("B")
        self.bytes += len(view)
        while view:
            room = self._filling[self._filled :]
            part, view = view[: len(room)], view[len(room) :]
            room[: len(part)] = part
            self._filled += len(part)
            if len(part) == len(room):
                self._hand_over()
        return memoryview(data).nbytes

    def tensor(self, tensor: torch.Tensor) -> None:
        """Append a tensor's elements in order."""
        self.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    def save(self, value: Any, pieces: Iterator[torch.Tensor]) -> None:
        """Append what torch.save makes of `value`, with other bytes in its tensors.

        The tensors in `value` only say dtypes and shapes, and no two share memory; their bytes are
        those of `pieces` in turn, one piece or several a tensor, each taken when it is due.
        """
        file = _Filled(self, pieces)
        try:
            with torch.serialization.skip_data():
                torch.save(value, file)
        except RuntimeError:
            if file.error:
                raise file.error from None
            raise
        if next(pieces, None) is not None:
            raise RuntimeError("more pieces than tensors")

    def save_tensor(self, sizes: tuple[int, ...], tensor: torch.Tensor) -> None:
        """Append what torch.save makes of one tensor, given other sizes of the same elements."""
        head, tail = _around(sizes, tensor.dtype)
        self.write(head)
        self.tensor(tensor)
        self.write(tail)

    def close(self) -> str:
        """Wait until the file is on disk; return its SHA-256."""
        self._hand_over()
        self._wait()
        self._writer.shutdown()
        os.ftruncate(self._file.fileno(), self.bytes)  # the last buffer was a whole page's
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def _hand_over(self) -> None:
        """Write the buffer in the background, and continue with the other one when it is free."""
        count = self._filled
        self._hash.update(self._filling[:count])
        self._wait()
        self._filling, self._writing, self._filled = self._writing, self._filling, 0
        self._written = self._writer.submit(self._store, self._writing[: _rounded(count)], count)

    def _wait(self) -> None:
        if self._written:
            self._written.result()

    def _store(self, data: memoryview, count: int) -> None:
        while data:
            data = data[_allowed(self._file, self._file.write, data) :]
        self._progress(count)


@lru_cache(maxsize=1024)
def _around(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[bytes, bytes]:
    """Return what torch.save writes before and behind a tensor's bytes; neither depends on them."""
    file = _Around()
    with torch.serialization.skip_data():
        torch.save(torch.empty(sizes, dtype=dtype), file)
    return bytes(file.head), bytes(file.tail)


class _Around:
    """A file for torch.save that keeps the bytes before the tensor, and those behind it."""

    def __init__(self) -> None:
        self.head, self.tail, self._behind, self._place = bytearray(), bytearray(), False, 0

    def write(self, data: Any) -> int:
        """Keep the bytes that are not the tensor's."""
        part = memoryview(data).cast("B")
        (self.tail if self._behind else self.head).extend(part)
        self._place += len(part)
        return len(part)

    def seek(self, count: int, whence: int) -> int:
        """Pass over the tensor."""
        assert whence == os.SEEK_CUR
        self._behind = True
        self._place += count
        return self._place

    def flush(self) -> None:
        """Do nothing."""


class _Filled:
    """A file for torch.save that inserts the tensors' bytes where torch.save skips them."""

    def __init__(self, output: Output, pieces: Iterator[torch.Tensor]):
        self._output, self._pieces = output, pieces
        self.error: Exception | None = None  # torch.save does not pass it on

    def write(self, data: Any) -> int:
        """Append the bytes that are not a tensor's."""
        return self._call(lambda: self._output.write(data))

    def seek(self, count: int, whence: int) -> int:
        """Append the next `count` bytes of tensors."""
        assert whence == os.SEEK_CUR
        return self._call(lambda: self._put(count))

    def flush(self) -> None:
        """Do nothing: closing the output flushes it."""

    def _put(self, count: int) -> int:
        while count > 0:
            piece = next(self._pieces, None)
            if piece is None:
                raise RuntimeError("fewer pieces than tensors")
            count -= piece.nbytes
            self._output.tensor(piece)
        if count:
            raise RuntimeError("a piece is larger than what is left of its tensor")
        return self._output.bytes

    def _call(self, act: Callable[[], int]) -> int:
        try:
            return act()
        except Exception as error:
            self.error = self.error or error
            raise


def _rounded(size: int) -> int:
    return -(-size // PAGE) * PAGE


@lru_cache(maxsize=64)
def _opened(path: Path, direct: bool, _changed: int) -> io.FileIO:
    return _open(path, "r", direct)


def _open(path: Path, mode: str, direct: bool) -> io.FileIO:
    file = io.FileIO(path, mode)
    if direct:
        with suppress(OSError):  # a file system may have no such thing
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
    return file


def _allowed(file: io.FileIO, transfer: Callable[..., int], *arguments: Any) -> int:
    """Return transfer(*arguments), done through the cache where the file system wants it so."""
    try:
        return transfer(*arguments)
    except OSError as error:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return transfer(*arguments)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a UsageError of one line."""
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


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either there in full or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)
