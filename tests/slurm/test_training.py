"""Real training on a real Slurm: over two nodes, and through everything that interrupts it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Cluster
from tests.support.slurm_training import DEEPSEEK, Run, finish, submit
from tests.tools import reliability
from tests.tools.reliability import ITERATIONS, STRUCK, outcome, start, words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    run = submit(cluster, output, words(output / "checkpoints"), **DEEPSEEK)
    assert finish(cluster, run, 240)["JobState"] == "COMPLETED"
    return run


def test_deepseek_v3_trains_over_two_nodes(cluster: Cluster, tmp_path: Path):
    sizes = {"MODEL": "DeepSeek-V3", "NNODES": "128", "TP": "2", "PP": "2", "EP": "2"}
    run = submit(cluster, tmp_path / "out put", **sizes)
    assert "4 ranks; mock data" in run.seen.stderr
    ended = finish(cluster, run, 240)
    assert (ended["JobState"], ended["NumNodes"], ended["NumTasks"]) == ("COMPLETED", "2", "4")
    steps = run.steps()
    losses = [float(step.loss) for step in steps if step.loss]
    assert [step.iteration for step in steps] == list(range(1, 21))
    assert losses[-1] < 0.8 * losses[0]
    assert run.jobs() == [run.job_id]
    assert (
        run.directory / "log"
    ).resolve() == tmp_path / "out put" / "slurm_logs" / f"{run.job_id}.log"
    arguments = yaml.safe_load((run.directory / "arguments.yaml").read_text())["arguments"]
    assert arguments["--tensor-model-parallel-size"]["values"] == ["2"]
    # By hand, from the archive: the same run again, step by step.
    again = cluster.run("sbatch", "--parsable", str(run.directory / "job.sh")).strip()
    assert finish(cluster, run, 240)["JobState"] == "COMPLETED"
    assert run.jobs() == [run.job_id, again]
    assert len(run.steps()) == 40
    assert all(step.same_as(first) for step, first in zip(run.steps()[20:], steps))


def test_a_run_survives_one_thing_after_the_other(
    cluster: Cluster, undisturbed: Run, tmp_path: Path
):
    run = start(cluster, tmp_path, RESUBMIT="2")
    blows = (
        reliability.restart_the_controller,
        reliability.ask_to_save,
        reliability.kill_a_node,
        reliability.set_a_node_down,
    )
    mends = []
    for number, blow in enumerate(blows):
        iteration = STRUCK + 25 * number
        cluster.wait_for(partial(run.reached, iteration), 240, f"iteration {iteration}")
        mends.append(blow(cluster, run))
    found = outcome(cluster, run, undisturbed)
    for mend in mends:
        mend()
    assert (found.state, found.reached, found.equal, found.left) == (
        "COMPLETED",
        ITERATIONS,
        True,
        0,
    )
    # The controller's restart cost nothing, the request to save no step, each lost node some.
    assert (found.jobs, found.starts) == (2, 4)
    assert 0 < found.repeated < 2 * 2 * reliability.INTERVAL


def test_a_run_survives_a_full_disk(cluster: Cluster, undisturbed: Run, tmp_path: Path):
    found = outcome(cluster, reliability.fill_the_disk(cluster, tmp_path), undisturbed)
    assert (found.state, found.reached, found.equal, found.left) == (
        "COMPLETED",
        ITERATIONS,
        True,
        0,
    )
