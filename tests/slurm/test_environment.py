"""What reaches the ranks is what job.sh says, from whatever shell it was launched or submitted."""

from __future__ import annotations

import json
import random
import re
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
# What a login shell, an interactive step or another job leaves behind; the first word of a value
# that is fatal, or wrong, where it is heeded.
POISON = {
    "SBATCH_ACCOUNT": "nobody", "SBATCH_ARRAY_INX": "0-1", "SBATCH_CONSTRAINT": "none",
    "SBATCH_DISTRIBUTION": "cyclic", "SBATCH_ERROR": "/dev/null", "SBATCH_EXPORT": "NONE",
    "SBATCH_HINT": "nomultithread", "SBATCH_JOB_NAME": "other", "SBATCH_NO_REQUEUE": "1",
    "SBATCH_OPEN_MODE": "truncate", "SBATCH_OUTPUT": "/dev/null", "SBATCH_OVERCOMMIT": "1",
    "SBATCH_PARTITION": "debug", "SBATCH_SIGNAL": "B:KILL@1", "SBATCH_TIMELIMIT": "1",
    "SBATCH_WAIT": "1", "SLURM_CPU_BIND": "map_cpu:0", "SLURM_CPUS_PER_TASK": "3",
    "SLURM_DISTRIBUTION": "cyclic", "SLURM_EXPORT_ENV": "NONE", "SLURM_GPUS": "8",
    "SLURM_GPUS_PER_NODE": "8", "SLURM_GRES": "gpu:8", "SLURM_HINT": "nomultithread",
    "SLURM_JOB_ID": "999999", "SLURM_JOB_NODELIST": "node9", "SLURM_JOB_NUM_NODES": "7",
    "SLURM_KILL_BAD_EXIT": "0", "SLURM_LABELIO": "0", "SLURM_MEM_PER_CPU": "99999999",
    "SLURM_MEM_PER_NODE": "1", "SLURM_MPI_TYPE": "none", "SLURM_NNODES": "1",
    "SLURM_NPROCS": "1", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "9",
    "SLURM_OVERCOMMIT": "1", "SLURM_PROCID": "5", "SLURM_STDOUTMODE": "none",
    "SLURM_TASKS_PER_NODE": "9", "SLURM_TIMELIMIT": "1", "SLURM_WORKING_DIR": "/absent",
    "SRUN_CPUS_PER_TASK": "16", "SRUN_EXPORT_ENV": "NONE", "PMIX_RANK": "5",
    "PMIX_NAMESPACE": "other", "PYTHONPATH": "/absent", "PYTHONHOME": "/absent",
    "LD_LIBRARY_PATH": "/absent", "LD_PRELOAD": "", "CUDA_VISIBLE_DEVICES": "0",
    "NCCL_SOCKET_IFNAME": "lo", "NVTE_FLASH_ATTN": "0", "TORCH_LOGS": "+dynamo",
    "TORCHELASTIC_RUN_ID": "other", "OMP_NUM_THREADS": "1", "RANK": "5", "WORLD_SIZE": "64",
    "MASTER_ADDR": "elsewhere", "BASH_ENV": "/absent", "BASH_FUNC_srun%%": "() { false; }",
    "SHELLOPTS": "xtrace", "HOME": "/absent", "USER": "nobody", "TMPDIR": "/absent",
    "_name": "x", "LC_ALL": "C.UTF-8", "SQUEUE_PARTITION": "debug", "turn": "9",
}  # fmt: skip
# Fatal to Slurm's own sbatch, or to this machine's Python, before anything of ours has run.
BY_HAND = {
    *("SBATCH_ACCOUNT", "SBATCH_ARRAY_INX", "SBATCH_CONSTRAINT", "SBATCH_PARTITION", "SBATCH_WAIT"),
    *("SBATCH_SIGNAL", "SBATCH_TIMELIMIT"),
}
LAUNCHER = {"PYTHONHOME", "PYTHONPATH"}
# Slurm's own account of one job and step, and what stands for its number.
OF_ONE_JOB = re.compile(r"SLURM|PMIX|MASTER_PORT|TRITON_CACHE_DIR|_$")


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
    """What the ranks of a job were given, without what is only that job's."""
    paths = sorted(program.parent.glob(f"told.{job_id or run.job_id}.*"))
    texts = [path.read_text().replace(str(run.directory), "RUN") for path in paths]
    told = [json.loads(text) for text in texts]
    for each in told:
        each["environ"] = {
            name: text for name, text in each["environ"].items() if not OF_ONE_JOB.match(name)
        }
    return told


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
    wanted = ranks(program, clean)
    assert [each["place"] for each in wanted] == [
        ["0", "node1", "0"], ["1", "node1", "1"], ["2", "node2", "0"], ["3", "node2", "1"],
    ]  # fmt: skip
    drawn = random.Random(12)
    for number in range(4):
        poison = dict(drawn.sample(sorted(POISON.items()), 30 if number else len(POISON)))
        launched = {name: poison[name] for name in poison.keys() - LAUNCHER}
        run = submit(
            cluster,
            tmp_path / "clean",
            TIMESTAMP=f"26020{number + 1}_120000",
            **{**launched, **given},
        )
        assert finish(cluster, run, 60)["JobState"] == "COMPLETED", (poison, run.logs())
        assert ranks(program, run) == wanted, poison
        again = {name: poison[name] for name in poison.keys() - BY_HAND}
        job_id = by_hand(cluster, clean, again)
        log = tmp_path / "clean" / "slurm_logs" / f"{job_id}.log"
        assert cluster.state(job_id) == "COMPLETED", (again, log.read_text())
        assert ranks(program, clean, job_id) == wanted, again
    said = re.findall(r"note: the submitting shell's (.*) did not reach", "".join(clean.logs()))
    assert any("PYTHONPATH" in line for line in said), said


def test_a_job_array_starts_nothing(cluster: Cluster, program: Path, tmp_path: Path):
    run = submit(cluster, tmp_path / "out", **variables(program))
    finish(cluster, run, 60)
    by_hand(cluster, run, {"SBATCH_ARRAY_INX": "0-1"})
    logs = sorted((tmp_path / "out" / "slurm_logs").glob("*.log"))
    told = [path.read_text() for path in logs if path.stem != run.job_id]
    assert told
    assert all(text.startswith("error: this is one of a job array") for text in told)
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
    (tmp_path / "setup.sh").write_text("export NCCL_NVLS_ENABLE=2\n")
    given = variables(program, NODE_SETUP_PATH=str(tmp_path / "setup.sh"))
    run = submit(cluster, tmp_path / "out", **given)
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    said = "note: rank 0 has NCCL_NVLS_ENABLE=2, and environment.yaml says 0"
    assert said in run.logs()[0]
