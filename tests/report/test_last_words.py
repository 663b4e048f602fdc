"""The traceback that ended a job, among others, in logs of any length."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from launcher.report.last_words import last_words


def traceback(error: str, label: str = "", frames: int = 3) -> str:
    text = "Traceback (most recent call last):\n" + "".join(
        f'  File "/opt/megatron/a{n}.py", line {n}, in f\n    call({n})\n' for n in range(frames)
    )
    return "".join(f"{label}{line}\n" for line in (text + error).splitlines())


OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
NCCL = "torch.distributed.DistBackendError: NCCL communicator was aborted on rank 3."


@pytest.mark.parametrize("label", ["", "[rank3]: "])
def test_the_fatal_one_not_the_first(tmp_path: Path, label: str):
    path = tmp_path / "log"
    survived = traceback("ImportError: no apex, falling back", label)
    path.write_text(
        survived
        + " iteration 5/ 10 | lm loss: 4.0 |\n" * 3
        + traceback(OOM, label)
        + "W destroy_process_group\n"
    )
    assert last_words(path).splitlines()[-1].endswith(OOM)
    assert "ImportError" not in last_words(path)


def test_the_rank_that_failed_first_not_those_it_left_alone(tmp_path: Path):
    path = tmp_path / "log"
    one = traceback(OOM, "17: ").splitlines(keepends=True)
    others = traceback(NCCL, "3: ").splitlines(keepends=True)
    mixed = "".join(a + b for a, b in zip(others, one)) + others[-1]
    ending = traceback("torch.distributed.elastic.multiprocessing.errors.ChildFailedError:", "0: ")
    path.write_text(mixed + ending)
    words = last_words(path)
    assert OOM in words
    assert "NCCL" not in words
    assert "ChildFailed" not in words


def test_ranks_without_labels_behind_whom_torchrun_speaks(tmp_path: Path):
    path = tmp_path / "log"
    child = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    path.write_text(traceback(OOM) * 3 + traceback(NCCL) + traceback(child))
    assert last_words(path).splitlines()[-1] == OOM


def test_a_long_one_keeps_its_message(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text(traceback(OOM, frames=100))
    words = last_words(path).splitlines()
    assert len(words) <= 30
    assert words[0].startswith("Traceback")
    assert words[-1] == OOM


def test_causes_stay_with_their_effect(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text(
        traceback("KeyError: 'a'")
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + traceback("ValueError: no checkpoint at /save")
    )
    words = last_words(path)
    assert "KeyError" in words
    assert words.endswith("ValueError: no checkpoint at /save")


def test_without_a_traceback(tmp_path: Path):
    path = tmp_path / "log"
    assert "did not start" in last_words(path)
    path.write_text("".join(f"line {n}\n" for n in range(100)) + "slurmstepd: error: CANCELLED\n")
    words = last_words(path).splitlines()
    assert len(words) == 20
    assert words[-1] == "slurmstepd: error: CANCELLED"


def test_memory_is_bounded(tmp_path: Path):
    path = tmp_path / "log"
    with path.open("w") as file:
        file.write(traceback("RuntimeError: early", "5: "))
        for _ in range(24):
            file.write("7: NCCL INFO nothing of interest\n" * 32_000)
        file.write(traceback(OOM, "5: "))
    tracemalloc.start()
    assert last_words(path).endswith(OOM)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
