"""The job script on a real Slurm: what arrives, who may start it, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.launching import launch
from tests.support.slurm_training import CONF, TINY, finish, submit

pytestmark = pytest.mark.slow

# Tells what its task was given, then does as asked: a training program that needs no second.
PROGRAM = """
import json, os, sys, time
folder = os.path.dirname(__file__)
told = {"argv": sys.argv[1:], "environ": dict(os.environ), "cwd": os.getcwd()}
with open(f"{folder}/told.{os.environ['RANK']}", "w") as file:
    json.dump(told, file)
with open(f"{folder}/orders") as file:
    exec(file.read())
print(" [after training is done] datetime: now")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A training program, which runs the Python in the file `orders` beside it."""
    path = tmp_path / "bin" / "train.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    (path.parent / "orders").touch()
    return path


def variables(program: Path, **further: str) -> dict[str, str]:
    """A full-size job of two ranks over two nodes that runs the program."""
    given = {"CLUSTER": str(CONF), "SMOKE": "0", "GPU": "H100", "TASKS_PER_NODE": "1", "GBS": "2"}
    given["RUN_TIME"] = "10"
    return {**TINY, **given, "TRAINING_SCRIPT_PATH": str(program), "FORCE": "1", **further}


def told(program: Path, rank: int) -> dict:
    """What the program's rank was given."""
    return json.loads((program.parent / f"told.{rank}").read_text())


def test_slurm_receives_what_the_preview_shows(cluster: Cluster, program: Path, tmp_path: Path):
    given = variables(
        program, OUTPUT_PATH=str(tmp_path / "out"), COMMENT="a 'b' $c |d", RESUBMIT="1",
        SBATCH_OPTIONS="--comment='two words' --nice=7 --signal=USR2@99",
    )  # fmt: skip
    words = ["--save", str(tmp_path / "save")]
    preview = launch(words, **cluster.environ, **given, DRY_RUN="1")
    assert "SBATCH_OPTIONS: --signal=USR2@99 replaces --signal=URG@150" in preview.stderr
    run = submit(cluster, tmp_path / "out", words, **given)
    cluster.run("scontrol", "write", "batch_script", run.job_id, str(tmp_path / "received"))
    assert (tmp_path / "received").read_text() == preview.script
    assert (run.directory / "job.sh").read_text() == preview.script
    ended = finish(cluster, run, 60)
    assert ended["JobState"] == "COMPLETED"
    assert (ended["Comment"], ended["Requeue"]) == ("two", "1")  # Slurm shows words apart
    assert told(program, 1)["argv"][-1] == told(program, 0)["argv"][-1]
    for rank in (0, 1):
        environ = told(program, rank)["environ"]
        assert (environ["RANK"], environ["LOCAL_RANK"]) == (str(rank), "0")
        assert (environ["WORLD_SIZE"], environ["LOCAL_WORLD_SIZE"]) == ("2", "1")
        assert environ["MASTER_ADDR"] == told(program, 0)["environ"]["SLURMD_NODENAME"]
    assert told(program, 0)["environ"]["SLURMD_NODENAME"] != environ["SLURMD_NODENAME"]
    head = run.logs()[0].splitlines()[:4]
    assert head[0].startswith("=== Mixtral-8x7B: 2 ranks, TP1")
    assert f"{run.job_id}, number 1 of this run, start 1; begins at its first" in head[1]
    assert head[2].endswith(
        " ".join(cluster.run("scontrol", "show", "hostnames", ended["NodeList"]).split())
    )
    assert head[3].endswith(str(run.directory))


def test_container_options_arrive(cluster: Cluster, program: Path, tmp_path: Path):
    image, data = tmp_path / "an image.sqsh", tmp_path / "data sets"
    image.touch()
    data.mkdir()
    given = variables(
        program, CONTAINER_RUNTIME="pyxis", CONTAINER_IMAGE=str(image), MEGATRON_PATH="/opt/mega tron",
        CONTAINER_MOUNTS=f"{data}:/data sets:ro,{tmp_path}", GB200_CLUSTER="1", SEGMENT="2", GPU="GB200",
    )  # fmt: skip
    cluster.offer_containers()
    try:
        run = submit(cluster, tmp_path / "out", **given)
        assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    finally:
        cluster.offer_containers(False)
    for rank in (0, 1):
        environ = told(program, rank)["environ"]
        got = {name: text for name, text in environ.items() if name.startswith("TOLD_")}
        assert got == {
            "TOLD_container_image": str(image),
            "TOLD_container_mounts": f"{data}:/data sets:ro,{tmp_path}",
            "TOLD_container_workdir": "/opt/mega tron",
            "TOLD_no_container_mount_home": "yes",
            "TOLD_segment": "2",
        }
    assert "#SBATCH --segment=2\n" in (run.directory / "job.sh").read_text()


def test_without_pyxis_there_is_one_line(cluster: Cluster, program: Path, tmp_path: Path):
    given = variables(
        program, CONTAINER_RUNTIME="pyxis", CONTAINER_IMAGE="image", CONTAINER_MOUNTS="/tmp"
    )
    run = submit(cluster, tmp_path / "out", MEGATRON_PATH="/opt", **given)
    assert "warning: srun has no --container-image here" in run.seen.stderr
    assert finish(cluster, run, 60)["ExitCode"] == "1:0"
    after = run.logs()[0].split("=== ")[-1].splitlines()[1:]
    assert len(after) == 1
    assert after[0].startswith("error: srun has no --container-image: the pyxis plugin is not")


def test_apptainer(cluster: Cluster, program: Path, tmp_path: Path):
    """Debian has no Apptainer, so a stand-in records its words and runs the command."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apptainer").write_text(
        f'#!/bin/bash\nprintf "%s\\0" "$@" >"{tools}/words"\n'
        'while [[ $1 != image* ]]; do shift; done\nshift\nexec "$@"\n'
    )
    (tools / "apptainer").chmod(0o755)
    (tools / "setup.sh").write_text("export FROM_SETUP='set up'\n")
    given = variables(
        program, CONTAINER_RUNTIME="apptainer", CONTAINER_IMAGE="image.sif", MEGATRON_PATH="/opt",
        CONTAINER_MOUNTS=f"{tmp_path}", NODE_SETUP_PATH=str(tools / "setup.sh"),
    )  # fmt: skip
    run = submit(cluster, tmp_path / "out", **given, PATH=f"{tools}:{_path()}")
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    words = (tools / "words").read_text().split("\0")
    options = ["exec", "--no-home", "--nv", "--bind", str(tmp_path), "--pwd", "/opt", "image.sif"]
    assert words[: len(options)] == options
    # The environment is set inside, after the image's own.
    assert words[len(options) :][:2] == ["bash", "-c"]
    assert words[words.index("task") :][:4] == ["task", "python3", "-u", str(program)]
    assert told(program, 1)["environ"]["FROM_SETUP"] == "set up"


def test_a_missing_mount_stops_the_submission(cluster: Cluster, program: Path, tmp_path: Path):
    given = variables(program, CONTAINER_RUNTIME="pyxis", CONTAINER_IMAGE="i", MEGATRON_PATH="/opt")
    mounts = f"{tmp_path},{tmp_path}/absent:/data,/absent-disk:/scratch"
    given |= {"CONTAINER_MOUNTS": mounts, "FORCE": "0", "OUTPUT_PATH": str(tmp_path / "out")}
    seen = launch(**cluster.environ, **given)
    assert seen.status == 1
    assert f"CONTAINER_MOUNTS (environment): {tmp_path}/absent does not exist" in seen.stderr
    assert "/absent-disk" not in seen.stderr  # may be on the nodes
    assert not (tmp_path / "out").exists()


def test_the_status_of_training_is_the_jobs(cluster: Cluster, program: Path, tmp_path: Path):
    (program.parent / "orders").write_text(
        "if os.environ['RANK'] == '1': sys.exit(3)\ntime.sleep(60)"
    )
    run = submit(cluster, tmp_path / "out", **variables(program))
    ended = finish(cluster, run, 40)  # the other rank does not keep it
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert not cluster.processes(str(program))


def test_a_run_directory_has_one_job_at_a_time(cluster: Cluster, program: Path, tmp_path: Path):
    (program.parent / "orders").write_text(
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.1)"
    )
    run = submit(cluster, tmp_path / "out", **variables(program))
    cluster.wait_for(lambda: (program.parent / "told.1").exists(), 60, "the first job to train")
    # Another name, so that Slurm does not hold it back.
    again = [
        cluster.run("sbatch", "--parsable", *words, str(run.directory / "job.sh")).strip()
        for words in (["--job-name=other"], [])
    ]
    assert cluster.wait_for_end(again[0], 60)["ExitCode"] == "1:0"
    logs = tmp_path / "out" / "slurm_logs"
    refusal = (logs / f"{again[0]}.log").read_text()
    assert refusal.startswith(f"error: job {run.job_id} (RUNNING) has this run directory")
    assert len(refusal.splitlines()) == 1
    assert cluster.job(again[1])["Reason"] in ("Dependency", "Singleton")
    (tmp_path / "go").touch()
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED"
    assert run.jobs() == [run.job_id, again[1]]
    assert "number 2 of this run" in run.logs()[1]


FAILS = """
if os.environ["RANK"] != "0":
    time.sleep(60)
path = os.path.join(folder, "starts")
starts = int(open(path).read()) + 1 if os.path.exists(path) else 1
open(path, "w").write(str(starts))
for number in range(1, (%s) + 1):
    print(f" iteration {number:8}/     100 | ", flush=True)
time.sleep(1)  # srun drops what a task says in the moment in which it ends the others
sys.exit(7)
"""


@pytest.mark.parametrize(
    ("reaches", "jobs", "last"),
    [
        ("5", 2, "not resubmitted, because the job before failed in the same way: exit status 7 after iteration        5"),
        ("starts", 3, "not resubmitted: RESUBMIT=2 follow-up jobs have run"),
    ],
)  # fmt: skip
def test_a_hopeless_run_is_given_up(
    cluster: Cluster, program: Path, tmp_path: Path, reaches, jobs, last
):
    (program.parent / "orders").write_text(FAILS % reaches)
    run = submit(cluster, tmp_path / "out", **variables(program, RESUBMIT="2"))
    ended = finish(cluster, run, 90)
    assert (ended["JobState"], len(run.jobs())) == ("FAILED", jobs)
    assert last in run.logs()[-1]


def test_what_follows_inherits_nothing_of_its_run(cluster: Cluster, program: Path, tmp_path: Path):
    """The script submits itself as a user's clean shell would; an sbatch on PATH tells how."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(
        f'#!/bin/bash\nenv >"{tools}/environ.$$"\nexec {shutil.which("sbatch")} "$@"\n'
    )
    (tools / "sbatch").chmod(0o755)
    (program.parent / "orders").write_text(
        'print(" [exiting program after 1 minutes] " if not os.path.exists(folder + "/once") else "")\n'
        "open(folder + '/once', 'a').close()"
    )
    given = variables(
        program, RESUBMIT="1", PASS_ENV="UCX_TLS", UCX_TLS="tcp", WANDB_API_KEY="of-theirs"
    )
    run = submit(cluster, tmp_path / "out", **given, PATH=f"{tools}:{_path()}", NCCL_X="1")
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    first, second = run.logs()
    assert "the submitting shell's" not in first + second
    submitted = [path.read_text().splitlines() for path in tools.glob("environ.*")]
    names = [{line.split("=", 1)[0] for line in lines if "=" in line} for lines in submitted]
    assert len(names) == 2
    own = {"HOME", "USER", "LOGNAME", "PATH", "SLURM_CONF", "WANDB_API_KEY", "PWD", "SHLVL", "_"}
    for each in names:
        of_the_job = {name for name in each if name.startswith(("SLURM_", "SLURMD_"))}
        assert each - of_the_job <= own, each - own
        assert "WANDB_API_KEY" in each


def _path() -> str:
    return str(Path(shutil.which("bash")).parent) + ":/usr/sbin:/usr/bin:/bin"
