"""Read Megatron's training log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ITERATION = re.compile(r"\biteration\s+(\d+)/\s*(\d+) \|")
_FIELD = re.compile(r"([\w()/ -]+?): *([-+0-9.eE]+|nan|inf)\s*\|")


@dataclass(frozen=True)
class Iteration:
    """One line of Megatron's log."""

    number: int
    total: int
    seconds: float | None  # elapsed time per iteration
    loss: float | None  # lm loss; None where this rank does not log one
    tflops: float | None  # model TFLOPS a GPU, with --log-throughput


def iteration(line: str) -> Iteration | None:
    """Return what an iteration line says, or None for any other line."""
    found = _ITERATION.search(line)
    if not found:
        return None
    fields = {name.strip(): float(text) for name, text in _FIELD.findall(line[found.end() :])}
    milliseconds = fields.get("elapsed time per iteration (ms)")
    return Iteration(
        number=int(found[1]),
        total=int(found[2]),
        seconds=milliseconds / 1000 if milliseconds is not None else None,
        loss=fields.get("lm loss"),
        tflops=fields.get("throughput per GPU (TFLOP/s/GPU)"),
    )


def tail(path: Path, size: int) -> list[Iteration]:
    """Return the iterations in the last `size` bytes of a log; none where there is no log yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [found for line in lines if (found := iteration(line))]
