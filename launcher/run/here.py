"""A job on this machine: its script started, its log written, its progress shown."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from launcher.job import training
from launcher.job.draft import Job
from launcher.report import training_log
from launcher.run import directory, ending


def run(job: Job) -> int:
    """Run the script to its end, its output into the log, its progress onto the terminal.

    Returns the exit status.
    """
    training.set_up(job.settings)
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
    return ending.close(job, status, iterations, interrupted=bool(stopped))


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
