"""One job handed to Slurm: submitted, refused, or nobody knows; its run directory says which."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from launcher.config.arguments import quote
from launcher.errors import UsageError
from launcher.job import shell
from launcher.job.draft import Job
from launcher.run import directory, slurm


class Refusal(UsageError):
    """Slurm refused this job: it is certain that there is none."""


def hand_over(job: Job, environ: Mapping[str, str], keep_open: Sequence[int] = ()) -> str:
    """Submit the job to Slurm, return its id; the run directory says what happened in any case.

    Raises Refusal, UsageError when Slurm does not answer, and KeyboardInterrupt.
    """
    script = job.run_dir / "job.sh"
    directory.record(job, script=str(script), submitting=time.strftime("%F %T"))
    known = slurm.partitions()
    try:
        if not job.settings.FORCE:
            _check_nodes(job, known)
        job_id = slurm.sbatch(script, shell.for_sbatch(environ), keep_open)
    except slurm.Refused as error:
        refusal = f"Slurm refused the job: {error}.{advice(job, str(error), known)}"
        directory.record(job, failed=refusal)
        raise Refusal(f"{refusal} (run directory {job.run_dir})") from None
    except (slurm.NoAnswer, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        why = "sbatch was interrupted" if interrupted else str(error)
        job_id = _look_up(job, why)
        if interrupted:
            print(
                f"interrupted: job {job_id} is submitted; scancel {job_id} cancels it",
                file=sys.stderr,
            )
            raise
    directory.record(job, job_id=job_id)
    return job_id


def limit(job_id: str) -> str:
    """Return the limit that keeps a new job from starting, in Slurm's words; '' for none."""
    try:
        state = slurm.state(job_id)
    except slurm.NoAnswer:
        return ""
    limits = ("Account", "Assoc", "Bad", "Invalid", "Partition", "QOS")
    return state.reason if state and state.reason.startswith(limits) else ""


def _look_up(job: Job, why: str) -> str:
    """Return the id of the job that an sbatch without an answer left behind. Raises UsageError."""
    try:
        found = slurm.find(job.run_dir / "job.sh")
        sure = "Slurm has no such job yet"
    except slurm.NoAnswer as error:
        found, sure = None, str(error)
    if found:
        directory.record(job, unanswered=why, job_id=found.job_id)
        return found.job_id
    directory.record(job, unanswered=why)
    raise UsageError(
        f"{why}, and {sure}: the job may or may not have been submitted. Look for it with "
        f"squeue --me --name={quote(job.name)} (run directory {job.run_dir})"
    )


def _check_nodes(job: Job, known: Sequence[slurm.Partition]) -> None:
    """Raise Refused for more nodes than there are: many Slurms let such a job wait for ever."""
    names = (job.settings.PARTITION or "").split(",")
    wanted = [each for each in known if each.name in names or (names == [""] and each.default)]
    if wanted and job.nodes > max(each.nodes for each in wanted):
        raise slurm.Refused(f"{job.nodes} nodes are more than the partition has")


# Words of Slurm's refusals and of its reasons to wait, and the variable that each is about.
_ABOUT = {
    "account": "ACCOUNT",
    "partition": "PARTITION",
    "node": "NNODES",
    "processors": "NNODES",
    "time limit": "RUN_TIME",
    "timelimit": "RUN_TIME",
    "maxwall": "RUN_TIME",
    "segment": "SEGMENT",
    **dict.fromkeys(
        (
            *("qos", "constraint", "feature", "generic resource", "gres", "reservation", "license"),
            *("cpu count", "memory", "wckey", "dependency", "switches", "unrecognized option"),
            *("mail", "signal", "burst buffer", "begin time", "invalid numeric value"),
        ),
        "SBATCH_OPTIONS",
    ),
}


def advice(job: Job, reason: str, known: Sequence[slurm.Partition] = ()) -> str:
    """Return what to do about a refusal: the variables that Slurm did not like, their choices."""
    names = sorted({name for word, name in _ABOUT.items() if word in reason.lower()})
    # A width of each task is no number of nodes, whatever else Slurm says of nodes then.
    if "SBATCH_OPTIONS" in names and "NNODES" in names and "more nodes" not in reason.lower():
        names.remove("NNODES")
    names = [name for name in names if getattr(job.settings, name) is not None]
    given = [
        f"{name}={quote(str(getattr(job.settings, name)))} (set by {job.settings.origin(name)})"
        for name in names
    ]
    if slurm.unconfigured(reason):
        return (
            " This machine has no Slurm configuration: submit from a login node, or let SLURM_CONF "
            "name its slurm.conf."
        )
    words = [f"Change {' or '.join(given)}"] if given else []
    if given and known:
        words.append(f"Partitions here: {', '.join(map(str, known))}")
    return "".join(f" {each}." for each in words)
