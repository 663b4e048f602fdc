"""`moe-zoo status` and `moe-zoo list runs`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import terminal
from launcher.desk import condition, runs
from launcher.desk.runs import Run
from launcher.errors import UsageError
from launcher.run import slurm
from launcher.run.follow import duration


def status(words: Sequence[str]) -> int:
    """Print the state of runs; without words of those that wait or run, or else of the newest."""
    queue = runs.asked()
    if words:
        chosen = [runs.named(word, os.environ) for word in words]
    else:
        known = runs.all_of(runs.places(os.environ), queue)
        live = [run for run in known if condition.of(run, queue).live]
        chosen = live or known[:1]
    if not chosen:
        raise UsageError("no run was found; OUTPUT_PATH, CLUSTER or a word says where to look")
    for run in chosen:
        print("\n".join(_told(run, queue)))
    return 0


def _told(run: Run, queue: Sequence[slurm.Queued]) -> list[str]:
    """Return one run's lines."""
    now, far = condition.of(run, queue), condition.progress(run)
    job = f"job {now.job_id}, " if now.job_id else ""
    count = f", {len(run.jobs)} jobs so far" if len(run.jobs) > 1 else ""
    lines = [
        run.path.name,
        f"  state     {now.state}{f' ({now.reason})' if now.reason else ''}; "
        f"{job}submitted {condition.age(run.since)} ago{count}",
    ]
    if run.plan:
        nodes, tasks = run.plan.get("nodes"), run.plan.get("tasks_per_node")
        lines.append(
            f"  job       {run.plan.get('model')} on {run.plan.get('cluster')}: "
            f"{nodes} node{'s' if nodes != 1 else ''} × {tasks}"
        )
    if far.newest:
        left = f"; {duration(far.left)} left" if now.live and far.left is not None else ""
        loss = f", loss {far.newest.loss:.4f}" if far.newest.loss is not None else ""
        lines.append(
            f"  progress  iteration {far.newest.number}/{far.newest.total}{loss}, "
            f"{condition.speed(far)}{left}"
        )
    if run.notes.get("verdict") and not now.live:
        lines.append(f"  end       {run.notes['verdict']}")
    return [*lines, f"  folder    {run.path}"]


def table(folders: Sequence[str]) -> int:
    """Print the runs below folders (of OUTPUT_PATH or CLUSTER without any), the newest first."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(f"{folder}: there is no such folder")
    queue = runs.asked()
    places = [Path(folder).absolute() for folder in folders] or runs.places(os.environ)
    known = runs.all_of(places, queue)
    if not known:
        print(f"no runs below {', '.join(map(str, places))}", file=sys.stderr)
        return 0
    accounted = slurm.accounted([run.jobs[-1] for run in known if run.jobs])
    rows = [("run", "state", "age", "job", "iteration", "speed", "folder")]
    for run in known:
        now, far = condition.of(run, queue, accounted), condition.progress(run)
        rows.append(
            (
                run.path.name,
                now.state,
                condition.age(run.since),
                now.job_id or "-",
                f"{far.newest.number}/{far.newest.total}" if far.newest else "-",
                condition.speed(far),
                str(run.path.parent.parent),
            )
        )
    print(terminal.table(rows, terminal.width(sys.stdout)))
    return 0
