"""What was published of the same model on the same GPU: what a job can be expected to reach.

published.csv has a line for each published configuration, the fastest where several software
versions ran it: TFLOPS/GPU are model FLOPs as its source counts them, `source` names the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.plan.shape import Shape

DATA = Path(__file__).parent / "published.csv"
SIZES = ("gpus", "tp", "pp", "vpp", "ep", "cp", "mbs", "gbs")
# What a difference is worth when the nearest is sought; of sizes, for each factor of two.
PRECISION, ROUTING, SEQUENCE, SIZE = 8.0, 2.0, 2.0, 1.0


@dataclass(frozen=True)
class Result:
    """One published measurement, and in what the job asked about differs from it."""

    settings: dict[str, str]  # the columns of published.csv
    differences: tuple[str, ...]  # 'GBS 8192 instead of 2048'

    @property
    def tflops(self) -> float:
        """Model TFLOPS of one GPU."""
        return float(self.settings["tflops"])

    @property
    def sizes(self) -> str:
        """The configuration in a few words."""
        row = self.settings
        words = " ".join(f"{name.upper()}{row[name]}" for name in SIZES[1:])
        return f"{row['gpus']} {row['gpu']}, {row['precision']}, {words}"


def nearest(model: str, gpu: str | None, shape: Shape) -> Result | None:
    """Return the published result most like a job; None where none is of its model and GPU."""
    job = _describe(shape)
    found = [row for row in _rows() if row["model"] == model and row["gpu"] == gpu]
    if not found:
        return None
    row = min(found, key=lambda row: (_distance(row, job), -float(row["tflops"])))
    return Result(row, tuple(_differences(row, job)))


def _rows() -> Iterator[dict[str, str]]:
    with DATA.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _describe(shape: Shape) -> dict[str, str]:
    """Return a job in the words of the table's columns."""
    parallel, training, experts = shape.parallel, shape.training, shape.model.experts
    precision = "bf16"
    if training.fp8:
        precision = "mxfp8" if training.fp8 == "mxfp8" else "fp8"
    routing = "dropless"
    if experts and experts.capacity_factor:
        routing = "dropped tokens"
    elif experts and experts.balanced:
        routing = "forced balance"
    sizes = {
        "gpus": parallel.world,
        "tp": parallel.tensor,
        "pp": parallel.pipeline,
        "vpp": parallel.virtual,
        "ep": parallel.expert,
        "cp": parallel.context,
        "mbs": training.micro_batch,
        "gbs": training.global_batch,
        "sequence": training.sequence,
    }
    return {
        "precision": precision,
        "routing": routing,
        **{name: str(size) for name, size in sizes.items()},
    }


def _distance(row: dict[str, str], job: dict[str, str]) -> float:
    def factors(name: str) -> float:
        return abs(math.log2(int(row[name]) / int(job[name])))

    return (
        PRECISION * (row["precision"] != job["precision"])
        + ROUTING * (row["routing"] != job["routing"])
        + SEQUENCE * factors("sequence")
        + SIZE * sum(map(factors, SIZES))
    )


def _differences(row: dict[str, str], job: dict[str, str]) -> Iterator[str]:
    for name in ("precision", "routing", "sequence", *SIZES):
        if row[name] and row[name] != job[name]:
            word = name.upper() if name in SIZES[1:] else name
            yield f"{word} {job[name]} instead of {row[name]}"
