"""Measure how fast a log is read: bytes a second beside `wc -l` and `grep -c iteration` on it.

    python tests/benchmarks/report.py [GIB] [ITERATION LINES A MIB, default 20 and 3000]

20 lines a MiB is what a job of many ranks writes with warnings and NCCL's lines; 3,000 is a log of
nothing but iterations. All three read the same file from the page cache, in the same run; counted is
CPU time, which other users of the machine disturb least, of the fastest of three tries.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from launcher.report import training_log

ITERATION = (
    " [2026-09-01 10:{:02d}:{:02d}.123456] iteration {:8d}/  500000 | consumed samples: {:12d} | "
    "elapsed time per iteration (ms): 2301.4 | throughput per GPU (TFLOP/s/GPU): 338.0 | "
    "learning rate: 3.000000E-04 | global batch size:  2048 | lm loss: 4.474437E+00 | "
    "load_balancing_loss: 1.003744E+00 | loss scale: 1.0 | grad norm: 0.704 | "
    "number of skipped iterations:   0 | number of nan iterations:   0 |\n"
)
NOISE = (
    "{:4d}: node{:04d}:NCCL INFO Channel {:02d}/0 : 5[5] -> 6[6] via P2P/CUMEM/read, no surprise\n"
)


def write(path: Path, size: int, dense: int) -> int:
    """Write a log of `size` bytes with `dense` iteration lines a MiB; return their number."""
    number = 0
    noise = [NOISE.format(rank % 4096, rank // 8, rank % 16) for rank in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        written, place = 0, 0
        while written < size:
            block = []
            for _ in range(dense):
                number += 1
                block.append(
                    ITERATION.format(number // 60 % 60, number % 60, number, 2048 * number)
                )
            room = (1 << 20) - sum(map(len, block))
            while room > 0:
                line = noise[place % len(noise)]
                place += 1
                room -= len(line)
                block.append(line)
            text = "".join(block)
            written += file.write(text)
    return number


def fastest(work: Callable[[], object]) -> float:
    """Return the least CPU seconds of three tries, in this process and in those it starts."""

    def spent() -> float:
        times = os.times()
        return sum(times[:4])

    found = []
    for _ in range(3):
        start = spent()
        work()
        found.append(spent() - start)
    return min(found)


def command(*words: str) -> Callable[[], object]:
    # Into a pipe: where nobody reads, grep stops at its first match.
    return lambda: subprocess.run(words, check=True, capture_output=True)


def main() -> None:
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 1) * 2**30)
    for dense in map(int, sys.argv[2:] or ("20", "3000")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log"
            written = write(path, size, dense)
            ours = fastest(lambda path=path: training_log.read(path))
            count = fastest(command("wc", "-l", str(path)))
            grep = fastest(command("grep", "-c", "iteration", str(path)))
            log = training_log.read(path)
            assert (log.logged, log.newest.number) == (written, written)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{path.stat().st_size / 2**20:.0f} MiB, {dense} iterations a MiB: {ours:.2f} s = "
                f"{size / 2**20 / ours:.0f} MiB/s; {count / ours:.2f} of wc -l, "
                f"{grep / ours:.2f} of grep -c iteration; {peak:.0f} MiB of memory at most"
            )


if __name__ == "__main__":
    main()
