"""The condition of a run: what Slurm says of its jobs, and how far its log has come."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from launcher.desk.runs import Run
from launcher.records import dataclass
from launcher.report import steady, training_log
from launcher.report.lines import Iteration
from launcher.run import slurm


@dataclass(frozen=True)
class Condition:
    """The state of a run."""

    state: str  # Slurm's, or a local run's, in the same words
    reason: str = ""  # why it waits
    job_id: str = ""  # its newest job
    live: bool = False  # whether a job of it waits or runs


@dataclass(frozen=True)
class Progress:
    """How far a run's log has come."""

    newest: Iteration | None  # the last iteration
    tflops: float | None  # a GPU, in the steady state
    seconds: float | None  # of a step there
    left: float | None  # seconds, at that speed


def of(
    run: Run,
    queue: Sequence[slurm.Queued],
    accounted: Mapping[str, slurm.State] | None = None,
) -> Condition:
    """Return a run's condition.

    `queue` are the user's jobs. `accounted` is what the accounting keeps of older ones; without, it
    is asked.
    """
    if run.is_local:
        return _local(run)
    own = [job for job in queue if job.script == run.script]
    newest = max((int(job.job_id) for job in own), default=0)
    for job in own:
        if int(job.job_id) == newest:
            live = not slurm.is_over(job.state)
            waits = job.state == "PENDING" and job.reason != "None"
            return Condition(job.state, job.reason if waits else "", job.job_id, live)
    if not run.jobs:
        return Condition("NOT SUBMITTED", str(run.notes.get("failed", "")))
    if accounted is None:
        accounted = slurm.accounted(run.jobs[-1:])
    if run.jobs[-1] in accounted:
        known = accounted[run.jobs[-1]]
        return Condition(known.name, known.reason, run.jobs[-1], not known.over)
    return Condition(_noted(run) or "ENDED", "", run.jobs[-1])


def _local(run: Run) -> Condition:
    noted = _noted(run)
    if noted:
        return Condition(noted)
    if process(run):
        return Condition("RUNNING", live=True)
    here = run.notes.get("host") in (None, socket.gethostname())
    return Condition("STOPPED" if here else "UNKNOWN", "" if here else f"on {run.notes['host']}")


def _noted(run: Run) -> str:
    """Return the end that the run's own record has, in Slurm's words; '' where it has none."""
    verdict = str(run.notes.get("verdict", ""))
    if verdict.startswith("FAILED"):
        return "FAILED"
    return {"interrupted": "CANCELLED"}.get(verdict, "COMPLETED") if verdict else ""


def process(run: Run) -> int | None:
    """Return the process of a local run that works on this machine."""
    number = run.notes.get("pid")
    if not isinstance(number, int) or run.notes.get("host") != socket.gethostname():
        return None
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    own = run.script in words or "torch.distributed.run" in words
    return number if own and "verdict" not in run.notes else None


def progress(run: Run) -> Progress:
    """Read a run's log."""
    if not (run.path / "log").exists():
        return Progress(None, None, None, None)
    log = training_log.read(run.path / "log")
    counted = steady.window(log.iterations).counted
    times = [one.seconds for one in counted or log.iterations if one.seconds is not None]
    seconds = sorted(times)[len(times) // 2] if times else None
    last = log.newest
    left = (last.total - last.number) * seconds if last and seconds is not None else None
    return Progress(last, steady.tflops(log.iterations), seconds, left)


def speed(progress: Progress) -> str:
    """Return TFLOPS/GPU, or the time of a step where the log has no such number."""
    if progress.tflops:
        return f"{progress.tflops:.1f} TFLOPS/GPU"
    return f"{progress.seconds:.2f} s a step" if progress.seconds is not None else "-"


def age(since: datetime) -> str:
    """Return how long ago something was: 40 s, 12 min, 5 h, 3 d."""
    seconds = max(0.0, (datetime.now() - since).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
