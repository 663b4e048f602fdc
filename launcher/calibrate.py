"""`python3 -m launcher calibrate`: what this cluster reaches, for the projection.

Without a run it measures this node's GPU; with runs it takes over what they reached.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import ROOT
from launcher.config.gpus import Known
from launcher.config.settings import Settings, unfilled
from launcher.errors import UsageError
from launcher.job import training
from launcher.plan.projection import calibration
from launcher.plan.projection.constants import GPUS, fitted
from launcher.report import steady, training_log

PROGRAM = ROOT / "launcher" / "megatron" / "measure.py"
# A measured rate far from its fitted share is a fault of the measurement, a shared GPU, say.
PLAUSIBLE = (0.4, 1.6)
FEWEST = 5  # steady steps


def calibrate(settings: Settings, words: tuple[str, ...]) -> int:
    """Measure the GPU, or take over runs, and write the result. Raises UsageError."""
    if unfilled(settings, "OUTPUT_PATH"):
        raise UsageError(
            f"OUTPUT_PATH={settings.OUTPUT_PATH!r} ({settings.origin('OUTPUT_PATH')}) still has a "
            "placeholder: calibration.json belongs where the jobs write"
        )
    if words and not words[0].startswith("-"):
        for word in words:
            if not Path(word).is_dir():
                raise UsageError(f"calibrate: {word!r} is no folder of a run")
        return take_over(settings, [Path(run) for run in words])
    return measure(settings, _seconds(words))


def _seconds(words: Sequence[str]) -> Sequence[str]:
    """Return the words that say how long to measure, checked. Raises UsageError."""
    name, _, text = " ".join(words).replace("=", " ", 1).partition(" ")
    if words and name != "--seconds":
        raise UsageError(f"calibrate has no option {name!r}: it takes --seconds SECONDS, or runs")
    if words and not re.fullmatch(r"\d+(\.\d+)?", text):
        raise UsageError(f"calibrate --seconds {text!r}: a number of seconds is needed")
    return words


def take_over(settings: Settings, runs: Sequence[Path]) -> int:
    """Add what runs reached to the measurements that jobs like them are held against."""
    path = Path(settings.OUTPUT_PATH) / calibration.FILE
    content = calibration.load(path)
    known = {row["source"]: row for row in content.get("runs", [])}
    for run in runs:
        row = reached(run)
        known[row["source"]] = row
        print(f"{run.name}: {float(row['seconds']):.3g} s a step")
    content["runs"] = list(known.values())
    calibration.write(path, content)
    print(f"written to {path}")
    return 0


def reached(run: Path) -> dict[str, str]:
    """Return a run as a row of published.csv. Raises UsageError where it tells no step time."""
    try:
        plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{run} has no plan.json to read: {error}") from None
    projected = plan.get("projection")
    if not projected:
        raise UsageError(f"{run}: its plan has no projection, so its figures say nothing of others")
    counted = steady.window(training_log.read(run / "log").iterations).counted
    steps = [one.seconds for one in counted if one.seconds]
    if len(steps) < FEWEST:
        raise UsageError(f"{run / 'log'} has {len(steps)} steady steps; {FEWEST} are needed")
    seconds = statistics.median(steps)
    tflops = projected["tflops_per_gpu"] * projected["seconds"] / seconds
    return {
        **projected["settings"],
        "seconds": f"{seconds:.5g}",
        "tflops": f"{tflops:.5g}",
        "software": f"Megatron-Core {plan['megatron_core']}",
        "source": str(run),
    }


def measure(settings: Settings, words: Sequence[str]) -> int:
    """Measure this node's GPU, show it beside the fitted constants, and write."""
    python, _ = training.python(settings)
    done = subprocess.run(
        [str(python), str(PROGRAM), *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise UsageError(f"{PROGRAM.name} failed with status {done.returncode}")
    measured = json.loads(done.stdout)
    path = Path(settings.OUTPUT_PATH) / calibration.FILE
    for line in told(measured):
        print(line)
    gpu = named(measured["device"])
    if gpu is None:
        print(f"{measured['device']} is no GPU that the projection knows: nothing was written")
        return 0
    found = constants(measured, GPUS[gpu])
    for name, value in found.items():
        print(f"{name:22} {value:.3f} measured, {getattr(fitted(), name):.3f} fitted")
    content = calibration.load(path)
    content["constants"] = {**content.get("constants", {}), **found}
    calibration.write(path, content)
    print(f"written to {path}")
    return 0


def named(device: str) -> str | None:
    """Return the GPU of constants.GPUS that a device's name speaks of, the longest match."""
    return max((name for name in GPUS if name in device), key=len, default=None)


def constants(measured: Mapping[str, Any], gpu: Known) -> dict[str, float]:
    """Return the constants that measurements replace, by name; implausible ones stay as fitted.

    Products and attention share the clock that the power limit leaves: on Blackwell the share is
    that of a GPU of 1,200 W, to which the projection refers.
    """
    kind = "blackwell" if gpu.blackwell else "hopper"
    known = fitted()
    clock = (gpu.watts / 1200) ** known.power if gpu.blackwell else 1.0
    ultra = known.ultra if gpu.ultra else 1.0
    shares = {
        f"e_bf16_{kind}": (measured["bf16"], gpu.bf16 * clock),
        f"e_fp8_{kind}": (measured["fp8"], gpu.fp8 * clock),
        f"e_attention_{kind}": (measured["attention"], gpu.bf16 * clock * ultra),
    }
    found = {}
    for name, (rate, peak) in shares.items():
        if rate is None:
            continue
        share = rate / peak
        if PLAUSIBLE[0] < share / getattr(known, name) < PLAUSIBLE[1]:
            found[name] = round(share, 4)
    return found


def told(measured: Mapping[str, Any]) -> list[str]:
    """Return what was measured, a line each."""
    rows = [
        ("product, BF16", measured["bf16"], 1e12, "TFLOP/s"),
        ("product, FP8", measured["fp8"], 1e12, "TFLOP/s"),
        ("attention", measured["attention"], 1e12, "TFLOP/s"),
        ("element-wise kernel", measured["memory"], 1e9, "GB/s"),
        ("start of an operation", measured["operation"], 1e-6, "µs"),
        ("all-to-all", measured.get("all_to_all"), 1e9, "GB/s"),
    ]
    return [
        f"{what:22} {number / unit:.4g} {name}"
        for what, number, unit, name in rows
        if number is not None
    ]
