"""The tables of a sweep: its plan, and its results."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import terminal
from launcher.config.gpus import GPUS
from launcher.report import steady, training_log
from launcher.report.training_log import Log
from launcher.sweep.points import Planned

FORMATS = ("csv", "json")


def shown(rows: Sequence[Sequence[str]], form: str) -> str:
    """Return rows as a table for people, or as CSV or JSON for tools; '-' is nothing there."""
    if not form:
        return terminal.table(rows, terminal.width(sys.stdout))
    names = [name.lower().replace(" ", "_") for name in rows[0]]
    cells = [[None if cell == "-" else cell for cell in row] for row in rows[1:]]
    if form == "json":
        return json.dumps([dict(zip(names, row)) for row in cells], indent=2, ensure_ascii=False)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *cells])
    return text.getvalue().rstrip("\n")


def plan_rows(
    planned: Sequence[Planned], points: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, ...]]:
    """Return the plan: each point, its world size, its memory, and whether it can be submitted."""
    rows = [("#", "point", "ranks", "GiB", "plan")]
    for number, each in enumerate(planned, 1):
        gib = "-" if each.gib is None else f"{each.gib:.0f}"
        job_id = points.get(each.point.key, {}).get("job_id")
        verdict = f"submitted, job {job_id}" if job_id else _verdict(each)
        rows.append((str(number), each.point.label, str(each.ranks or "-"), gib, verdict))
    return rows


def _verdict(planned: Planned) -> str:
    if planned.refusal:
        return f"refused: {planned.refusal}"
    gpu = planned.request.settings.GPU if planned.request else None
    room = GPUS[gpu].memory if gpu and gpu in GPUS else None
    if planned.gib is not None and room is not None and planned.gib > room:
        return f"ok, but seems not to fit {gpu} ({room:.0f} GiB)"
    return "ok"


def result_rows(
    planned: Sequence[Planned],
    points: Mapping[str, Mapping[str, str]],
    states: Mapping[str, str],
) -> list[tuple[str, ...]]:
    """Return the result of each point: job, state, progress, median throughput, run directory."""
    rows = [("#", "point", "job", "state", "iteration", "TFLOPS/GPU", "run directory")]
    for number, each in enumerate(planned, 1):
        facts = points.get(each.point.key, {})
        log = training_log.read(Path(facts["run_dir"]) / "log") if "run_dir" in facts else Log()
        speed = steady.tflops(log.iterations)
        rows.append(
            (
                str(number),
                each.point.label,
                facts.get("job_id", "-"),
                states.get(each.point.key, "refused" if "refused" in facts else "-"),
                f"{log.newest.number}/{log.newest.total}" if log.newest else "-",
                f"{speed:.1f}" if speed is not None else "-",
                facts.get("run_dir", "-"),
            )
        )
    return rows
