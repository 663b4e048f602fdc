"""What Slurm can say and a daemon on this machine cannot be made to: stand-ins for its commands.

What a real daemon does say is in tests/slurm/.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launcher import cli
from launcher.config import bash_layers
from launcher.run import follow, slurm
from tests.run.test_start import READY
from tests.support.launching import ROOT, STAMP, launch


@pytest.fixture
def stand_in(tmp_path: Path):
    """Return a function that puts a shell script in the place of one of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    for name in ("sbatch", "squeue", "scontrol", "sinfo", "sacct"):
        make(name, f'echo "{name}: error: not expected here: $*" >&2; exit 9')
    make("sinfo", "echo 'batch*|128|4:00:00'; echo 'debug|2|30:00'")
    return make


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **READY,
        "VERIFY": "0",
        "NNODES": "128",
        "OUTPUT_PATH": str(tmp_path / "out"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }


def notes(tmp_path: Path) -> dict:
    (run_dir,) = (tmp_path / "out" / "runs").iterdir()
    return yaml.safe_load((run_dir / "submission.yaml").read_text())


def error(seen) -> str:
    """Return the one line that says what went wrong."""
    (line,) = [line for line in seen.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_account_that_slurm_refuses(stand_in, environment, tmp_path: Path):
    """Needs slurmdbd, which the test cluster does not have."""
    said = "Invalid account or account/partition combination specified"
    stand_in("sbatch", f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    seen = launch(**environment)
    assert (seen.status, seen.stdout) == (1, "")
    assert error(seen) == (
        f"error: Slurm refused the job: Batch job submission failed: {said}. "
        "Change ACCOUNT=me (set by environment) or PARTITION=batch (set by environment). "
        "Partitions here: batch (128 nodes, up to 4:00:00), debug (2 nodes, up to 30:00). "
        f"(run directory {tmp_path}/out/runs/DeepSeek-V3-{STAMP})"
    )
    assert said in notes(tmp_path)["failed"]
    assert "job_id" not in notes(tmp_path)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Invalid qos specification", "SBATCH_OPTIONS='--qos=high --cpus-per-task=64'"),
        ("CPU count per node can not be satisfied", "SBATCH_OPTIONS='--qos=high --cpus-per-task=64'"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "RUN_TIME=00:40:00"),
    ],
)  # fmt: skip
def test_refusals_name_the_variable(stand_in, environment, said: str, name: str):
    stand_in("sbatch", f"echo 'sbatch: error: {said}' >&2; exit 1")
    seen = launch(**environment, SBATCH_OPTIONS="--qos=high --cpus-per-task=64")
    assert f"{said}. Change {name} (set by " in error(seen)


def test_the_shells_own_filters_do_not_hide_a_job(stand_in, environment):
    """SQUEUE_PARTITION and the like would change what Slurm's commands tell."""
    stand_in("sbatch", "env | grep -q SBATCH_ && exit 9; env | grep -q POISON && exit 9; echo 12")
    stand_in("sinfo", "env | grep -q SINFO_ && exit 9; echo 'batch*|128|4:00:00'")
    stand_in("scontrol", f"env | grep -q SLURM_ && exit 9; echo '{shown('PENDING')}'")
    theirs = {"SINFO_PARTITION": "x", "SBATCH_QOS": "x", "SLURM_CLUSTERS": "x", "POISON": "x"}
    seen = launch(**environment, **theirs)
    assert seen.status == 0, seen.stderr
    assert "Submitted batch job 12\n" in seen.stdout


def test_option_that_sbatch_does_not_know(stand_in, environment):
    stand_in("sbatch", "echo \"sbatch: unrecognized option '--segment=16'\" >&2; exit 1")
    seen = launch(**environment, GB200_CLUSTER="1", SEGMENT="16", TP="1", TASKS_PER_NODE="8")
    assert "unrecognized option '--segment=16'. Change SEGMENT=16 (set by env" in error(seen)


SILENT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.mark.parametrize(
    ("queue", "known"),
    [
        ("exit 0", "Slurm has no such job yet"),
        (
            "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1",
            "squeue: Unable to contact",
        ),
    ],
)
def test_silent_controller(stand_in, environment, tmp_path: Path, queue: str, known: str):
    stand_in("sbatch", f"echo '{SILENT}' >&2; exit 1")
    stand_in("squeue", queue.replace("slurm_load_jobs error", "squeue: error"))
    seen = launch(**environment)
    assert seen.status == 1
    assert error(seen) == (
        "error: Batch job submission failed: Socket timed out on send/recv operation, and "
        f"{known}: the job may or may not have been submitted. Look for it with "
        f"squeue --me --name=me-moe-DeepSeek-V3-{STAMP} "
        f"(run directory {tmp_path}/out/runs/DeepSeek-V3-{STAMP})"
    )
    assert notes(tmp_path)["unanswered"].endswith("send/recv operation")


def test_silent_controller_that_took_the_job(stand_in, environment, tmp_path: Path):
    script = f"{tmp_path}/out/runs/DeepSeek-V3-{STAMP}/job.sh"
    stand_in("sbatch", f"echo '{SILENT}' >&2; exit 1")
    stand_in("squeue", f"echo '7|RUNNING|None|/else/job.sh'; echo '12|PENDING|Priority|{script}'")
    seen = launch(**environment)
    assert seen.status == 0
    assert "Submitted batch job 12\n" in seen.stdout
    assert notes(tmp_path)["job_id"] == "12"


def test_a_sweep_gives_a_silent_controller_time(stand_in, environment, tmp_path: Path):
    """What was sent may arrive late: the point is not sent again before that is ruled out."""
    stand_in("sbatch", f"echo '{SILENT}' >&2; exit 1")
    stand_in("squeue", "exit 0")
    (tmp_path / "mine.yaml").write_text("variables: {GBS: [8192]}")

    def sweep() -> str:
        command = [sys.executable, str(ROOT / "launcher/__main__.py"), "sweep"]
        return subprocess.run(
            [*command, str(tmp_path / "mine.yaml")],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        ).stderr.splitlines()[-1]  # fmt: skip

    assert "the job may or may not have been submitted" in sweep()
    stand_in("sbatch", "echo 12")
    stand_in("scontrol", f"echo '{shown('COMPLETED')}'")
    assert re.search(r"Slurm may still take it; try again in 1[12]\d s$", sweep())
    (said,) = tmp_path.glob("out/**/submission.yaml")
    os.utime(said, (0, 0))
    assert sweep() == "[1/1] GBS=8192: job 12"


def test_sbatch_that_hangs(stand_in, environment, tmp_path: Path, monkeypatch, capsys):
    """In this process, so that the test need not wait as long as a user would."""
    stand_in("sbatch", f"echo $$ > {tmp_path}/pid; exec sleep 100")
    stand_in("squeue", "exit 0")
    monkeypatch.setattr(slurm, "SUBMIT_SECONDS", 0.5)
    environ, _ = bash_layers.source(bash_layers.ENTRY, [], environment)
    monkeypatch.setattr(os, "environ", environ)
    assert cli.main(["submit"]) == 1
    said = capsys.readouterr().err
    assert (
        "error: sbatch did not answer within 0.5 s, and Slurm has no such job yet: the job " in said
    )
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cwd").exists()


def test_ctrl_c_during_sbatch(stand_in, environment, tmp_path: Path):
    stand_in("sbatch", f"touch {tmp_path}/started; exec sleep 100")
    stand_in("squeue", f'echo "12|PENDING|None|$(echo {tmp_path}/out/runs/*)/job.sh"')
    process = subprocess.Popen(
        ["bash", str(ROOT / "sbatch_benchmarking.sh")], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("interrupted: job 12 is submitted; scancel 12 cancels it\n")
    assert notes(tmp_path)["job_id"] == "12"


def test_ctrl_c_during_sbatch_that_left_nothing(stand_in, environment, tmp_path: Path):
    stand_in("sbatch", "kill -INT $PPID; exec sleep 100")
    stand_in("squeue", "exit 0")
    seen = launch(**environment)
    assert seen.status == 1
    assert "sbatch was interrupted, and Slurm has no such job yet: the job may or" in error(seen)


def shown(state: str, code: str = "0:0", reason: str = "None", restarts: int = 0) -> str:
    """Return what `scontrol show job` prints (Slurm 22.05), a job's name that tries to mislead."""
    return f"""JobId=12 JobName=me   JobState=COMPLETED Reason=None Dependency=(null)
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   Priority=4294901757 Nice=0 Account=me QOS=(null)
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode={code}
   RunTime=00:00:05 TimeLimit=00:20:00 TimeMin=N/A
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (shown("COMPLETED"), slurm.State("COMPLETED")),
        (shown("FAILED", "3:0", "NonZeroExitCode"), slurm.State("FAILED", "NonZeroExitCode", 0, 3)),
        (shown("CANCELLED"), slurm.State("CANCELLED", "", 0, 1)),
        (shown("TIMEOUT", "0:15", "TimeLimit"), slurm.State("TIMEOUT", "TimeLimit", 0, 143)),
        (shown("PENDING", "0:0", "ReqNodeNotAvail, May be reserved"),
         slurm.State("PENDING", "ReqNodeNotAvail, May be reserved", 0, 1)),
        (shown("PENDING", "0:0", "BeginTime", 2), slurm.State("PENDING", "BeginTime", 2, 1)),
    ],
)  # fmt: skip
def test_states(stand_in, monkeypatch, environment, tmp_path: Path, text: str, expected):
    (tmp_path / "said").write_text(text)
    stand_in("scontrol", f"cat {tmp_path}/said")
    monkeypatch.setenv("PATH", environment["PATH"])
    assert slurm.state("12") == expected


def test_a_job_that_slurm_forgot(stand_in, monkeypatch, environment):
    monkeypatch.setenv("PATH", environment["PATH"])
    stand_in("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    stand_in("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.state("12") is None
    stand_in("sacct", "echo '12|CANCELLED by 1000|0:15'")
    assert slurm.state("12") == slurm.State("CANCELLED", "", 0, 143)


def test_a_controller_that_restarts_is_no_end(stand_in, monkeypatch, environment):
    monkeypatch.setenv("PATH", environment["PATH"])
    stand_in(
        "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    with pytest.raises(slurm.NoAnswer, match="Unable to contact slurm controller"):
        slurm.state("12")


def test_progress(tmp_path: Path):
    running = slurm.State("RUNNING")
    assert follow.progress(running, tmp_path) == "RUNNING"
    assert follow.progress(slurm.State("PENDING", "Priority", 1), tmp_path) == (
        "PENDING (Priority)  requeued 1×"
    )
    line = "0:  iteration {:8d}/     100 | elapsed time per iteration (ms): 60000.0 | throughput per GPU (TFLOP/s/GPU): 338.1 | lm loss: 5.0E+00 |\n"
    (tmp_path / "log").write_text("noise\n" + line.format(9) + "more\n" + line.format(10))
    assert follow.progress(running, tmp_path) == (
        "RUNNING  iteration 10/100  338.1 TFLOPS/GPU  1:30:00 left"
    )
    assert follow.progress(slurm.State("COMPLETED"), tmp_path).endswith("338.1 TFLOPS/GPU")
