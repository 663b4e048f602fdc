"""How a run ended: the verdict, said and noted in the run directory."""

from __future__ import annotations

import math
import sys
import time

from launcher.job import training
from launcher.job.draft import Job
from launcher.report import files
from launcher.report.last_words import last_words
from launcher.report.training_log import Log
from launcher.run import directory


def close(job: Job, status: int, log: Log, interrupted: bool = False) -> int:
    """Say and note how the run ended, write its report; return its exit status."""
    losses = [each.loss for each in log.iterations if each.loss is not None]
    verdict, status = ("interrupted", status) if interrupted else _verdict(job, status, losses)
    directory.record(job, finished=time.strftime("%F %T"), status=status, verdict=verdict)
    if status != 0 and not interrupted:
        print(last_words(job.run_dir / "log"), file=sys.stderr)
    if log.newest:
        python, _ = training.python(job.settings)
        for line in files.write(job.run_dir, python):
            print(line, file=sys.stderr)
    print(f"{verdict}\n  results {job.run_dir}", file=sys.stderr)
    return status


def _verdict(job: Job, status: int, losses: list[float]) -> tuple[str, int]:
    """Return one line on how the run ended, and its exit status; a smoke run must have learned."""
    if status != 0:
        return f"FAILED with exit status {status}", status
    if not losses:
        return ("FAILED: the log has no loss", 1) if job.settings.SMOKE else ("finished", 0)
    course = f"loss {losses[0]:.4f} → {losses[-1]:.4f} over {len(losses)} iterations"
    if (
        job.settings.SMOKE
        and len(losses) > 1
        and not (math.isfinite(losses[-1]) and losses[-1] < losses[0])
    ):
        return f"FAILED: the loss did not fall: {course}", 1
    return f"passed: {course}" if job.settings.SMOKE else f"finished: {course}", 0
