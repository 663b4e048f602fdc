"""What reaches the ranks is what job.sh says, from whatever shell it was launched or submitted."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.slurm.test_job import variables
from tests.support.cluster import Cluster, missing
from tests.support.slurm_training import Run, finish, submit

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, sys
told = {"argv": sys.argv[1:], "environ": dict(os.environ), "cwd": os.getcwd()}
told["affinity"] = sorted(os.sched_getaffinity(0))
told["place"] = (os.environ["RANK"], os.environ["SLURMD_NODENAME"], os.environ["LOCAL_RANK"])
path = os.path.dirname(__file__) + f"/told.{os.environ['SLURM_JOB_ID']}.{os.environ['RANK']}"
with open(path, "w") as file:
    json.dump(told, file)
print(" [after training is done] datetime: now")
"""
# Every input variable of sbatch and srun, and what else a job or a step sets; the value is fatal, or
# wrong, where it is heeded. `sbatch`: what it does to Slurm's own sbatch, before job.sh begins.
with Path(__file__).with_name("input_variables.csv").open(encoding="utf-8") as _file:
    SLURM = list(csv.DictReader(_file))
# What else a login shell, an interactive step or another job leaves behind.
OTHERS = {
    "BASHOPTS": "failglob", "BASH_ENV": "/absent", "BASH_FUNC_cd%%": "() { false; }",
    "BASH_FUNC_srun%%": "() { false; }", "CDPATH": "/", "CUDA_VISIBLE_DEVICES": "0",
    "ENV": "/absent", "GLOBIGNORE": "*", "HOME": "/absent", "LC_ALL": "C.UTF-8",
    "LD_LIBRARY_PATH": "/absent", "LD_PRELOAD": "", "MASTER_ADDR": "elsewhere",
    "MASTER_PORT": "1", "NCCL_SOCKET_IFNAME": "lo", "NVTE_FLASH_ATTN": "0",
    "OMP_NUM_THREADS": "1", "POSIXLY_CORRECT": "1", "PYTHONHOME": "/absent",
    "PYTHONPATH": "/absent", "RANK": "5", "SHELLOPTS": "xtrace", "SQUEUE_PARTITION": "debug",
    "TMPDIR": "/absent", "TORCHELASTIC_RUN_ID": "other", "TORCH_LOGS": "+dynamo",
    "USER": "nobody", "WORLD_SIZE": "64", "_name": "x", "exports": "x", "turn": "9",
}  # fmt: skip
POISON = {each["name"]: each["value"] for each in SLURM} | OTHERS
BY_HAND = POISON.keys() - {each["name"] for each in SLURM if each["sbatch"]}
# The user's own words to the launcher, or fatal to this machine's Python.
LAUNCHED = POISON.keys() - {"PYTHONHOME", "PYTHONPATH", "MASTER_PORT"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that binds tasks to CPUs."""
    if reason := missing():
        pytest.skip(f"NO SLURM HERE, nothing of it was tested: {reason}")
    with Cluster(nodes=("node1", "node2"), settings={"TaskPlugin": "task/affinity"}) as running:
        yield running


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "train.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    return path


def ranks(program: Path, run: Run, job_id: str = "") -> list[dict]:
    """What the ranks of a job were given; the run directory's name is left out."""
    paths = sorted(program.parent.glob(f"told.{job_id or run.job_id}.*"))
    texts = [path.read_text().replace(run.directory.name, "RUN") for path in paths]
    return [json.loads(text) for text in texts]


def differences(job: list[dict], clean: list[dict], other: list[dict]) -> list[str]:
    """What a job's ranks have otherwise than those of two clean jobs have alike."""
    assert len(job) == len(clean) == len(other)
    found = []
    for rank, (mine, theirs, third) in enumerate(zip(job, clean, other)):
        varies = {n for n, text in theirs["environ"].items() if third["environ"].get(n) != text}
        varies.add("MASTER_PORT")  # depends on the jobs that are running
        for name in sorted(mine["environ"].keys() | theirs["environ"].keys()):
            given, wanted = (each["environ"].get(name) for each in (mine, theirs))
            if given != wanted and (name not in varies or given in (None, POISON.get(name))):
                found.append(f"rank {rank}: {name}={given}, not {wanted}")
        found += [
            f"rank {rank}: {key}" for key in theirs if key != "environ" and mine[key] != theirs[key]
        ]
    return found


def by_hand(cluster: Cluster, run: Run, environ: Mapping[str, str]) -> str:
    """Submit a run's script from such a shell, and return the job's id, once it has ended."""
    script = str(run.directory / "job.sh")
    job_id = cluster.run("sbatch", "--parsable", script, environ=environ).strip()
    cluster.wait_for_end(job_id, 60)
    return job_id


def test_poisonous_variables_reach_no_rank(cluster: Cluster, program: Path, tmp_path: Path):
    given = variables(program, TASKS_PER_NODE="2", EP="4", GBS="4", RUN_TIME="3")
    clean = submit(cluster, tmp_path / "clean", **given)
    assert finish(cluster, clean, 60)["JobState"] == "COMPLETED", clean.logs()
    first = ranks(program, clean)
    assert [each["place"] for each in first] == [
        ["0", "node1", "0"], ["1", "node1", "1"], ["2", "node2", "0"], ["3", "node2", "1"],
    ]  # fmt: skip
    second = ranks(program, clean, by_hand(cluster, clean, {}))
    drawn = random.Random(12)
    subsets = [sorted(LAUNCHED), *(drawn.sample(sorted(LAUNCHED), 60) for _ in range(2))]
    for number, names in enumerate(subsets):
        stamp = f"26020{number + 1}_120000"
        poison = {name: POISON[name] for name in names}
        run = submit(cluster, tmp_path / "clean", TIMESTAMP=stamp, **{**poison, **given})
        assert finish(cluster, run, 60)["JobState"] == "COMPLETED", (names, run.logs())
        assert not differences(ranks(program, run), first, second)
    # Each once, so that no two that would cancel each other are always together.
    shuffled = drawn.sample(sorted(BY_HAND), len(BY_HAND))
    for names in (shuffled[number::4] for number in range(4)):
        job_id = by_hand(cluster, clean, {name: POISON[name] for name in names})
        log = tmp_path / "clean" / "slurm_logs" / f"{job_id}.log"
        assert cluster.state(job_id) == "COMPLETED", (names, log.read_text())
        assert not differences(ranks(program, clean, job_id), first, second), names
    said = re.findall(r"note: the submitting shell's (.*) did not reach", "".join(clean.logs()))
    assert any("PYTHONPATH" in line for line in said), said


def test_the_variables_are_those_of_the_manual():
    """Slurm's own pages on this machine name no input variable that is not tried."""
    for program in ("sbatch", "srun"):
        page = subprocess.run(
            ["man", program], env={**os.environ, "MANPAGER": "cat", "MANWIDTH": "100"},
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        if not page:
            pytest.skip(f"no manual page of {program} here, nothing was compared with it")
        page = re.sub(r".\x08|\x1b\[[0-9;]*m", "", page)
        part = page.split("INPUT ENVIRONMENT VARIABLES", 1)[1].split("OUTPUT ENVIRONMENT", 1)[0]
        named = set(re.findall(r"^ {7}((?:SBATCH|SLURM|SLURMD|SRUN|PMI)_\w+)", part, re.MULTILINE))
        assert len(named) > 50
        # This one is kept: it says where Slurm is.
        assert named - POISON.keys() == {"SLURM_CONF"}


def test_another_kind_of_job_starts_nothing(cluster: Cluster, program: Path, tmp_path: Path):
    run = submit(cluster, tmp_path / "out", **variables(program))
    finish(cluster, run, 60)
    by_hand(cluster, run, {"SBATCH_ARRAY_INX": "0-1"})
    by_hand(cluster, run, {"SBATCH_EXCLUSIVE": "user"})
    logs = sorted((tmp_path / "out" / "slurm_logs").glob("*.log"))
    *arrays, shared = [path.read_text() for path in logs if path.stem != run.job_id]
    assert arrays
    assert all(text.startswith("error: this is one of a job array") for text in arrays)
    assert shared.startswith("error: the job shares its nodes (SBATCH_EXCLUSIVE?)")
    assert len(run.jobs()) == 1


def test_what_is_taken_over_and_away_is_said(cluster: Cluster, program: Path, tmp_path: Path):
    shell = {"NCCL_NVLS_ENABLE": "1", "UCX_TLS": "tcp", "NCCL_X": "1", "PASS_ENV": "UCX_*"}
    given = variables(program, **shell, WANDB_API_KEY="not-to-be-written")
    run = submit(cluster, tmp_path / "out", **given)
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    assert "note: taken over from this shell: NCCL_NVLS_ENABLE\n" in run.seen.stderr
    assert "note: this shell's NCCL_X will not reach the training processes" in run.seen.stderr
    (rank, *_) = ranks(program, run)
    assert rank["environ"]["UCX_TLS"] == "tcp"
    assert rank["environ"]["WANDB_API_KEY"] == "not-to-be-written"
    said = yaml.safe_load((run.directory / "environment.yaml").read_text())["environment"]
    assert said["UCX_TLS"]["origin"] == "environment, PASS_ENV (environment)"
    seen = dict(
        line.split("=", 1)
        for line in (run.directory / "environment.rank0").read_text().splitlines()
    )
    assert {name: seen[name] for name in ("NCCL_NVLS_ENABLE", "UCX_TLS", "RANK")} == {
        "NCCL_NVLS_ENABLE": "1", "UCX_TLS": "tcp", "RANK": "0",
    }  # fmt: skip
    assert "WANDB_API_KEY" not in seen
    for path in run.directory.iterdir():
        assert "not-to-be-written" not in path.read_text(), path


def test_the_images_environment_does_not_win(cluster: Cluster, program: Path, tmp_path: Path):
    """A stand-in for Apptainer starts the task as a container would: with the image's values."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apptainer").write_text(
        "#!/bin/bash\nexport NCCL_NVLS_ENABLE=image OMP_NUM_THREADS=image MASTER_PORT=1\n"
        'while [[ $1 != image* ]]; do shift; done\nshift\nexec "$@"\n'
    )
    (tools / "apptainer").chmod(0o755)
    (tools / "setup.sh").write_text("declare -F module && export FROM_SETUP=1\n")
    given = variables(program, CONTAINER_RUNTIME="apptainer", CONTAINER_IMAGE="image.sif")
    run = submit(cluster, tmp_path / "out", **given, PATH=f"{tools}:/usr/sbin:/usr/bin:/bin")
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    for rank in ranks(program, run):
        assert rank["environ"]["NCCL_NVLS_ENABLE"] == "0"
        assert rank["environ"]["OMP_NUM_THREADS"] == "image"  # the job says nothing of it


def test_a_difference_from_environment_yaml_is_said(
    cluster: Cluster, program: Path, tmp_path: Path
):
    (tmp_path / "setup.sh").write_text(
        "export NCCL_NVLS_ENABLE=2 http_proxy=http://me:unseen@proxy:3128 MY_TOKEN=unseen\n"
    )
    given = variables(program, NODE_SETUP_PATH=str(tmp_path / "setup.sh"))
    run = submit(cluster, tmp_path / "out", **given)
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    said = "note: rank 0 has NCCL_NVLS_ENABLE=2, and environment.yaml says 0"
    assert said in run.logs()[0]
    (rank, *_) = ranks(program, run)
    assert rank["environ"]["http_proxy"] == "http://me:unseen@proxy:3128"
    shown = (run.directory / "environment.rank0").read_text()
    assert "\nhttp_proxy=http://***@proxy:3128\n" in shown
    for path in (*run.directory.iterdir(), *(tmp_path / "out" / "slurm_logs").iterdir()):
        assert "unseen" not in path.read_text(), path
