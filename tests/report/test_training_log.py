"""Logs as wholes: many ranks, restarts, growth, rubbish, bounds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from launcher.report import training_log
from tests.report.test_lines import FORMATS, read


def line(number: int, total: int = 100, label: str = "", seconds: float = 2.0, at: str = "") -> str:
    """One iteration of Megatron-LM 0.19."""
    return (
        f"{label}{at} iteration {number:8d}/{total:8d} | consumed samples: {number * 64:12d} | "
        f"elapsed time per iteration (ms): {seconds * 1000:.1f} | "
        f"throughput per GPU (TFLOP/s/GPU): {100 / seconds:.1f} | learning rate: 3.000000E-04 | "
        f"global batch size:    64 | lm loss: {5 - number / 1000:.6E} | loss scale: 1.0 | "
        "grad norm: 0.7 | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
    )


def test_three_lines_from_each_of_4096_ranks_do_not_hide_the_progress(tmp_path: Path):
    path = tmp_path / "log"
    noise = "".join(f"{rank:4d}: {'NCCL WARN ' * 12}{n}\n" for rank in range(4096) for n in range(3))  # fmt: skip
    path.write_text(line(7, label="4095: ") + noise)
    reader = training_log.Reader()
    assert reader.read(path).newest.number == 7
    with path.open("a") as file:
        file.write(noise + line(8, label="4095: ") + noise)
    assert reader.read(path).newest.number == 8
    assert reader.log.logged == 2


def test_an_iteration_of_4096_ranks_counts_once():
    order = [(number, rank) for number in range(1, 3) for rank in range(4096)]
    # Ranks are out of step by a few lines.
    mixed = random.Random(0)
    order.sort(key=lambda one: one[0] * 4096 + one[1] + mixed.randrange(2000))
    text = "".join(
        line(number, label=f"{rank}: ", seconds=3.0 if rank == 77 else 2.0)
        for number, rank in order
    )
    log = read(text)
    assert [one.number for one in log.iterations] == [1, 2]
    assert (log.logged, log.life, len(log.paces)) == (2, 0, 4096)
    assert max(log.paces, key=lambda name: log.paces[name].mean) == "77"


def test_the_rank_with_the_loss_completes_the_first_ones_line():
    text = " 0:  iteration 1/ 2 | elapsed time per iteration (ms): 5.0 |\n 7:  iteration 1/ 2 | elapsed time per iteration (ms): 5.0 | lm loss: 4.0 |\n"
    (one,) = read(text).iterations
    assert (one.seconds, one.loss) == (0.005, 4.0)


def test_two_restarts():
    start = "using world size: 8, data-parallel size: 8\n"
    lives = [range(1, 30), range(21, 45), range(41, 61)]
    log = read("".join(start + "".join(map(line, numbers)) for numbers in lives))
    assert log.life == 2
    assert [one.number for one in log.iterations] == [n for numbers in lives for n in numbers]
    assert [one.life for one in log.iterations] == [0] * 29 + [1] * 24 + [2] * 20
    # Without any word of the start, the number that goes back says it.
    log = read("".join(map(line, [*range(1, 30), *range(21, 45)])))
    assert (log.life, log.newest.number) == (1, 44)
    # A start that goes on where the first one ended.
    log = read("".join(map(line, range(1, 11))) + start + "".join(map(line, range(11, 21))))
    assert [one.life for one in log.iterations] == [0] * 10 + [1] * 10


def test_two_writers_on_one_line():
    first, second = line(1).rstrip("\n"), line(2)
    log = read(first[:120] + second)
    assert [one.number for one in log.iterations] == [1, 2]
    assert log.iterations[0].seconds == 2.0
    assert log.iterations[0].loss is None
    assert read(first + second).newest.loss == pytest.approx(4.998)
    memory = "[Rank 3] (after 1 iterations) memory (MB) | allocated: 1.00 | max allocated: 2048.00 | reserved: 3.00 | max reserved: 4.00\n"
    log = read(first[:-40] + memory)
    assert log.newest.seconds == 2.0
    assert log.peaks[3].peak == 2 * 2**30


def test_a_progress_bar_in_the_way():
    bar = "\r".join(f"iteration {n}/50 [{n * 2}%]" for n in range(50))
    log = read(bar + "\r" + line(1) + bar + "\n" + line(2))
    assert [one.number for one in log.iterations] == [1, 2]


def test_reading_on_in_pieces_is_reading_at_once(tmp_path: Path):
    text = "".join(one[1] if one[1].endswith("\n") else one[1] + "\n" for one in FORMATS[1:4])
    text += "".join(map(line, range(1, 40))) + FORMATS[18][1]
    whole = read(text)
    mixed = random.Random(1)
    for _ in range(20):
        reader, path, done = training_log.Reader(), tmp_path / "log", 0
        path.write_bytes(b"")
        while done < len(text):
            step = mixed.randrange(1, 900)
            with path.open("a") as file:
                file.write(text[done : done + step])
            done += step
            reader.read(path)
        reader.finish()
        assert reader.log.iterations == whole.iterations


def test_another_file_of_the_same_name(tmp_path: Path):
    path = tmp_path / "log"
    (tmp_path / "1").write_text(line(1) + line(2))
    (tmp_path / "2").write_text(line(3))
    path.symlink_to("1")
    reader = training_log.Reader()
    reader.read(path)
    path.unlink()
    path.symlink_to("2")
    log = reader.read(path)
    assert ([one.number for one in log.iterations], log.life) == ([1, 2, 3], 1)
    assert training_log.read(tmp_path / "none").newest is None


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of more iterations than are kept, every second, fourth … stays; counts and sums are whole."""
    monkeypatch.setattr(training_log, "KEPT", 256)
    path, number = tmp_path / "log", 3_000
    path.write_text("".join(line(n, number) for n in range(1, number + 1)))
    log = training_log.read(path)
    assert (log.logged, log.newest.number) == (number, number)
    assert log.seconds == pytest.approx(2.0 * number)
    assert training_log.KEPT / 2 <= len(log.iterations) <= training_log.KEPT
    # What is kept is spread evenly.
    steps = {b.number - a.number for a, b in zip(log.iterations, log.iterations[1:])}
    assert steps == {log.stride}


def test_rubbish_never_breaks_it():
    mixed = random.Random(2)
    pieces = [one[1].encode() for one in FORMATS] + [b"\x00\xff\xfe", b"\r", b"\n", b"\x1b[31m"]
    for _ in range(100):
        text = b"".join(mixed.sample(pieces, 5))
        at = mixed.randrange(len(text))
        text = (
            text[:at]
            + bytes(mixed.randrange(256) for _ in range(20))
            + text[at + mixed.randrange(40) :]
        )
        reader = training_log.Reader()
        reader.feed(text)
        reader.finish()


def test_the_argument_dump():
    text = (
        "0: ------------------------ arguments ------------------------\n"
        "0:   seq_length ...................................... 4096\n"
        "3: a warning of another rank\n"
        "0:   recompute_modules ............................... ['moe_act', 'layernorm']\n"
        "0: -------------------- end of arguments ---------------------\n"
    )
    log = read(text + line(1))
    assert log.arguments == {"seq_length": "4096", "recompute_modules": "['moe_act', 'layernorm']"}
    assert log.newest.number == 1
