"""Training jobs on the test cluster: launched as a user does, read from what they leave behind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.launching import Launched, launch

CONF = Path(__file__).with_name("cpu.conf")
# Two ranks that exchange experts and gradients, and nothing more than that.
TINY = {"MODEL": "Mixtral-8x7B", "TP": "1", "PP": "1", "VPP": "1", "EP": "2", "NNODES": "2"}
# Likewise, with the attention, the router, MTP and the optimizer of the README's first model.
DEEPSEEK = {**TINY, "MODEL": "DeepSeek-V3"}
_STEP = re.compile(r"\biteration +(\d+)/ *\d+ \|.*\| lm loss: (\S+) \|.*\| grad norm: (\S+) \|")


@dataclass(frozen=True)
class Step:
    """One iteration as it was logged, to the last printed digit."""

    iteration: int
    loss: str | None  # None where the log has an average over two steps
    gradient: str  # norm

    def same_as(self, other: Step) -> bool:
        """Whether both are the same step of the same run."""
        losses = {self.loss, other.loss} - {None}
        return len(losses) <= 1 and (self.iteration, self.gradient) == (
            other.iteration,
            other.gradient,
        )


@dataclass(frozen=True)
class Run:
    """A run that was submitted."""

    job_id: str  # of its first job
    directory: Path
    seen: Launched

    def logs(self) -> list[str]:
        """Return the logs of its jobs, the first one's first."""
        links = sorted(self.directory.glob("log.*"), key=lambda path: int(path.suffix[1:]))
        return [path.read_text(errors="replace") if path.exists() else "" for path in links]

    def jobs(self) -> list[str]:
        """Return the ids of its jobs that have started, the first one's first."""
        links = sorted(self.directory.glob("log.*"), key=lambda path: int(path.suffix[1:]))
        return [path.readlink().stem for path in links]

    def steps(self) -> list[Step]:
        """Return every step that was made, in that order."""
        found = []
        for line in "\n".join(self.logs()).splitlines():
            if line.startswith("=== ") and "ranks" in line:
                number = 0  # of the step within its start
            elif step := _STEP.search(line):
                number += 1
                # Megatron averages the first two losses of a start into the second line.
                found.append(Step(int(step[1]), step[2] if number != 2 else None, step[3]))
        return found

    def reached(self, iteration: int) -> bool:
        """Whether it has come that far."""
        return max((step.iteration for step in self.steps()[-1:]), default=0) >= iteration


def submit(cluster: Cluster, output: Path, words: Sequence[str] = (), **variables: str) -> Run:
    """Launch a shrunken job on the cluster. AssertionError when it is not submitted."""
    given = {"SMOKE": "1", "CLUSTER": str(CONF), "OUTPUT_PATH": str(output)}
    given = {**given, "RUN_TIME": "10", **variables}
    seen = launch(words, **cluster.environ, **given)
    assert seen.status == 0, seen.stderr
    job_id = re.search(r"Submitted batch job (\d+)", seen.stdout)
    directory = re.search(r"run directory +(.*)", seen.stdout)
    assert job_id, seen.stdout
    assert directory, seen.stdout
    return Run(job_id[1], Path(directory[1]), seen)


def finish(cluster: Cluster, run: Run, seconds: float) -> dict[str, str]:
    """Wait until no job of the run is left, and return what Slurm tells of the last one."""

    def over() -> dict[str, str] | None:
        queued = cluster.run("squeue", "--noheader", "--format=%o", check=False)
        if str(run.directory) in queued:
            return None
        return cluster.job(run.jobs()[-1]) if run.jobs() else None

    return cluster.wait_for(over, seconds, f"the run in {run.directory} to end")
