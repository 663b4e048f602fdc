"""kill -9 at random points of a conversion: the next run completes it, to the same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from launcher.convert import manifest, resumable, torch_dist
from tests.support.synthetic import FAMILIES, convert, environment, publish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]
POINTS = 10


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def started(environ: dict[str, str], target: Path) -> int:
    """Start a conversion in a process of its own; return that once it has begun to write."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(convert(FAMILIES["qwen3"], environ))
    while not resumable.incomplete(target).exists() and not target.exists():
        time.sleep(0.001)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch_dist, "FILE_BYTES", 1 << 16)  # many files
    publish(tmp_path / "published", FAMILIES["qwen3"])
    return tmp_path / "published"


class Ended(BaseException):
    """The end of the process, at a call."""


def test_ended_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process ends before or after each change it makes to the folders, in turn."""
    parent, calls, last = os.getpid(), 0, 0

    def interrupted(function):
        def call(*args, **kwargs):
            nonlocal calls
            ours = isinstance(args[0], int) or str(args[0]).startswith(str(tmp_path))
            if os.getpid() != parent or not (ours or "dir_fd" in kwargs):
                return function(*args, **kwargs)
            calls += 1
            if calls == last:
                raise Ended
            result = function(*args, **kwargs)
            calls += 1
            if calls == last:
                raise Ended
            return result

        return call

    def environ(target: Path) -> dict[str, str]:
        published = tmp_path / "published"
        return environment(
            model, FAMILIES["qwen3"], SOURCE_CKPT_PATH=published, TARGET_CKPT_PATH=target
        )

    model = publish(tmp_path / "published", FAMILIES["qwen3"])
    for module, name in [
        (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (Path, "mkdir"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, interrupted(getattr(module, name)))
    assert convert(FAMILIES["qwen3"], environ(tmp_path / "whole")) == 0
    steps, expected = calls, digests(tmp_path / "whole")
    assert steps > 20
    for number in range(1, steps + 1):
        target = tmp_path / f"ended{number}"
        calls, last = 0, number
        with pytest.raises(Ended):
            convert(FAMILIES["qwen3"], environ(target))
        last = 0
        if target.exists() and not resumable.incomplete(target).exists():
            assert digests(target) == expected, number
            continue
        assert convert(FAMILIES["qwen3"], environ(target)) == 0, number
        assert digests(target) == expected, number
        assert not resumable.incomplete(target).exists(), number
        assert manifest.verify(target, workers=1) == len(expected) - 1


@pytest.mark.parametrize("form", ["torch_dist", "legacy"])
def test_killed_and_run_again(form: str, published: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny-Qwen3-30B-A3B.yaml"

    def environ(target: Path) -> dict[str, str]:
        return environment(
            model,
            FAMILIES["qwen3"],
            SOURCE_CKPT_PATH=published,
            TARGET_CKPT_PATH=target,
            FORMAT=form,
            PP=4,
            EP=4,
            TP=2,
        )

    whole = tmp_path / "whole"
    child, begun = started(environ(whole), whole), time.monotonic()
    assert ended(child) == 0
    seconds = time.monotonic() - begun
    expected = digests(whole)
    assert len(expected) > 10
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    killed, left = 0, set()
    for point in range(POINTS):
        target = tmp_path / f"killed{point}"
        child = started(environ(target), target)
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        killed += ended(child) == -signal.SIGKILL
        if target.exists():  # then it is whole
            assert digests(target) == expected, f"seed {seed}, point {point}"
            if not resumable.incomplete(target).exists():
                continue
        left.add(len(list(resumable.incomplete(target).glob("records/*.json"))))
        assert convert(FAMILIES["qwen3"], environ(target)) == 0
        assert digests(target) == expected, f"seed {seed}, point {point}"
        assert not resumable.incomplete(target).exists()
    assert killed >= POINTS // 2
    assert len(left) > 1, "all were killed at the same point"
