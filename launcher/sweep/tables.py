"""The tables of a sweep: its plan, and its results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.config.gpus import GPUS
from launcher.report import steady, training_log
from launcher.report.training_log import Log
from launcher.sweep.points import Planned


def plan_table(planned: Sequence[Planned], points: Mapping[str, Mapping[str, str]]) -> str:
    """Return the plan: each point, its world size, its memory, and whether it can be submitted."""
    rows = [("#", "point", "ranks", "GiB", "plan")]
    for number, each in enumerate(planned, 1):
        gib = "-" if each.gib is None else f"{each.gib:.0f}"
        job_id = points.get(each.point.key, {}).get("job_id")
        verdict = f"submitted, job {job_id}" if job_id else _verdict(each)
        rows.append((str(number), each.point.label, str(each.ranks or "-"), gib, verdict))
    return _columns(rows)


def _verdict(planned: Planned) -> str:
    if planned.refusal:
        return f"refused: {planned.refusal}"
    gpu = planned.request.settings.GPU if planned.request else None
    room = GPUS[gpu].memory if gpu and gpu in GPUS else None
    if planned.gib is not None and room is not None and planned.gib > room:
        return f"ok, but seems not to fit {gpu} ({room:.0f} GiB)"
    return "ok"


def result_table(
    planned: Sequence[Planned],
    points: Mapping[str, Mapping[str, str]],
    states: Mapping[str, str],
) -> str:
    """Return the result of each point: job, state, progress, median throughput, run directory."""
    rows = [("#", "point", "job", "state", "iteration", "TFLOPS/GPU", "run directory")]
    for number, each in enumerate(planned, 1):
        facts = points.get(each.point.key, {})
        log = training_log.read(Path(facts["run_dir"]) / "log") if "run_dir" in facts else Log()
        counted = steady.window(log.iterations).counted
        speeds = [one.tflops for one in counted if one.tflops is not None]
        rows.append(
            (
                str(number),
                each.point.label,
                facts.get("job_id", "-"),
                states.get(each.point.key, "refused" if "refused" in facts else "-"),
                f"{log.newest.number}/{log.newest.total}" if log.newest else "-",
                f"{statistics.median(speeds):.1f}" if speeds else "-",
                facts.get("run_dir", "-"),
            )
        )
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
