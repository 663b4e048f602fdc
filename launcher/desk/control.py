"""`moe-zoo cancel` and `moe-zoo resume`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import yaml

from launcher.config.arguments import quote
from launcher.desk import condition, runs
from launcher.desk.runs import Run
from launcher.errors import UsageError
from launcher.job import shell
from launcher.run import directory, slurm, start

SWITCH = ("1", "true")


def cancel(words: Sequence[str]) -> int:
    """Cancel the jobs of runs; return 1 where one had none to cancel."""
    if not words or words[0].startswith("-"):
        raise UsageError("moe-zoo cancel RUN [RUN …]: name a run directory, its name, or a job")
    chosen = [runs.named(word, os.environ) for word in words]
    return max([_cancel(run) for run in chosen])


def _cancel(run: Run) -> int:
    number = condition.process(run)
    if number is not None:
        os.kill(number, signal.SIGTERM)  # torchrun stops its ranks
        print(f"{run.path.name}: stopped")
        return 0
    own = [job for job in runs.asked() if job.script == run.script and not slurm.is_over(job.state)]
    for job in own:
        try:
            slurm.run(["scancel", job.job_id], slurm.ASK_SECONDS)
        except (slurm.Refused, slurm.NoAnswer) as error:
            raise UsageError(f"job {job.job_id} could not be cancelled: {error}") from None
        print(f"{run.path.name}: job {job.job_id} ({job.state}) cancelled")
    if not own:
        state = condition.of(run, runs.asked()).state
        print(f"{run.path.name}: nothing to cancel, {state}", file=sys.stderr)
    return 0 if own else 1


def resume(words: Sequence[str]) -> int:
    """Submit a run's own script again, which goes on after its last checkpoint."""
    if len(words) != 1 or words[0].startswith("-"):
        raise UsageError("moe-zoo resume RUN: name one run directory, its name, or a job of it")
    run = runs.named(words[0], os.environ)
    if run.is_local:
        raise UsageError(
            f"{run.path.name} ran without Slurm: the command that started it, with RESUME=1, "
            "goes on from its checkpoints"
        )
    now = condition.of(run, runs.asked())
    if now.live:
        raise UsageError(f"{run.path.name} is at work already: job {now.job_id} is {now.state}")
    far = condition.progress(run).newest
    if far and far.number >= far.total and os.environ.get("FORCE") not in SWITCH:
        raise UsageError(
            f"{run.path.name} is complete: iteration {far.number}/{far.total}. A launch with "
            "RESUME=1 and more --train-iters goes on from it (FORCE=1 submits this all the same)"
        )
    if not _saves(run):
        print("note: the run saves no checkpoints, so it begins anew", file=sys.stderr)
    if os.environ.get("DRY_RUN") in SWITCH:
        print(f"would submit {run.script}")
        return 0
    start.need_sbatch()
    try:
        job_id = slurm.sbatch(run.path / "job.sh", shell.for_sbatch(os.environ))
    except slurm.Refused as error:
        raise UsageError(f"Slurm refused the job: {error}") from None
    except slurm.NoAnswer as error:
        raise UsageError(
            f"{error}: the job may or may not have been submitted; `moe-zoo status "
            f"{quote(run.path.name)}` tells later"
        ) from None
    directory.note(run.path, job_id=job_id)
    print(f"Submitted batch job {job_id}", f"  run directory  {run.path}", sep="\n")
    return 0


def _saves(run: Run) -> bool:
    try:
        content = yaml.safe_load((run.path / "arguments.yaml").read_text(encoding="utf-8"))
        return "--save" in content["arguments"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return True  # the script decides
