"""Reading and writing past the page cache: every byte arrives, whatever its place and size."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import resource
from pathlib import Path

import pytest
import torch

from launcher.convert import files
from launcher.convert.files import Output
from launcher.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(params=["direct", "refused", "absent"])
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with O_DIRECT, one that refuses each such transfer, and one without."""
    if request.param == "absent":

        def setting(file, command, flags=0):
            if command == fcntl.F_SETFL:
                raise OSError(errno.EINVAL, "no O_DIRECT here")
            return plain(file, command, flags)

        plain = fcntl.fcntl
        monkeypatch.setattr(files.fcntl, "fcntl", setting)
    if request.param == "refused":

        def reading(descriptor, buffers, offset):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "not aligned enough")
            return preadv(descriptor, buffers, offset)

        preadv = os.preadv
        monkeypatch.setattr(files.os, "preadv", reading)


@pytest.mark.usefixtures("transfer")
def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    chance = random.Random(0)
    # Around a page, around the buffer, and above it: the file's end is no multiple of either.
    sizes = [1, files.PAGE, files.BUFFER - 1, 0, 3, 2 * files.BUFFER + 5, 12345]
    blocks = [chance.randbytes(size) for size in sizes]
    whole, counted = b"".join(blocks), []
    output = Output(tmp_path / "file", counted.append)
    for block in blocks:
        assert output.write(block) == len(block)
    assert output.bytes == len(whole)
    assert output.close() == hashlib.sha256(whole).hexdigest()
    assert sum(counted) == len(whole)
    assert (tmp_path / "file").read_bytes() == whole
    spans = [(0, 1), (5, 0), (1, files.SMALL), (4096, 8192), (0, len(whole))]
    for _ in range(20):
        begin = chance.randrange(len(whole))
        spans.append((begin, chance.randrange(len(whole) - begin + 1)))
    for begin, size in spans:
        read = files.read_bytes(tmp_path / "file", begin, size)
        assert read.numpy().tobytes() == whole[begin : begin + size], (begin, size)


def test_large_files_leave_the_page_cache_alone(tmp_path: Path) -> None:
    """O_DIRECT is really on where the file system has it, or all of this is for nothing."""
    output = Output(tmp_path / "file", lambda count: None)
    output.write(bytes(files.SMALL))
    output.close()
    has_it = True
    with (tmp_path / "file").open("rb") as plain:
        try:
            fcntl.fcntl(plain, fcntl.F_SETFL, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            has_it = False
    large = files._open(tmp_path / "file", "r", direct=True)
    assert bool(fcntl.fcntl(large, fcntl.F_GETFL) & os.O_DIRECT) == has_it
    small = files._open(tmp_path / "file", "r", direct=False)
    assert not fcntl.fcntl(small, fcntl.F_GETFL) & os.O_DIRECT


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(files.SMALL + 10))
    for size in (files.SMALL, files.SMALL + 1, 8 * files.SMALL):
        with pytest.raises(UsageError, match="short: cut short while it was read"):
            files.read_bytes(path, 11, size)


def test_what_the_disk_refuses_behind_the_writers_back(tmp_path: Path) -> None:
    output = Output(tmp_path / "file", lambda count: None)

    def refuse(data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    class Full:
        fileno, write = output._file.fileno, staticmethod(refuse)

    output._file = Full()
    output.write(bytes(files.BUFFER))  # handed over; the answer comes later
    with pytest.raises(OSError, match="full"):
        output.close()
    output = Output(tmp_path / "other", lambda count: None)
    output._file = Full()
    pieces = iter(torch.zeros(3, files.BUFFER, dtype=torch.uint8))
    with pytest.raises(OSError, match="full"):  # and not what torch.save makes of it
        output.save({"a": torch.empty(3, files.BUFFER, dtype=torch.uint8)}, pieces)


def test_ahead_keeps_the_order_and_passes_errors_on() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 50:
            raise ValueError("fifty")
        return number * number

    found = files.ahead(work, range(100))
    assert [next(found) for _ in range(50)] == [number * number for number in range(50)]
    assert max(begun) <= 50 + files.AHEAD  # no further than that, or memory would fill up
    with pytest.raises(ValueError, match="fifty"):
        next(found)
    assert list(files.ahead(work, [])) == []


def test_saved_in_pieces_is_what_torch_loads(tmp_path: Path) -> None:
    first, second = torch.randn(6, 5).bfloat16(), torch.randn(7)
    value = {
        "model": {"first": torch.empty(6, 5, dtype=torch.bfloat16), "state": None},
        "model1": {"second": torch.empty(7)},
        "iteration": 3,
    }
    # Pieces need not be contiguous, and a tensor may be of several.
    pieces = [first[:2], first[2:].t().contiguous().t(), second]
    output = Output(tmp_path / "file", lambda count: None)
    output.write(b"something before")
    begin = output.bytes
    output.save(value, iter(pieces))
    output.close()
    (tmp_path / "saved").write_bytes((tmp_path / "file").read_bytes()[begin:])
    for mapped in (False, True):
        found = torch.load(tmp_path / "saved", weights_only=True, mmap=mapped)
        assert torch.equal(found["model"]["first"], first)
        assert torch.equal(found["model1"]["second"], second)
        assert (found["model"]["state"], found["iteration"]) == (None, 3)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [([3], "fewer pieces"), ([5, 1], "more pieces"), ([4, 2], "larger than what is left")],
)
def test_pieces_that_do_not_fit(sizes: list[int], problem: str, tmp_path: Path) -> None:
    output = Output(tmp_path / "file", lambda count: None)
    with pytest.raises(RuntimeError, match=problem):
        output.save(torch.empty(5), iter([torch.zeros(size) for size in sizes]))


def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """A file of 512 MB is written in less than 300 MB more than the process began with."""
    tensors, elements = 64, 1 << 22
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            output = Output(tmp_path / "file", lambda count: None)
            value = [torch.empty(elements, dtype=torch.bfloat16) for _ in range(tensors)]
            made = files.ahead(
                lambda number: torch.full([elements], number, dtype=torch.bfloat16), range(tensors)
            )
            output.save(value, made)
            output.close()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            status = int(after - before > 300 << 10)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loaded = torch.load(tmp_path / "file", weights_only=True, mmap=True)
    assert [int(tensor[-1]) for tensor in loaded] == list(range(tensors))
