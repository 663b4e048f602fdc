"""The life of a run by the desk's commands, on real daemons."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.slurm.test_submission import TRAINING
from tests.support.cluster import Cluster
from tests.support.launching import ROOT, Launched

pytestmark = pytest.mark.slow
ZOO = str(ROOT / "bin" / "moe-zoo")
STAMP = r"\d{6}_\d{6}"


@pytest.fixture
def zoo(cluster: Cluster, tmp_path: Path):
    """Return a function that runs moe-zoo from another directory, through a symbolic link."""
    link = tmp_path / "bin" / "zoo"
    link.parent.mkdir()
    link.symlink_to(ZOO)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**kept, **cluster.environ, "VERIFY": "0"}

    def run(*words: str) -> Launched:
        done = subprocess.run(
            [str(link), *words], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Launched(done.returncode, done.stdout, done.stderr)

    run.environ = environ
    return run


@pytest.fixture
def mine(zoo, tmp_path: Path) -> Path:
    """A config as init-cluster writes it, with a training that only prints what Megatron logs."""
    conf = tmp_path / "mine.conf"
    seen = zoo(
        "init-cluster", str(conf), f"OUTPUT_PATH={tmp_path}/out", f"MEGATRON_PATH={tmp_path}"
    )
    assert seen.status == 0, seen.stderr
    (tmp_path / "train.py").write_text(TRAINING)
    with conf.open("a") as file:
        file.write(
            f"TRAINING_SCRIPT_PATH={tmp_path}/train.py GPU=H100 SMOKE=0 TASKS_PER_NODE=1 EP=1\n"
            ": ${ITERATIONS:=100} ${STATUS:=0}\n"
        )
    return conf


def test_a_config_of_what_slurm_tells(zoo, cluster: Cluster, tmp_path: Path):
    conf = tmp_path / "new.conf"
    image = '/im ages/$HOME/a"b}.sqsh'
    seen = zoo("init-cluster", "new.conf", f"CONTAINER_IMAGE={image}", "CONTAINER_RUNTIME=pyxis")
    assert seen.status == 0, seen.stderr
    assert "to fill in: CONTAINER_MOUNTS" in seen.stdout
    told = subprocess.run(
        ["bash", "-c", 'set -a; MODEL_NAME=m DATASET=d PRETRAIN=1 TP= PP= EP= VPP= MBS= GBS=; . "$1"; env', "_", conf],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    ).stdout.splitlines()  # fmt: skip
    assert f"CONTAINER_IMAGE={image}" in told
    assert {"PARTITION=batch", "ACCOUNT=", "GPU=none", "SMOKE=1"} <= set(told)
    before = conf.read_bytes()
    again = zoo("init-cluster", "new.conf")
    assert (again.status, conf.read_bytes()) == (1, before)
    assert "is there already" in again.stderr


def test_the_life_of_a_run(zoo, mine: Path, cluster: Cluster, tmp_path: Path):
    at = f"CLUSTER={mine}"
    seen = zoo("submit", at, "MODEL=DeepSeek-V2-Lite")
    assert seen.status == 0, seen.stderr
    job_id = re.search(r"Submitted batch job (\d+)", seen.stdout)[1]
    (run_dir,) = tmp_path.glob("out/*/runs/*")
    cluster.wait_for(lambda: (run_dir / "log").exists(), 60, "the log")
    cluster.wait_for(lambda: "iteration 8/" in (run_dir / "log").read_text(), 60, "iterations")
    seen = zoo("status")
    assert f"{run_dir.name}\n  state     RUNNING; job {job_id}, submitted" in seen.stdout
    assert re.search(r"iteration \d+/100, loss \S+, 338\.\d TFLOPS/GPU; 0:\d\d left", seen.stdout)
    row = next(line for line in zoo("list", "runs", at).stdout.splitlines() if run_dir.name in line)
    assert re.search(rf"RUNNING +\d+ \S+ +{job_id} +\d+/100 +338\.\d TFLOPS/GPU", row)
    seen = zoo("resume", run_dir.name, at)
    assert (seen.status, seen.stdout) == (1, "")
    assert f"is at work already: job {job_id} is RUNNING" in seen.stderr
    follower = start(zoo.environ, tmp_path, "logs", "-f", "-n", "100", job_id)
    cluster.wait_for(lambda: "iteration 20/" in (run_dir / "log").read_text(), 60, "20 iterations")
    seen = zoo("cancel", job_id)
    assert seen.stdout == f"{run_dir.name}: job {job_id} (RUNNING) cancelled\n"
    followed, said = follower.communicate(timeout=60)
    assert follower.returncode == 0, said
    assert followed.count("iteration 20/ 100") == followed.count("iteration 1/ 100") == 1
    assert said.endswith("==> CANCELLED <==\n")
    assert zoo("cancel", str(run_dir)).status == 1
    assert "CANCELLED" in zoo("status", str(run_dir)).stdout
    seen = zoo("resume", str(run_dir), "--dry-run")
    assert seen.stdout == f"would submit {run_dir}/job.sh\n"
    seen = zoo("resume", str(run_dir))
    assert seen.status == 0, seen.stderr
    second = re.search(r"Submitted batch job (\d+)", seen.stdout)[1]
    cluster.wait_for(lambda: (run_dir / "log.2").exists(), 60, "the second log")
    assert f"job {second}, submitted" in zoo("status", job_id).stdout  # an earlier job names it too
    assert zoo("cancel", second).status == 0
    cluster.wait_for_end(second, 30)
    other = zoo(
        "submit", at, "MODEL=DeepSeek-V2-Lite", "GBS=256", "ITERATIONS=3", "PASS_ENV=ITERATIONS"
    )
    third = re.search(r"Submitted batch job (\d+)", other.stdout)[1]
    cluster.wait_for_end(third, 60)
    seen = zoo("diff", str(run_dir), third, at)
    assert seen.status == 0, seen.stderr
    assert "--global-batch-size  512 → 256" in seen.stdout
    seen = zoo("resume", third, at)
    assert "is complete: iteration 3/3" in seen.stderr


def test_status_of_a_refused_run_and_of_nothing(zoo, mine: Path, tmp_path: Path):
    seen = zoo("submit", f"CLUSTER={mine}", "MODEL=DeepSeek-V2-Lite", "PARTITION=nope")
    assert seen.status == 1
    (run_dir,) = tmp_path.glob("out/*/runs/*")
    assert (
        "NOT SUBMITTED (Slurm refused the job: invalid partition"
        in zoo("status", str(run_dir)).stdout
    )
    for command in ("status", "logs", "cancel", "resume"):
        seen = zoo(command, "99999", f"OUTPUT_PATH={tmp_path}/out")
        assert (seen.status, seen.stdout) == (1, "")
        assert seen.stderr.startswith("error: '99999' is no run: name a run directory")
        assert seen.stderr.count("\n") == 1


def test_a_cluster_is_checked_by_a_job(zoo, cluster: Cluster, tmp_path: Path):
    conf = tmp_path / "mine.conf"
    zoo("init-cluster", str(conf), f"OUTPUT_PATH={tmp_path}/out")
    seen = zoo("check-cluster", f"CLUSTER={conf}")
    assert seen.status == 0, seen.stdout + seen.stderr
    lines = seen.stdout.splitlines()
    assert "✓ ranks       4: node1 2, node2 2" in lines
    assert "✓ partition   batch (4 nodes, up to infinite)" in lines
    assert any(line.startswith("✓ all-reduce  gloo over 4 ranks, ") for line in lines)
    assert any(
        line.startswith("✓ versions    python 3.") and "megatron-core 0.19" in line
        for line in lines
    )
    assert "✗" not in seen.stdout


def test_each_fault_of_a_config_has_its_line(zoo, cluster: Cluster, tmp_path: Path):
    conf = tmp_path / "mine.conf"
    zoo("init-cluster", str(conf), f"OUTPUT_PATH={tmp_path}/out")
    text = conf.read_text()
    faults = {
        "PARTITION=nope": "✗ partition   PARTITION=nope is none; there are batch (4 nodes",
        "PARTITION=debug": "✗ partition   debug (1 node, up to 30:00): the check needs 2 nodes",
        "MPI_TYPE=openmpi": "✗ mpi         MPI_TYPE=openmpi is none of pmix,",
        "OUTPUT_PATH=/proc/out": "✗ output      OUTPUT_PATH=/proc/out: /proc cannot be written",
        "CONTAINER_RUNTIME=pyxis CONTAINER_IMAGE=i.sqsh CONTAINER_MOUNTS=/data:/data":
            "✗ container   srun has no --container-image here",
        "CONTAINER_RUNTIME=pyxis CONTAINER_IMAGE=/tmp/no.sqsh CONTAINER_MOUNTS=/tmp:/tmp":
            "✗ paths       CONTAINER_IMAGE",
        f"GPU=H100 SMOKE=0 MEGATRON_PATH={tmp_path}": "has no pretrain_gpt.py",
        "ACCOUNT=YOUR_ACCOUNT": "✗ names       ",
    }  # fmt: skip
    for change, line in faults.items():
        conf.write_text(f"{text}\n{change}\n")
        seen = zoo("check-cluster", f"CLUSTER={conf}")
        assert line in seen.stdout, (change, seen.stdout, seen.stderr)
        assert seen.status == 1
        assert "no job was submitted" in seen.stdout
    assert not (tmp_path / "out").exists()


def start(environ: Mapping[str, str], folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ZOO, *words], cwd=folder, env=environ, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
