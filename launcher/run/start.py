"""Hand a job over: to Slurm, or to this machine."""

from __future__ import annotations

import itertools
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.config.arguments import quote
from launcher.config.settings import Settings, replace
from launcher.errors import UsageError
from launcher.job import container, local, verification
from launcher.job.build import Job, build, check_secrets, placeholders, render
from launcher.job.summary import explain, report
from launcher.report import training_log
from launcher.run import directory, follow, submission


def submit(settings: Settings, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Check the job, make its run directory, start it, and return the exit status."""
    job, said = prepare(settings, words, environ)
    tell(job, said)
    if local.is_local(settings):
        return _run_here(job)
    job_id = submission.hand_over(job, environ)
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
        print(f"warning: the job waits for a limit, maybe for ever: {limit}", file=sys.stderr)
    return _follow(job, job_id) if settings.WAIT else 0


def prepare(
    settings: Settings, words: Sequence[str], environ: Mapping[str, str]
) -> tuple[Job, verification.Opinion | None]:
    """Return the job, checked, with a run directory of its own, and what Megatron says of it.

    Raises UsageError.
    """
    stamp = settings.TIMESTAMP or time.strftime("%y%m%d_%H%M%S")
    settings = replace(settings, "TIMESTAMP", stamp, settings.origin("TIMESTAMP"))
    for number in itertools.count():
        job = build(settings, words, environ, suffix=f".{number}" if number else "")
        script = render(job)
        if number == 0:
            said = opinion(job)
            _check(job, script, said, environ)
        if directory.create(job.run_dir):
            break
    directory.fill(job, script)
    return job, said


def opinion(job: Job) -> verification.Opinion | None:
    """Return what Megatron itself says of the job, where VERIFY=1 asks for it."""
    if not job.settings.VERIFY:
        return None
    print("VERIFY=1: Megatron-Core itself reads the job (imports, then stages) …", file=sys.stderr)
    return verification.ask(job)


def tell(job: Job, said: verification.Opinion | None) -> None:
    """Tell the user, on stderr, what this job is."""
    print(report(job, said), file=sys.stderr)
    if job.settings.EXPLAIN:
        print(explain(job), file=sys.stderr)


def _check(
    job: Job, script: str, said: verification.Opinion | None, environ: Mapping[str, str]
) -> None:
    """Raise UsageError for whatever must stop a submission."""
    check_secrets(script, environ)
    left = placeholders(job)
    if left:
        raise UsageError(f"{'; '.join(left)}. Nothing was submitted")
    objections = list(job.objections)
    if not local.is_local(job.settings):
        objections += container.missing(job.settings)
    if said is not None and not said.accepted:
        objections.append(f"{said.megatron} itself refuses the job: {said.message}")
    if objections and not job.settings.FORCE:
        raise UsageError(
            f"{'; '.join(objections)}. Nothing was submitted (FORCE=1 submits all the same)"
        )
    if not local.is_local(job.settings):
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
    return _close(job, status, training_log.tail(job.run_dir / "log", follow.TAIL))


def _run_here(job: Job) -> int:
    """Run the script on this machine, its output into the log, its progress onto the terminal."""
    local.set_up(job.settings)
    directory.record(
        job, command=["bash", str(job.run_dir / "job.sh")], started=time.strftime("%F %T")
    )
    log_path = job.run_dir / "log"
    print(f"  log {log_path}", file=sys.stderr)
    print("starting: importing torch and Megatron-Core takes up to a minute …", file=sys.stderr)
    process = subprocess.Popen(
        ["bash", str(job.run_dir / "job.sh")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        process.terminate()  # torchrun stops its ranks

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    iterations: list[training_log.Iteration] = []
    with log_path.open("w", encoding="utf-8") as file:
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            _progress(line, iterations)
    status = process.wait()
    if stopped:
        status = 128 + stopped[0]
    elif status < 0:
        status = 128 - status
    return _close(job, status, iterations, interrupted=bool(stopped))


def _close(
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


def _progress(line: str, iterations: list[training_log.Iteration]) -> None:
    found = training_log.iteration(line)
    if found is None:
        return
    iterations.append(found)
    seconds = found.seconds or 0.0
    print(
        f"iteration {found.number}/{found.total}",
        "loss -" if found.loss is None else f"loss {found.loss:.4f}",
        f"{seconds:.2f} s",
        f"{(found.total - found.number) * seconds:.0f} s left",
        sep="  ",
        file=sys.stderr,
    )


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
