"""Slurm's own commands, each with a time limit: Slurm may hang, the user must not.

Nothing here needs accounting: what a job became is asked of the controller first, of sacct second.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.job import shell
from launcher.records import dataclass

SUBMIT_SECONDS = 120  # sbatch itself goes on asking a busy controller for about as long
ASK_SECONDS = 15
_OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
_STATE = re.compile(r"^ +JobState=(\S+) Reason=(.*?) Dependency=", re.MULTILINE)
_EXIT = re.compile(r"^ +.*\bRestarts=(\d+) .*\bExitCode=(\d+):(\d+)", re.MULTILINE)


class Refused(Exception):
    """Slurm said no; its own words, in one line."""


class NoAnswer(Exception):
    """Slurm did not answer, so what was asked may or may not have happened; why, in one line."""


@dataclass(frozen=True)
class State:
    """What Slurm knows of a job."""

    name: str  # PENDING, RUNNING, COMPLETED, …
    reason: str = ""  # why it waits
    restarts: int = 0  # times it was requeued
    status: int = 0  # exit status, meaningful when over

    @property
    def over(self) -> bool:
        """Whether the job has ended for good."""
        return is_over(self.name)


@dataclass(frozen=True)
class Queued:
    """One line of squeue."""

    job_id: str
    state: str
    reason: str
    script: str  # the path that was submitted


@dataclass(frozen=True)
class Partition:
    """One partition, as sinfo shows it."""

    name: str
    default: bool
    nodes: int
    limit: str  # of a job's time

    def __str__(self) -> str:
        return f"{self.name} ({self.nodes} node{'s'[: self.nodes > 1]}, up to {self.limit})"


def unconfigured(reason: str) -> bool:
    """Say whether Slurm's words mean that its programs are here and no cluster is."""
    return "resolve_ctls_from_dns_srv" in reason or "configuration source" in reason


def is_over(state: str) -> bool:
    """Say whether a job in this state has ended for good."""
    return state in _OVER


def interval(waited: float) -> float:
    """Return the seconds until Slurm is asked again, after `waited` seconds of no change."""
    return min(15.0, 1 + waited / 20)


def sbatch(script: Path, environ: Mapping[str, str], keep_open: Sequence[int] = ()) -> str:
    """Submit a script, return the job's id. Raises Refused or NoAnswer.

    `keep_open` are file descriptors that sbatch holds as long as it lives.
    """
    command = ["sbatch", "--parsable", str(script)]
    output = run(command, SUBMIT_SECONDS, environ, keep_open)
    job_id = output.strip().split(";")[0]
    if not job_id.isdigit():
        raise NoAnswer(f"sbatch did not tell a job id but {output.strip()!r}")
    return job_id


def queue() -> list[Queued]:
    """Return the user's jobs, oldest first, with those that ended a moment ago.

    Raises NoAnswer.
    """
    form = "--format=%i|%T|%r|%o"
    try:
        output = run(["squeue", "--me", "--noheader", "--states=all", form], ASK_SECONDS)
    except Refused as error:
        raise NoAnswer(f"squeue: {error}") from None
    rows = [line.split("|", 3) for line in output.splitlines() if line.count("|") >= 3]
    jobs = [Queued(*row) for row in rows if row[0].isdigit()]
    return sorted(jobs, key=lambda job: int(job.job_id))


def find(script: Path) -> Queued | None:
    """Return the newest job that runs this script. Raises NoAnswer."""
    return next((job for job in reversed(queue()) if job.script == str(script)), None)


def state(job_id: str) -> State | None:
    """Return what became of a job; None when Slurm no longer knows it. Raises NoAnswer."""
    try:
        output = run(["scontrol", "show", "job", job_id], ASK_SECONDS)
    except Refused as error:
        if "Invalid job id" not in str(error):
            raise NoAnswer(f"scontrol: {error}") from None
        return accounted([job_id]).get(job_id)
    named, ended = _STATE.search(output), _EXIT.search(output)
    if not named or not ended:
        raise NoAnswer(f"scontrol show job {job_id} could not be read")
    reason = "" if named[2] == "None" else named[2]
    status = _status(named[1], int(ended[2]), int(ended[3]))
    return State(named[1], reason, int(ended[1]), status)


def partitions() -> list[Partition]:
    """Return this cluster's partitions; none where that cannot be told quickly."""
    try:
        output = run(["sinfo", "--noheader", "--format=%P|%D|%l"], ASK_SECONDS)
    except (Refused, NoAnswer):
        return []
    rows = [line.strip().split("|") for line in output.splitlines() if line.count("|") == 2]
    return [
        Partition(name.rstrip("*"), name.endswith("*"), int(nodes), limit)
        for name, nodes, limit in rows
        if nodes.isdigit()
    ]


def accounted(job_ids: Sequence[str]) -> dict[str, State]:
    """Return what the accounting keeps of jobs; nothing where it is off."""
    command = ["sacct", "--allocations", "--noheader", "--parsable2"]
    command += ["--format=JobIDRaw,State,ExitCode", f"--jobs={','.join(job_ids)}"]
    try:
        output = run(command, ASK_SECONDS) if job_ids else ""
    except (Refused, NoAnswer):
        return {}
    return {
        found[1]: State(found[2], status=_status(found[2], int(found[3]), int(found[4])))
        for found in re.finditer(r"^(\d+)\|(\w+)[^|]*\|(\d+):(\d+)", output, re.MULTILINE)
    }


def _status(name: str, code: int, signal: int) -> int:
    """Return the exit status of a job as a shell would have it; never 0 unless it completed."""
    return 0 if name == "COMPLETED" else code or (128 + signal if signal else 1)


def run(
    command: Sequence[str],
    seconds: float,
    environ: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> str:
    """Return what one of Slurm's commands prints. Raises Refused or NoAnswer."""
    try:
        done = subprocess.run(
            command, env=shell.for_slurm(os.environ if environ is None else environ),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, pass_fds=keep_open, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {seconds:g} s") from None
    except OSError as error:
        raise Refused(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode != 0:
        lines = [re.sub(r"^\w+: (error: )?", "", line) for line in done.stderr.splitlines() if line]
        reason = "; ".join(lines) or f"exit status {done.returncode}"
        # The controller may have read the request all the same.
        raise NoAnswer(reason) if "timed out" in reason else Refused(reason)
    return done.stdout
