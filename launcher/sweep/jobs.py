"""The jobs of a sweep in Slurm: find their states, and wait for room for the next one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import yaml

from launcher.errors import UsageError
from launcher.run import slurm
from launcher.sweep.state import State


def settle(state: State) -> None:
    """Find the outcome of submissions that a crash or a silent Slurm interrupted."""
    for key, facts in list(state.points.items()):
        if "run_dir" in facts and not {"job_id", "refused"} & facts.keys():
            job_id = _job_of(Path(facts["run_dir"]))
            state.note(key, **({"job_id": job_id} if job_id else {"refused": "never submitted"}))


def _job_of(run_dir: Path) -> str | None:
    """Return the job of a run directory, from its notes, its log, or Slurm's queue."""
    notes = run_dir / "submission.yaml"
    known = yaml.safe_load(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    if "job_id" in known:
        return known["job_id"]
    if (run_dir / "log").is_symlink():  # the job itself makes this link
        return (run_dir / "log").resolve().stem
    try:
        found = slurm.find(run_dir / "job.sh")
    except slurm.NoAnswer as error:
        raise UsageError(
            f"nobody can tell whether {run_dir} was submitted: {error}; "
            "nothing was submitted now, try again"
        ) from None
    if found:
        return found.job_id
    left = notes.stat().st_mtime + slurm.SUBMIT_SECONDS - time.time() if known else 0
    if "unanswered" in known and left > 0:
        raise UsageError(
            f"{run_dir} was submitted a moment ago without an answer, and Slurm may still take it; "
            f"try again in {left:.0f} s"
        )
    return None


def make_room(limit: int, state: State, why: str) -> None:
    """Wait until fewer than `limit` of the sweep's jobs wait or run."""
    scripts = {
        f"{facts['run_dir']}/job.sh" for facts in state.points.values() if "run_dir" in facts
    }
    shown, since = "", time.monotonic()
    while scripts:
        try:
            live = [
                queued.state
                for queued in slurm.queue()
                if queued.script in scripts and not slurm.is_over(queued.state)
            ]
            if len(live) < limit:
                return
            running = live.count("RUNNING")
            line = f"{running} jobs run, {len(live) - running} wait; {why}"
        except slurm.NoAnswer as error:
            line = f"Slurm does not answer: {error}"
        if line != shown:
            say(line)
            shown, since = line, time.monotonic()
        time.sleep(slurm.interval(time.monotonic() - since))


def states_of(state: State) -> dict[str, str]:
    """Return Slurm's state of each submitted point, and record the final ones."""
    try:
        queued = {each.script: each.state for each in slurm.queue()}
        states = {}
        for key, facts in list(state.points.items()):
            if "job_id" not in facts:
                continue
            name = queued.get(f"{facts['run_dir']}/job.sh") or facts.get("ended")
            if name is None:
                known = slurm.state(facts["job_id"])
                name = known.name if known else "ENDED"
            if slurm.is_over(name) and name != facts.get("ended"):
                state.note(key, ended=name)
            states[key] = name
    except slurm.NoAnswer as error:
        raise UsageError(f"{error}; the same command shows the results later") from None
    return states


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
