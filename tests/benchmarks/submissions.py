"""200 submissions in a row and 20 at once, to a real Slurm: 220 run directories, none mixed.

    python tests/benchmarks/submissions.py [in a row] [at once]

Starts a cluster as tests/slurm/ does, and submits the same job over and over. Prints the time of a
submission as a ratio to an sbatch of the same script by hand, in the same run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.slurm.test_submission import run_dirs, submit  # noqa: E402
from tests.support.cluster import Cluster, missing  # noqa: E402


def main() -> int:
    in_a_row, at_once = (int(word) for word in [*sys.argv[1:3], "200", "20"][:2])
    if reason := missing():
        print(f"no Slurm here: {reason}")
        return 1
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        environment = {
            **cluster.environ,
            "MODEL": "DeepSeek-V2-Lite",
            "ACCOUNT": "me",
            "PARTITION": "batch",
            "CONTAINER_IMAGE": "image.sqsh",
            "CONTAINER_MOUNTS": "/data:/data,/tmp",
            "MEGATRON_PATH": "/opt/megatron-lm",
            "OUTPUT_PATH": f"{folder}/out",
            "TIMESTAMP": "",
        }
        cluster.run("scontrol", "update", "PartitionName=batch", "State=DOWN")  # none need run
        told, seconds, by_hand = [], [], []
        for number in range(in_a_row):
            start = time.perf_counter()
            told.append(submit(environment, number))
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            subprocess.run(
                ["sbatch", "--parsable", "--output=/dev/null", f"{told[-1][1]}/job.sh"],
                env={**os.environ, **cluster.environ}, check=True, capture_output=True,
            )  # fmt: skip
            by_hand.append(time.perf_counter() - start)
        numbers = range(in_a_row, in_a_row + at_once)
        with ThreadPoolExecutor(at_once) as pool:
            told += pool.map(lambda number: submit(environment, number), numbers)
        directories = {path for _, path in told}
        assert len({job_id for job_id, _ in told}) == len(directories) == len(told)
        assert sorted(directories) == sorted(map(str, run_dirs(Path(folder))))
        mine, theirs = statistics.median(seconds), statistics.median(by_hand)
        print(f"{len(told)} jobs, {len(directories)} run directories, each the one of its job")
        print(f"a submission {mine:.2f} s, sbatch alone {theirs:.2f} s: {mine / theirs:.1f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
