"""The cluster itself: several nodes, PMIx over them, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, missing
from tests.support.launching import ROOT

pytestmark = pytest.mark.slow


def test_a_job_over_two_nodes(cluster: Cluster, tmp_path: Path):
    command = "srun --mpi=pmix --label sh -c 'echo $(hostname) $PMIX_RANK'"
    job_id = cluster.run(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", f"--output={tmp_path}/log",
        "--wrap", command,
    ).strip()  # fmt: skip
    ended = cluster.wait_for_end(job_id, 60)
    assert ended["JobState"] == "COMPLETED"
    nodes = cluster.run("scontrol", "show", "hostnames", ended["NodeList"]).split()
    wanted = [f"{rank}: {node} {rank}" for rank, node in enumerate(sorted(nodes * 2))]
    assert sorted((tmp_path / "log").read_text().splitlines()) == wanted


def test_nothing_outlives_a_killed_suite(tmp_path: Path):
    if reason := missing():
        pytest.skip(reason)
    program = (
        "import time; from tests.support.cluster import Cluster\n"
        "with Cluster(['node1']) as cluster:\n"
        "    job = cluster.run('sbatch', '--parsable', '--output=/dev/null', '--wrap',"
        f" 'exec sleep 321 #{tmp_path}').strip()\n"
        "    cluster.wait_for(lambda: cluster.state(job) == 'RUNNING', 30, 'the job')\n"
        "    print(cluster.folder, flush=True); time.sleep(60)"
    )
    suite = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    folder = suite.stdout.readline().strip()
    assert folder
    assert _processes(folder)
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    end = time.monotonic() + 10
    while (left := _processes(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    with Cluster(["node1"]):
        assert not Path(folder).exists()


def _processes(word: str) -> list[str]:
    """The command lines of living processes that have this in their command or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in text:
            found.append(text.decode(errors="replace"))
    return found
