"""Submissions, WAIT=1 and sweeps on real daemons; the jobs themselves only print what Megatron logs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Cluster
from tests.support.launching import ROOT, Launched, launch

pytestmark = pytest.mark.slow

TRAINING = """\
import os, sys, time
if os.environ["RANK"] == "0":
    for number in range(1, int(os.environ["ITERATIONS"]) + 1):
        print(
            f" iteration {number}/ {os.environ['ITERATIONS']} | elapsed time per iteration (ms): 300.0"
            f" | throughput per GPU (TFLOP/s/GPU): 338.{number} | lm loss: {9 - number}.0E+00 |",
            flush=True,
        )
        time.sleep(0.3)
sys.exit(int(os.environ["STATUS"]))
"""


@pytest.fixture
def environment(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """A job of one process that ends after two iterations."""
    (tmp_path / "train.py").write_text(TRAINING)
    (tmp_path / "mine.conf").write_text("CONTAINER_RUNTIME=none GPU=H100\n")
    return {
        **cluster.environ,
        "CLUSTER": str(tmp_path / "mine.conf"),
        "MODEL": "DeepSeek-V2-Lite",
        "ACCOUNT": "me",
        "PARTITION": "batch",
        "MEGATRON_PATH": str(tmp_path),
        "TRAINING_SCRIPT_PATH": str(tmp_path / "train.py"),
        "TASKS_PER_NODE": "1",
        "EP": "1",
        "OUTPUT_PATH": str(tmp_path / "out"),
        "PASS_ENV": "ITERATIONS STATUS",
        "ITERATIONS": "2",
        "STATUS": "0",
        "TIMESTAMP": "",
    }


def run_dirs(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/runs/*"))


def notes(run_dir: Path) -> dict:
    return yaml.safe_load((run_dir / "submission.yaml").read_text())


def jobs(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Return script → job id of the cluster's jobs below a folder, each script's only one."""
    told = cluster.run("squeue", "--noheader", "--states=all", "--format=%i|%o")
    rows = [line.split("|", 1) for line in told.splitlines() if f"|{folder}/" in line]
    found = {script: job_id for job_id, script in rows}
    assert len(found) == len(rows), "a script was submitted twice"
    return found


def failed(seen: Launched) -> str:
    """Return the one line of a launch that went wrong."""
    assert (seen.status, seen.stdout) == (1, "")
    (line,) = [line for line in seen.stderr.splitlines() if line.startswith("error: ")]
    assert seen.stderr.endswith(f"{line}\n")
    return line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PARTITION": "nope"}, "invalid partition specified: nope; Batch job submission failed: "
         "Invalid partition name specified. Change PARTITION=nope (set by environment)."),
        ({"NNODES": "8"}, "8 nodes are more than the partition has. Change NNODES=8 (set by "
         "environment) or PARTITION=batch (set by environment)."),
        ({"NNODES": "2", "PARTITION": "debug"}, "2 nodes are more than the partition has. "),
        ({"NNODES": "8", "FORCE": "1", "PARTITION": "nope"}, "invalid partition specified: nope"),
    ],
)  # fmt: skip
def test_refusals(environment, cluster: Cluster, tmp_path: Path, change, said: str):
    line = failed(launch(**{**environment, **change}))
    (run_dir,) = run_dirs(tmp_path)
    assert line.startswith(f"error: Slurm refused the job: {said}")
    assert line.endswith(
        "Partitions here: batch (4 nodes, up to infinite), debug (1 node, up to 30:00). "
        f"(run directory {run_dir})"
    )
    assert said in notes(run_dir)["failed"]
    assert jobs(cluster, tmp_path) == {}


def test_limit_that_slurm_takes_and_never_serves(environment, cluster: Cluster):
    seen = launch(**{**environment, "PARTITION": "debug", "RUN_TIME": "10:00:00"})
    assert seen.status == 0, seen.stderr
    cluster.run("scancel", re.search(r"Submitted batch job (\d+)", seen.stdout)[1])
    assert "warning: the job waits for a limit, maybe for ever: Partition" in seen.stderr


def test_the_script_outranks_slurms_own_variables(environment, cluster: Cluster):
    theirs = {"SBATCH_PARTITION": "debug", "SBATCH_TIMELIMIT": "5", "SBATCH_JOB_NAME": "other"}
    seen = launch(**environment, **theirs)
    job = cluster.job(re.search(r"Submitted batch job (\d+)", seen.stdout)[1])
    assert (job["Partition"], job["TimeLimit"]) == ("batch", "00:20:00")
    assert job["JobName"].startswith("me-moe-DeepSeek-V2-Lite-")


@pytest.mark.parametrize("status", ["0", "3"])
def test_wait_returns_the_status_of_the_job(environment, tmp_path: Path, status: str):
    seen = launch(**{**environment, "STATUS": status, "ITERATIONS": "6", "WAIT": "1"})
    assert seen.status == int(status), seen.stderr
    (run_dir,) = run_dirs(tmp_path)
    job_id = notes(run_dir)["job_id"]
    assert seen.stdout.splitlines()[:2] == [
        f"Submitted batch job {job_id}",
        f"  run directory  {run_dir}",
    ]
    assert f"  cancel         scancel {job_id}\n" in seen.stdout
    assert re.search(
        rf"^job {job_id} RUNNING  iteration \d/6  338.\d TFLOPS/GPU  0:0\d left$", seen.stderr, re.M
    )
    end = (
        "finished: loss 8.0000 → 3.0000 over 6 iterations"
        if status == "0"
        else "FAILED with exit status 3"
    )
    assert seen.stderr.endswith(f"{end}\n  results {run_dir}\n")
    assert notes(run_dir)["verdict"] == end
    assert notes(run_dir)["status"] == int(status)


def test_a_cancelled_job_is_no_success(environment, cluster: Cluster, tmp_path: Path):
    """Slurm gives a job that was cancelled while it waited the exit code 0."""
    process = start(environment, WAIT="1", PARTITION="debug", RUN_TIME="10:00:00")
    job_id = cluster.wait_for(lambda: list(jobs(cluster, tmp_path).values()), 30, "the job")[0]
    cluster.run("scancel", job_id)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"job {job_id} CANCELLED" in said
    assert "the job did not start" in said


def test_ctrl_c_stops_watching_and_nothing_else(environment, cluster: Cluster, tmp_path: Path):
    process = start(environment, WAIT="1", ITERATIONS="8")
    cluster.wait_for(lambda: list(tmp_path.glob("out/runs/*/log")), 30, "the log")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    (job_id,) = jobs(cluster, tmp_path).values()
    assert process.returncode == 130
    assert said.endswith(f"stopped following; job {job_id} goes on: scancel {job_id} cancels it\n")
    assert cluster.wait_for_end(job_id, 30)["JobState"] == "COMPLETED"


def test_a_requeued_job_is_followed_to_its_second_end(
    environment, cluster: Cluster, tmp_path: Path
):
    process = start(environment, WAIT="1", ITERATIONS="8")
    cluster.wait_for(lambda: list(tmp_path.glob("out/runs/*/log")), 30, "the log")
    (job_id,) = jobs(cluster, tmp_path).values()
    cluster.run("scontrol", "requeue", job_id)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert re.search(rf"job {job_id} PENDING \(\w+\)  requeued 1×", said)
    assert f"job {job_id} COMPLETED  requeued 1×  iteration 8/8" in said


def test_a_job_that_continues_the_run_is_followed_too(environment, tmp_path: Path):
    """The second job fails where the first did, so there is no third."""
    seen = launch(**{**environment, "STATUS": "3", "WAIT": "1", "RESUBMIT": "5"})
    assert seen.status != 0
    (run_dir,) = run_dirs(tmp_path)
    first = int(notes(run_dir)["job_id"])
    assert f"job {first} FAILED" in seen.stderr
    assert f"job {first + 1} FAILED" in seen.stderr
    assert f"job {first + 2} " not in seen.stderr


def test_a_controller_that_stopped_answering(environment, cluster: Cluster, tmp_path: Path):
    """It reads the request once it goes on: a sweep must then find the job, not submit another."""
    path = tmp_path / "mine.yaml"
    path.write_text("variables: {GBS: [64]}")
    (controller,) = cluster.processes(f"slurmctld\0-D\0-f\0{cluster.folder}")
    os.kill(controller, signal.SIGSTOP)
    try:
        seen = sweep(environment, path)
    finally:
        os.kill(controller, signal.SIGCONT)
    assert seen.status == 1
    assert "the job may or may not have been submitted. Look for it with squeue" in seen.stderr
    (run_dir,) = run_dirs(tmp_path)
    assert "unanswered" in notes(run_dir)
    cluster.wait_for(lambda: jobs(cluster, tmp_path), 30, "the job to be taken after all")
    again = sweep(environment, path, WAIT="1")
    assert again.status == 0, again.stderr
    assert list(jobs(cluster, tmp_path)) == [f"{run_dir}/job.sh"]


def test_many_submissions_share_nothing(environment, cluster: Cluster, tmp_path: Path):
    """The same command over and over, within seconds and from several shells at once."""
    with ThreadPoolExecutor(10) as pool:
        at_once = list(pool.map(lambda number: submit(environment, number), range(10)))
    in_a_row = [submit(environment, number) for number in range(10, 22)]
    told = dict([*at_once, *in_a_row])
    cluster.run("scancel", *told)
    assert len(told) == len(set(told.values())) == 22
    assert jobs(cluster, tmp_path) == {f"{path}/job.sh": job_id for job_id, path in told.items()}
    assert sorted(map(str, run_dirs(tmp_path))) == sorted(told.values())


def submit(environment: Mapping[str, str], number: int) -> tuple[str, str]:
    """Submit a job with an argument of its own, and return its id and run directory, compared."""
    seen = launch(["--seed", str(number)], **environment)
    assert seen.status == 0, seen.stderr
    job_id = re.search(r"Submitted batch job (\d+)", seen.stdout)[1]
    run_dir = Path(re.search(r"run directory  (.*)", seen.stdout)[1])
    assert notes(run_dir)["job_id"] == job_id
    arguments = yaml.safe_load((run_dir / "arguments.yaml").read_text())["arguments"]
    assert arguments["--seed"]["values"] == [str(number)]
    assert f"--seed {number}\n" in (run_dir / "job.sh").read_text()
    assert f"#SBATCH --job-name=me-moe-{run_dir.name}\n" in (run_dir / "job.sh").read_text()
    return job_id, str(run_dir)


SWEEP = """\
in_flight: 2
variables:
  GBS: [64, 128]
  NNODES: [1, 2]
  TP: [1, 2]
arguments:
  --seed: [1, 2]
exclude:
  - {GBS: 128, NNODES: 2}
"""


def test_a_sweep_killed_and_continued(environment, cluster: Cluster, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(SWEEP)
    most = 0
    for submitted in (1, 3, 4):
        process = start_sweep(environment, path)
        while len(found := jobs(cluster, tmp_path)) < submitted and process.poll() is None:
            most = max(most, alive(cluster, tmp_path))
        assert len(found) >= submitted
        process.kill()
        process.communicate()
    seen = sweep(environment, path, WAIT="1")
    assert seen.status == 0, seen.stderr
    assert seen.stdout.count("refused: world size 1 is not a multiple of TP*PP*CP") == 4
    table = seen.stdout[seen.stdout.index("TFLOPS/GPU") :].splitlines()[1:]
    assert len(table) == 8
    assert all("COMPLETED" in row and "2/2" in row and "338.2" in row for row in table)
    found = jobs(cluster, tmp_path)
    assert len(found) == 8
    points = {drawn(Path(script).parent) for script in found}
    assert len(points) == 8
    assert most <= 2
    # Once more: nothing is left to do, and the results stay to be read.
    seen = sweep(environment, path)
    assert (seen.status, jobs(cluster, tmp_path)) == (0, found)
    assert seen.stdout.count("submitted, job ") == 8


def drawn(run_dir: Path) -> tuple[str, ...]:
    """Return where on the grid a run is."""
    said = yaml.safe_load((run_dir / "arguments.yaml").read_text())["arguments"]
    flags = ("--global-batch-size", "--tensor-model-parallel-size", "--seed")
    nodes = re.search(r"--nodes=(\d)", (run_dir / "job.sh").read_text())[1]
    return (nodes, *(said[flag]["values"][0] for flag in flags))


def test_a_crash_between_submission_and_its_note(environment, cluster: Cluster, tmp_path: Path):
    """The state as a crash right before, and right after, sbatch would leave it."""
    path = tmp_path / "mine.yaml"
    path.write_text("variables: {GBS: [64, 128]}")
    assert sweep(environment, path, WAIT="1").status == 0
    state = tmp_path / "mine.yaml.state"
    first, _noted, second, *_ = state.read_text().splitlines()
    before = jobs(cluster, tmp_path)
    for line in (first, second):
        (Path(json.loads(line)["run_dir"]) / "submission.yaml").write_text("submitting: now\n")
    (Path(json.loads(second)["run_dir"]) / "log").unlink()
    # Both were submitted, and only the log or Slurm's queue knows.
    state.write_text(f"{first}\n{second}\n")
    assert sweep(environment, path).status == 0
    assert jobs(cluster, tmp_path) == before
    # The second never was.
    torn = json.loads(second)
    torn["run_dir"] += "-not-submitted"
    Path(torn["run_dir"]).mkdir()
    state.write_text(f"{first}\n{json.dumps(torn)}\n")
    assert sweep(environment, path, WAIT="1").status == 0
    assert len(jobs(cluster, tmp_path)) == 3


def test_a_sweep_that_slurm_refuses_altogether(environment, cluster: Cluster, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("variables: {PARTITION: nope, GBS: [64, 128, 256, 512]}")
    seen = sweep({**environment, "PARTITION": ""}, path)
    assert seen.status == 1
    assert seen.stderr.endswith("error: the first 3 submissions were refused\n")
    assert len(run_dirs(tmp_path)) == 3


def alive(cluster: Cluster, folder: Path) -> int:
    told = cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%o")
    return sum(line.startswith(f"{folder}/") for line in told.splitlines())


def login(environment: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **environment, **variables}


def start(environment: Mapping[str, str], **variables: str) -> subprocess.Popen[str]:
    """Start a launch in a session of its own."""
    return subprocess.Popen(
        ["bash", str(ROOT / "sbatch_benchmarking.sh")],
        env=login(environment, variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip


def start_sweep(
    environment: Mapping[str, str], path: Path, **variables: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launcher/__main__.py"), "sweep", str(path)],
        env=login(environment, variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip


def sweep(environment: Mapping[str, str], path: Path, **variables: str) -> Launched:
    process = start_sweep(environment, path, **variables)
    stdout, stderr = process.communicate(timeout=120)
    return Launched(process.returncode, stdout, stderr)
