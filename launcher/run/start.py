"""Start a job: check it, give it a run directory, hand it to Slurm or to this machine."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping

from launcher import secrets
from launcher.config.arguments import quote
from launcher.config.settings import placeholders
from launcher.errors import UsageError
from launcher.job import container, verification
from launcher.job.build import build
from launcher.job.draft import Job
from launcher.job.request import Request
from launcher.job.script import render
from launcher.job.summary import tell
from launcher.job.verification import Opinion
from launcher.report import training_log
from launcher.run import directory, ending, follow, here, submission


def start(request: Request) -> int:
    """Check the job, make its run directory, start it, and return the exit status."""
    job, opinion = prepare(request, by_itself=True)
    tell(job, opinion)
    if job.is_local:
        return here.run(job)
    job_id = submission.hand_over(job, request.environ)
    print(
        f"Submitted batch job {job_id}",
        f"  run directory  {job.run_dir}",
        f"  follow         tail -F {quote(f'{job.settings.OUTPUT_PATH}/slurm_logs/{job_id}.log')}",
        f"  state          squeue -j {job_id}",
        f"  cancel         scancel {job_id}",
        sep="\n",
        flush=True,
    )
    for line in container.without_pyxis(job.settings):
        print(f"warning: {line}", file=sys.stderr)
    limit = submission.limit(job_id)
    if limit:
        print(
            f"warning: the job waits for a limit, maybe for ever: {limit}."
            f"{submission.advice(job, limit)}",
            file=sys.stderr,
        )
    return _follow(job, job_id) if job.settings.WAIT else 0


def prepare(request: Request, by_itself: bool = False) -> tuple[Job, Opinion | None]:
    """Return the job, checked, with a run directory of its own, and what Megatron says of it.

    Megatron is asked with VERIFY=1, and `by_itself` where it is here.

    Raises UsageError.
    """
    job = build(request)
    _check_script(job, render(job), request.environ)
    opinion = verification.before_submission(job) if by_itself else verification.wanted(job)
    _check(job, opinion)
    number = directory.create(job.run_dir)
    if number:  # the name was taken by another launch of this second
        job = build(dataclasses.replace(request, number=number))
    directory.fill(job, render(job))
    return job, opinion


def _check_script(job: Job, script: str, environ: Mapping[str, str]) -> None:
    """Raise UsageError for a script that holds a secret or the template's placeholders."""
    secrets.check(script, environ, "the job script")
    left = placeholders(job.settings)
    if left:
        raise UsageError(f"{'; '.join(left)}. Nothing was submitted")


def _check(job: Job, opinion: Opinion | None) -> None:
    """Raise UsageError for whatever else must stop a submission."""
    objections = list(job.objections)
    if not job.is_local:
        objections += container.missing(job.settings)
    if opinion is not None and opinion.refused_by:
        objections.append(f"{opinion.megatron} itself refuses the job: {opinion.message}")
    if objections and not job.settings.FORCE:
        raise UsageError(
            f"{'; '.join(objections)}. Nothing was submitted (FORCE=1 submits all the same)"
        )
    if not job.is_local:
        need_sbatch()


def need_sbatch() -> None:
    """Raise UsageError where there is no Slurm."""
    if not shutil.which("sbatch"):
        raise UsageError(
            "sbatch is not on PATH: submit from a Slurm login node, or preview with DRY_RUN=1"
        )


def _follow(job: Job, job_id: str) -> int:
    """Watch a submitted job to its end, and return its exit status."""
    try:
        job_id, status = follow.follow(job_id, job.run_dir)
    except KeyboardInterrupt:
        print(
            f"\nstopped following; job {job_id} goes on: scancel {job_id} cancels it",
            file=sys.stderr,
        )
        return 130
    return ending.close(job, status, training_log.read(job.run_dir / "log"))
