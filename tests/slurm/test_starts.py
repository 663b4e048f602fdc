"""Where a start begins, and when it is done: the script's own checks, on the first node."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.job.test_loading import distributed, index, track
from tests.slurm.test_job import PROGRAM, told, variables
from tests.support.cluster import Cluster, missing
from tests.support.slurm_training import Run, finish, submit

pytestmark = pytest.mark.slow
DONE = 'print(" iteration       20/      20 | ")\nsys.exit()'


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "train.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    (path.parent / "orders").write_text(DONE)
    return path


def again(cluster: Cluster, run: Run) -> tuple[str, str]:
    """Submit the run's script by hand, and return how that job ended and what it wrote."""
    job_id = cluster.run("sbatch", "--parsable", str(run.directory / "job.sh")).strip()
    ended = cluster.wait_for_end(job_id, 60)
    log = run.directory.parent.parent / "slurm_logs" / f"{job_id}.log"
    return f"{ended['JobState']} {ended['ExitCode']}", log.read_text()


def loads(program: Path) -> str:
    argv = told(program, 0)["argv"]
    return argv[argv.index("--load") + 1] if "--load" in argv else ""


def test_a_later_start_reads_the_tracker(cluster: Cluster, program: Path, tmp_path: Path):
    out, save = tmp_path / "out", tmp_path / "out" / "checkpoints"
    run = submit(cluster, out, **variables(program))
    assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    assert loads(program) == ""
    assert (save / "run").readlink() == run.directory
    for said in ("", "13x", "30"):  # cut off, overwritten, and of a folder that is not there
        if not (save / "iter_0000010").exists():
            distributed(save / "iter_0000010")
            distributed(save / "iter_0000020")
            (save / "iter_0000020" / "metadata.json").unlink()
        track(save, said)
        state, log = again(cluster, run)
        assert state == "COMPLETED 0:0", log
        assert "goes on from the newest whole one, iter_0000010\n" in log
        assert "begins after iteration 10\n" in log
        assert loads(program) == str(save)
        assert (save / "latest_checkpointed_iteration.txt").read_text() == "10\n"
    (save / "iter_0000010" / ".metadata").unlink()
    track(save, "10")
    state, log = again(cluster, run)
    assert (state, len(log.splitlines())) == ("FAILED 1:0", 1)
    assert "iter_0000010 is not there, not whole" in log
    assert log.endswith("and no other checkpoint is whole\n")


def test_a_load_path_is_checked_on_the_node(cluster: Cluster, program: Path, tmp_path: Path):
    load = tmp_path / "load"
    run = submit(cluster, tmp_path / "out", LOAD_PATH=str(load), **variables(program))
    finish(cluster, run, 60)
    state, log = again(cluster, run)
    assert (state, log) == (
        "FAILED 1:0",
        f"error: {load} has no checkpoint: there is no latest_checkpointed_iteration.txt\n",
    )
    track(load, "release")
    (load / "release" / "mp_rank_00").mkdir(parents=True)
    assert again(cluster, run)[1].startswith(f"error: {load}/release is not there, not whole, or")
    (load / "release" / "mp_rank_00").rmdir()
    (load / "release").rmdir()
    distributed(load / "release")
    state, log = again(cluster, run)
    assert state == "COMPLETED 0:0", log
    assert f"begins with the weights in {load}\n" in log
    (load / "release" / ".metadata").write_bytes(index({"decoder.more.weight": (3, 4)}))
    state, log = again(cluster, run)
    assert (state, len(log.splitlines())) == ("FAILED 1:0", 1)
    assert log.startswith(f"error: {load}: its weights are not the model's: ")


def test_two_runs_do_not_share_a_folder(cluster: Cluster, program: Path, tmp_path: Path):
    out, save = tmp_path / "out", tmp_path / "out" / "checkpoints"
    go = tmp_path / "go"
    (program.parent / "orders").write_text(
        f"while not os.path.exists({str(go)!r}): time.sleep(0.1)\n{DONE}"
    )
    first = submit(cluster, out, **variables(program))
    cluster.wait_for(lambda: (program.parent / "told.1").exists(), 60, "the first job to train")
    second = submit(cluster, out, **variables(program, TIMESTAMP="260102_120000"))
    refused = cluster.wait_for_end(second.job_id, 60)
    assert refused["ExitCode"] == "1:0"
    log = (out / "slurm_logs" / f"{second.job_id}.log").read_text()
    said = f"error: job {first.job_id} (RUNNING) of {first.directory} saves to {save}\n"
    assert log == said
    go.touch()
    finish(cluster, first, 60)
    distributed(save / "iter_0000010")
    track(save, "10")
    # FORCE=1 takes the folder over, at its first start only; the first run then lets it be.
    state, log = again(cluster, second)
    assert state == "COMPLETED 0:0", log
    assert "begins at its first iteration" in log
    state, log = again(cluster, first)
    assert (state, len(log.splitlines())) == ("FAILED 1:0", 1)
    assert f"holds iteration 10 of {second.directory}: RESUME=1 continues it" in log


def test_a_run_is_continued_by_another(cluster: Cluster, program: Path, tmp_path: Path):
    out, save = tmp_path / "out", tmp_path / "out" / "checkpoints"
    run = submit(cluster, out, **variables(program))
    finish(cluster, run, 60)
    distributed(save / "iter_0000010")
    track(save, "10")
    more = variables(program, RESUME="1", TIMESTAMP="260103_120000", NNODES="1", TASKS_PER_NODE="2")
    resumed = submit(cluster, out, **more)
    assert f"note: {save} holds iteration 10 of run {run.directory}" in resumed.seen.stderr
    assert finish(cluster, resumed, 60)["JobState"] == "COMPLETED", resumed.logs()
    assert f"begins after iteration 10 of {run.directory}\n" in resumed.logs()[0]
    assert loads(program) == str(save)
    assert "--finetune" not in told(program, 0)["argv"]
    assert (save / "run").readlink() == resumed.directory


@pytest.mark.parametrize(
    ("orders", "state", "line"),
    [
        ('print(" iteration       13/     300 | ")\nsys.exit()', "FAILED",
         "error: the training ended with status 0 but not at its last iteration: iteration       13/     300"),
        ('print("ERROR: Invalid metadata file. Exiting")\nsys.exit()', "FAILED", "it made none"),
        ('print(" [exiting program at iteration 13] ")\nsys.exit()', "COMPLETED", ""),
        (DONE, "COMPLETED", ""),
    ],
)  # fmt: skip
def test_only_a_last_iteration_is_done(
    cluster: Cluster, program: Path, tmp_path: Path, orders: str, state: str, line: str
):
    (program.parent / "orders").write_text(orders)
    run = submit(cluster, tmp_path / "out", **variables(program, RESUBMIT="1"))
    assert finish(cluster, run, 60)["JobState"] == state
    assert line in run.logs()[0]
    assert len(run.jobs()) == (2 if state == "FAILED" else 1)


def first_port(job_id: int) -> int:
    """The port that a job's script tries first."""
    ceiling = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 20000 + job_id % (ceiling - 20000)


def port_of(program: Path) -> int:
    ports = {told(program, rank)["environ"]["MASTER_PORT"] for rank in (0, 1)}
    assert len(ports) == 1
    return int(ports.pop())


def numbered(job_id: int) -> Cluster:
    """A cluster whose first job has this number, which other clusters here hardly come to."""
    return Cluster(nodes=("node1", "node2"), settings={"FirstJobId": str(job_id)})


def test_a_port_that_is_taken_is_passed_over(program: Path, tmp_path: Path):
    """One port has a listener, the next one belongs to a job whose rank 0 does not listen yet."""
    if reason := missing():
        pytest.skip(reason)
    go, job_id = tmp_path / "go", 3000 + os.getpid() % 6000
    (program.parent / "orders").write_text(
        f"while not os.path.exists({str(go)!r}): time.sleep(0.1)\n{DONE}"
    )
    theirs = tmp_path / "theirs" / "train.py"
    shutil.copytree(program.parent, theirs.parent)
    # Both begin at the same port: one by what is taken, the other by its job's number.
    with socket.socket() as taken, numbered(job_id) as one, numbered(job_id + 1) as other:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first_port(job_id)))
        taken.listen()
        first = submit(other, tmp_path / "theirs" / "out", **variables(theirs))
        other.wait_for((theirs.parent / "told.1").exists, 60, "the other job to train")
        assert port_of(theirs) == first_port(job_id + 1)
        second = submit(one, tmp_path / "out", **variables(program))
        one.wait_for((program.parent / "told.1").exists, 60, "the job to train")
        go.touch()
        for cluster, run in ((other, first), (one, second)):
            assert finish(cluster, run, 60)["JobState"] == "COMPLETED", run.logs()
    assert port_of(program) == first_port(job_id + 2)


def test_a_port_of_the_users_own(cluster: Cluster, program: Path, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = submit(cluster, tmp_path / "out", **variables(program, MASTER_PORT=port))
        assert finish(cluster, run, 60)["ExitCode"] == "1:0"
        assert f"error: MASTER_PORT={port} is in use on node" in run.logs()[0]
    state, log = again(cluster, run)
    assert state == "COMPLETED 0:0", log
    assert told(program, 1)["environ"]["MASTER_PORT"] == port
