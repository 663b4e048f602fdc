"""A job on this machine: its script started, its log written, its progress shown."""

from __future__ import annotations

import signal
import socket
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
    if training.set_up(job.settings):
        directory.note_versions(job)
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
    directory.record(job, host=socket.gethostname(), pid=process.pid)
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        process.terminate()  # torchrun stops its ranks

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    reader = training_log.Reader()
    with log_path.open("w", encoding="utf-8") as file:
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            _progress(line, reader)
    status = process.wait()
    if stopped:
        status = 128 + stopped[0]
    elif status < 0:
        status = 128 - status
    reader.finish()
    return ending.close(job, status, reader.log, interrupted=bool(stopped))


def _progress(line: str, reader: training_log.Reader) -> None:
    before = reader.log.newest
    reader.feed(line.encode(errors="replace"))
    found = reader.log.newest
    if found is None or found is before:
        return
    seconds = found.seconds or 0.0
    print(
        f"iteration {found.number}/{found.total}",
        "loss -" if found.loss is None else f"loss {found.loss:.4f}",
        f"{seconds:.2f} s",
        f"{(found.total - found.number) * seconds:.0f} s left",
        sep="  ",
        file=sys.stderr,
    )
