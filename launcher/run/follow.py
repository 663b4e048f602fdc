"""WAIT=1: a submitted job, watched to its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launcher.report import training_log
from launcher.run import slurm


def follow(job_id: str, run_dir: Path) -> tuple[str, int]:
    """Show a job's progress on stderr until its run is over; return the last job's id and status.

    A job that continues the run is followed in turn. Raises KeyboardInterrupt when the user stops
    watching, which does not touch the job.
    """
    shown, before, since = "", None, time.monotonic()
    reader = training_log.Reader()
    while True:
        try:
            state = slurm.state(job_id)
            line = f"job {job_id} {progress(state, run_dir, reader)}"
        except slurm.NoAnswer as error:
            state, line = slurm.State("UNKNOWN"), f"job {job_id}: no answer: {error}"
        if line != shown:
            _say(line)
            shown = line
        if state != before:  # soon after a change there is often another
            before, since = state, time.monotonic()
        if state is None or state.over:
            following = _continued(job_id, run_dir)
            if following is None:
                _say("")
                return job_id, 1 if state is None else state.status
            if following != job_id:
                job_id = following
                continue
        time.sleep(slurm.interval(time.monotonic() - since))


def progress(
    state: slurm.State | None, run_dir: Path, reader: training_log.Reader | None = None
) -> str:
    """Return one line: the state, why it waits, and how far the log has come.

    `reader` reads on from where it was; without, the log is read from its start.
    """
    if state is None:
        return f"is no longer known to Slurm; its log is {run_dir}/log"
    waits = state.name == "PENDING" and state.reason
    words = [f"{state.name} ({state.reason})" if waits else state.name]
    if state.restarts:
        words.append(f"requeued {state.restarts}×")
    log = (reader or training_log.Reader()).read(run_dir / "log")
    if log.newest:
        last = log.newest
        recent = [each.seconds for each in log.iterations[-10:] if each.seconds is not None]
        words.append(f"iteration {last.number}/{last.total}")
        if last.tflops is not None:
            words.append(f"{last.tflops:.1f} TFLOPS/GPU")
        if recent and state.name == "RUNNING":
            left = (last.total - last.number) * sum(recent) / len(recent)
            words.append(f"{duration(left)} left")
    return "  ".join(words)


def duration(seconds: float) -> str:
    """Return seconds as H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _continued(job_id: str, run_dir: Path) -> str | None:
    """Return the job that goes on with the run; `job_id` itself where Slurm does not answer."""
    try:
        found = slurm.find(run_dir / "job.sh")
    except slurm.NoAnswer:
        return job_id
    # One that is over already has the run's last word too.
    return found.job_id if found and int(found.job_id) > int(job_id) else None


def _say(line: str) -> None:
    """Write a line to stderr; on a terminal it takes the place of the one before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}" if line else "", end="" if line else "\n", file=sys.stderr)
        sys.stderr.flush()
    elif line:
        print(line, file=sys.stderr, flush=True)
