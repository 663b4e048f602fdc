"""Fit the projection's constants to published.csv, and say how far off it is on rows left out.

    python tests/tools/fit_projection.py                  print the errors of the present constants
    python tests/tools/fit_projection.py --fit            fit, write constants.json, print errors
    python tests/tools/fit_projection.py --rows FILE.csv  errors on other rows with the same columns
    python tests/tools/fit_projection.py --list           every row, measured and projected

The fit is a maximum a posteriori estimate: logarithms of step times, priors on the logarithms of
constants, Gauss-Newton with weights that outliers lose. A fold's constants are fitted without its
rows, by two more such steps from the fit of all. Needs numpy, which only tests need.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.config import bash_layers  # noqa: E402
from launcher.config.arguments import Arguments, merge, parse  # noqa: E402
from launcher.job import request  # noqa: E402
from launcher.job.build import build  # noqa: E402
from launcher.plan import flops, published, shape, stages  # noqa: E402
from launcher.plan.projection import anchor, execution  # noqa: E402
from launcher.plan.projection import constants as known  # noqa: E402
from launcher.plan.projection.constants import NAMES, Constants  # noqa: E402
from launcher.plan.projection.projection import project  # noqa: E402

# Models that were published and are no part of the zoo: one that is, and what differs.
OTHERS = {
    "DeepSeek-V3-4layers": (
        "DeepSeek-V3",
        "--num-layers 4 --moe-layer-freq ([0]*1+[1]*3) --no-rope-fusion",
    ),
    "DeepSeek-V2-4layers": ("DeepSeek-V2", "--num-layers 4 --moe-layer-freq ([0]*1+[1]*3)"),
    "GPT-OSS-120B": (
        "Qwen3-30B-A3B",
        "--num-layers 36 --hidden-size 2880 --num-attention-heads 64 --num-query-groups 8 "
        "--kv-channels 64 --moe-router-topk 4 --moe-ffn-hidden-size 2880 --padded-vocab-size "
        "201088 --ffn-hidden-size 2880",
    ),
    "Grok1-314B": (
        "Mixtral-8x22B",
        "--num-layers 64 --hidden-size 6144 --num-attention-heads 48 --num-query-groups 8 "
        "--kv-channels 128 --ffn-hidden-size 32768 --moe-ffn-hidden-size 32768 "
        "--padded-vocab-size 131072",
    ),
    "Moonlight-16B-A3B": (
        "DeepSeek-V2-Lite",
        "--ffn-hidden-size 11264 --padded-vocab-size 163840",
    ),
}
# Models with parts that the plan does not know: attention sinks, clamped activations with biases.
UNLIKE = {"GPT-OSS-120B"}
NOISE = 0.08  # of a row's logarithm, where its settings are known
STEP = 0.05  # of a constant's logarithm, for slopes
GUESSED = 3.0  # times that where they are not


@dataclass(frozen=True)
class Case:
    """A published row, as the projection sees it."""

    row: dict[str, str]
    shape: shape.Shape
    split: tuple[stages.Stage, ...]
    execution: execution.Execution
    measured: float  # seconds of a step

    @property
    def known(self) -> bool:
        return self.row["known"] == "1"

    @property
    def ours(self) -> bool:
        """Whether the model is one of the zoo's."""
        return self.row["model"] not in OTHERS

    @property
    def configuration(self) -> tuple[str, ...]:
        return tuple(self.row[name] for name in ("model", "gpu", "gpus", *SETTINGS))

    def seconds(self, constants: Constants) -> float:
        return project(self.shape, self.split, self.execution, self.row["gpu"], constants).seconds


SETTINGS = (
    "sequence", "precision", "tp", "pp", "vpp", "ep", "etp", "cp", "mbs", "gbs", "mtp", "layout",
    "dispatcher", "routing", "recompute", "graphs", "overlap", "fused", "also",
)  # fmt: skip


def model_arguments(names: Iterable[str]) -> dict[str, Arguments]:
    """Return the Megatron arguments of each model, as a dry run has them."""
    found: dict[str, Arguments] = {}
    for name in names:
        zoo, changes = OTHERS.get(name, (name, ""))
        environ = {
            "PATH": "/usr/bin:/bin", "MODEL": zoo, "DRY_RUN": "1", "TIMESTAMP": "260101_120000",
            "CLUSTER": "template",
        }  # fmt: skip
        layered = bash_layers.source(bash_layers.ENTRY, [], environ)[0]
        base = build(request.read(bash_layers.settings_of(layered), [], layered)).arguments
        found[name] = merge(base, parse(changes.split(), "published"))
    return found


def cases(path: Path) -> list[Case]:
    """Return the rows of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    arguments = model_arguments({row["model"] for row in rows})
    return [case(row, arguments[row["model"]]) for row in rows if row["model"] not in UNLIKE]


def case(row: dict[str, str], base: Arguments) -> Case:
    """Return a row as the projection sees it."""
    given = published.arguments(row, base)
    read = shape.read(given, int(row["gpus"]))
    how = execution.read(
        given, published.environment(row), float(row["released"]), "bound" in row["also"].split("+")
    )
    seconds = float(row["seconds"] or 0)
    if not seconds:
        seconds = flops.iteration(read) / read.parallel.world / float(row["tflops"]) / 1e12
    return Case(row, read, stages.split(read), how, seconds)


def priors() -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return means and standard deviations of the constants' logarithms."""
    found = known.described()
    return (
        numpy.log([float(found[name]["prior"]) for name in NAMES]),
        numpy.array([float(found[name]["sd"]) for name in NAMES]),
    )


def constants(logs: numpy.ndarray) -> Constants:
    return Constants(**dict(zip(NAMES, map(float, numpy.exp(logs)))))


def residuals(rows: Sequence[Case], logs: numpy.ndarray) -> numpy.ndarray:
    """Return the logarithms of projected over measured seconds."""
    at = constants(logs)
    return numpy.array([math.log(one.seconds(at) / one.measured) for one in rows])


def jacobian(rows: Sequence[Case], logs: numpy.ndarray, here: numpy.ndarray) -> numpy.ndarray:
    points = [logs + STEP * (numpy.arange(len(logs)) == index) for index in range(len(logs))]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(residuals, [(rows, point) for point in points])
    return numpy.stack([(one - here) / STEP for one in found], axis=1)


def weights(rows: Sequence[Case], off: numpy.ndarray) -> numpy.ndarray:
    """Return each row's weight: less for guessed settings, repeated ones and outliers."""
    times = Counter(one.configuration for one in rows)
    noise = numpy.array([NOISE * (1 if one.known else GUESSED) for one in rows])
    repeated = numpy.array([times[one.configuration] ** -0.5 for one in rows])
    # Student's t with 4 degrees of freedom.
    return repeated * (5 / (4 + (off / noise) ** 2)) / noise**2


def solve(
    off: numpy.ndarray, slopes: numpy.ndarray, weight: numpy.ndarray, logs: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the next logarithms, and their posterior covariance."""
    mean, deviation = priors()
    precision = slopes.T @ (weight[:, None] * slopes) + numpy.diag(deviation**-2)
    pull = slopes.T @ (weight * off) + (logs - mean) / deviation**2
    step = numpy.linalg.solve(precision, pull)
    return logs - numpy.clip(step, -0.5, 0.5), numpy.linalg.inv(precision)


def fit(rows: Sequence[Case], logs: numpy.ndarray, rounds: int = 7):
    """Return fitted logarithms, covariance, and the slopes at the fit."""
    covariance = slopes = None
    for _ in range(rounds):
        off = residuals(rows, logs)
        slopes = jacobian(rows, logs, off)
        logs, covariance = solve(off, slopes, weights(rows, off), logs)
        print(f"  median |log error| {numpy.median(abs(off)):.3f}", file=sys.stderr)
    return logs, covariance, slopes


def left_out(
    rows: Sequence[Case], logs: numpy.ndarray, slopes: numpy.ndarray, key: Callable[[Case], object]
) -> numpy.ndarray:
    """Return each row's residual under constants that were fitted without its group."""
    here = residuals(rows, logs)
    result = numpy.zeros(len(rows))
    for group in sorted({str(key(one)) for one in rows}):
        out = numpy.array([str(key(one)) == group for one in rows])
        kept = [one for one, gone in zip(rows, out) if not gone]
        moved, off = logs, here[~out]
        for _ in range(4):
            moved, _ = solve(off, slopes[~out], weights(kept, off), moved)
            off = here[~out] + slopes[~out] @ (moved - logs)
        held = [one for one, gone in zip(rows, out) if gone]
        result[out] = residuals(held, moved)
    return result


def errors(off: numpy.ndarray) -> str:
    """Return median and 90th percentile of the relative errors, in words."""
    if not len(off):
        return "   -"
    relative = abs(numpy.exp(off) - 1) * 100
    return f"{numpy.median(relative):5.1f} / {numpy.percentile(relative, 90):5.1f} %  ({len(off)})"


SLICES: dict[str, Callable[[Case], bool]] = {
    "all": lambda one: True,
    "settings known": lambda one: one.known,
    "zoo's models": lambda one: one.ours,
    "zoo's models, settings known": lambda one: one.ours and one.known,
    "SimuMax": lambda one: "SimuMax" in one.row["software"],
}


def table(rows: Sequence[Case], off: numpy.ndarray) -> None:
    for name, holds in SLICES.items():
        chosen = numpy.array([holds(one) for one in rows])
        print(f"    {name:32} {errors(off[chosen])}")


def pairs(rows: Sequence[Case], off: numpy.ndarray, least: float = 0.07) -> tuple[int, int]:
    """Return how many pairs of alternatives are in the right order, of how many.

    Alternatives have model, GPU, number of GPUs, sequence and precision in common, software within
    a fifth of a year, known settings, and rates more than `least` apart.
    """
    right = count = 0
    for first in range(len(rows)):
        for second in range(first):
            one, two = rows[first], rows[second]
            same = ("model", "gpu", "gpus", "sequence", "precision", "routing")
            if any(one.row[name] != two.row[name] for name in same):
                continue
            if one.configuration == two.configuration or not (one.known and two.known):
                continue
            if abs(float(one.row["released"]) - float(two.row["released"])) > 0.2:
                continue
            batches = [int(each.row["gbs"]) for each in (one, two)]
            measured = math.log(one.measured / batches[0] / (two.measured / batches[1]))
            if abs(measured) < least:
                continue
            count += 1
            right += (measured + off[first] - off[second]) * measured > 0
    return right, count


def held_against_others(
    rows: Sequence[Case], off: numpy.ndarray, reach: float
) -> dict[str, numpy.ndarray]:
    """Return residuals after anchoring each row to the most similar other one, by kind.

    `off` are residuals under constants that were fitted without the row's model and GPU.
    """
    found: dict[str, list[float]] = {"exact": [], "near": []}
    described = [published.describe(one.shape, one.execution) for one in rows]
    for index, one in enumerate(rows):
        others = [
            (published.distance(other.row, described[index]), number)
            for number, other in enumerate(rows)
            if number != index
            and (other.row["model"], other.row["gpu"]) == (one.row["model"], one.row["gpu"])
        ]
        same = [number for far, number in others if far < anchor.EXACT]
        if same:
            found["exact"].append(off[index] - off[same[0]])
        others = [pair for pair in others if anchor.EXACT <= pair[0] < anchor.FARTHEST]
        if others and one.known:
            far, number = min(others)
            found["near"].append(off[index] - math.exp(-far / reach) * off[number])
    return {kind: numpy.array(each) for kind, each in found.items()}


def bands(rows: Sequence[Case], off: numpy.ndarray) -> dict[str, float]:
    """Return the factors that 80 % of rows are within, and how far an anchor reaches."""
    reaches = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0)
    reach = min(
        reaches,
        key=lambda one: float(
            numpy.quantile(abs(held_against_others(rows, off, one)["near"]), 0.8)
        ),
    )
    anchored = held_against_others(rows, off, reach)
    known_rows = off[numpy.array([one.known for one in rows])]
    found = {"alone": known_rows, **anchored}
    for kind, each in found.items():
        print(f"    {kind:32} {errors(each)}")
    factors = {
        kind: round(math.exp(float(numpy.quantile(abs(each), 0.8))), 3)
        for kind, each in found.items()
    }
    return {**factors, "reach": reach}


# Pairs of published rows that differ in one thing, by what changes: TFLOPS before and after.
GAINS = (
    ("Qwen3-235B H100: expert overlap", "245", "276"),
    ("Qwen3-235B H100: graphs of the router", "276", "320"),
    ("Qwen3-30B H100: expert overlap", "244.039", "287.305"),
    ("Qwen3-235B H100 TP4 EP8 to TP2 EP32", "167", "245"),
    ("Qwen3-235B H100 PP32 to PP8", "200", "245"),
    ("Qwen3-235B H100 16k: balance", "237", "295"),
    ("Qwen3-235B H100 32k: balance", "277", "335"),
    ("Qwen3-235B H100 64k: balance", "320", "368"),
    ("Qwen3-235B H100 128k: balance", "357", "389"),
    ("Mixtral-8x22B H100: balance", "445", "465"),
    ("Mixtral-8x22B H100: FP8", "465", "560"),
    ("Qwen3-235B GB200: full graphs", "1018", "1159.5"),
    ("DeepSeek-V3 GB200: fused permutation", "494.46", "529.55"),
    ("DeepSeek-V3 GB200: fused router", "529.55", "540.0"),
    ("DeepSeek-V3 GB200: DeepEP", "540.0", "566.07"),
    ("DeepSeek-V3 GB200: less recomputed", "566.07", "610.71"),
    ("DeepSeek-V3 GB200: graphs", "610.71", "663.27"),
    ("DeepSeek-V3 GB200: tuned DeepEP, bound processes", "663.27", "762.12"),
    ("DeepSeek-V3 GB200: HybridEP", "829.93", "943.56"),
    ("DeepSeek-V3 GB200: the whole series", "494.46", "970.01"),
)


def gains(rows: Sequence[Case], off: numpy.ndarray) -> None:
    """Print what single changes gained, measured and projected."""
    places = {one.row["tflops"]: index for index, one in enumerate(rows)}
    for what, before, after in GAINS:
        one, two = places[before], places[after]
        measured = float(after) / float(before)
        there = measured * math.exp(off[one] - off[two])
        print(f"    {what:50} {measured - 1:+6.1%} {there - 1:+6.1%}")


def ordered(rows: Sequence[Case], off: numpy.ndarray) -> None:
    right, count = pairs(rows, off)
    print(f"    order of alternatives more than 7 % apart: {right} of {count}")


def write(logs: numpy.ndarray, covariance: numpy.ndarray) -> None:
    """Write the fitted values and their posterior deviations beside the priors."""
    found = {name: dict(entry) for name, entry in known.described().items()}
    for index, name in enumerate(NAMES):
        entry = found[name]
        found[name] = {
            "value": float(f"{math.exp(logs[index]):.4g}"),
            "prior": entry["prior"],
            "sd": entry["sd"],
            "posterior_sd": round(float(covariance[index, index]) ** 0.5, 3),
            "source": entry["source"],
        }
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    known.DATA.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def listing(rows: Sequence[Case], off: numpy.ndarray) -> None:
    for one, log in sorted(zip(rows, off), key=lambda pair: pair[1]):
        row = one.row
        print(
            f"{(math.exp(log) - 1) * 100:+6.1f} %  {'' if one.known else '?'}{row['model']} {row['gpu']}x"
            f"{row['gpus']} {row['precision']} S{row['sequence']} TP{row['tp']} PP{row['pp']} VPP"
            f"{row['vpp']} EP{row['ep']} CP{row['cp']} MBS{row['mbs']} GBS{row['gbs']} {row['dispatcher']} "
            f"{row['recompute']} [{row['graphs'].replace('moe_', '')}] ov{row['overlap']} {row['routing'][:9]} "
            f"{row['also']} {row['software'][-14:]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--rows", type=Path, default=published.DATA)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="no cross-validation")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    rows = cases(chosen.rows)
    mean, _ = priors()
    logs, slopes = mean, None
    if chosen.fit:
        start = (
            mean
            if "value" not in known.described()["power"]
            else numpy.log(dataclasses.astuple(known.fitted()))
        )
        logs, covariance, slopes = fit(rows, start, chosen.rounds)
        write(logs, covariance)
        known.fitted.cache_clear()
        for name, value, before, sd, post in zip(
            NAMES, numpy.exp(logs), numpy.exp(mean), priors()[1], numpy.diag(covariance) ** 0.5
        ):
            print(f"  {name:22} {before:10.4g} -> {value:10.4g}   sd {sd:.2f} -> {post:.2f}")
    elif "value" in known.described()["power"]:
        logs = numpy.log(dataclasses.astuple(known.fitted()))
    off = residuals(rows, logs)
    if chosen.list:
        listing(rows, off)
    print("median / 90th percentile of |error| (rows)")
    print("  in sample" if chosen.rows == published.DATA else "  rows of the file")
    table(rows, off)
    ordered(rows, off)
    if chosen.rows != published.DATA or chosen.quick:
        return
    if slopes is None:
        slopes = jacobian(rows, logs, off)
    folds: dict[str, Callable[[Case], object]] = {
        "model and GPU left out": lambda one: (one.row["model"], one.row["gpu"]),
        "model left out": lambda one: one.row["model"].replace("-4layers", ""),
        "GPU left out": lambda one: one.row["gpu"],
    }
    left = off
    for name, key in folds.items():
        held = left_out(rows, logs, slopes, key)
        print(f"  {name}")
        table(rows, held)
        if name == "model and GPU left out":
            left = held
        ordered(rows, held)
    print("  anchored to the most similar other row, under constants fitted without model and GPU")
    there = bands(rows, left)
    print(f"    80 % are within: {there}")
    if chosen.fit:
        anchor.BANDS.write_text(json.dumps(there, indent=1) + "\n", encoding="utf-8")
    print("  gains of single changes: measured, projected (in sample)")
    gains(rows, off)
    print("  priors alone")
    table(rows, residuals(rows, mean))


if __name__ == "__main__":
    main()
