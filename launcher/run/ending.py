"""How a run ended: the verdict, said and noted in the run directory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.job.draft import Job
from launcher.report import training_log
from launcher.run import directory


def close(
    job: Job, status: int, iterations: Sequence[training_log.Iteration], interrupted: bool = False
) -> int:
    """Say and note how the run ended; return its exit status."""
    losses = [each.loss for each in iterations if each.loss is not None]
    verdict, status = ("interrupted", status) if interrupted else _verdict(job, status, losses)
    directory.record(job, finished=time.strftime("%F %T"), status=status, verdict=verdict)
    if status != 0 and not interrupted:
        print(_last_words(job.run_dir / "log"), file=sys.stderr)
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


def _last_words(path: Path) -> str:
    """Return the end of a failed run's log, the first traceback included."""
    if not path.exists():
        return f"there is no log {path}: the job did not start"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [
        number for number, line in enumerate(lines) if "Traceback (most recent call last)" in line
    ]
    start = starts[0] if starts else max(0, len(lines) - 20)
    return "\n".join(lines[start : start + 30])
