"""What a run survives: each interruption on a real cluster, held against an undisturbed run.

    .venv/training/bin/python tests/tools/reliability.py [NAME…]     prints a table; about 5 minutes

A fast machine ends 160 iterations before the time limit of a minute: RELIABILITY_ITERATIONS=800.
After each one the run has to end at its last iteration, every step's loss and gradient norm equal
to the undisturbed run's to the last printed digit, with no process left behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.job.sbatch import SAVING_SIGNAL  # noqa: E402
from tests.support.cluster import Cluster, missing  # noqa: E402
from tests.support.slurm_training import TINY, Run, finish, submit  # noqa: E402

ITERATIONS, INTERVAL, STRUCK = int(os.environ.get("RELIABILITY_ITERATIONS", "160")), 10, 25
CHECKPOINT_MIB = 7


def words(save: Path) -> list[str]:
    """The command line of a run that saves every INTERVAL iterations."""
    return [
        "--save", str(save), "--save-interval", str(INTERVAL), "--train-iters", str(ITERATIONS),
    ]  # fmt: skip


def start(cluster: Cluster, output: Path, **variables: str) -> Run:
    """Submit a run, and wait until it has saved twice."""
    run = submit(cluster, output, words(output / "checkpoints"), **TINY, **variables)
    cluster.wait_for(lambda: run.reached(STRUCK), 180, f"iteration {STRUCK}")
    return run


def nodes_of(cluster: Cluster, job_id: str) -> list[str]:
    """The nodes that a job has, the one of its script first."""
    return cluster.run("scontrol", "show", "hostnames", cluster.job(job_id)["NodeList"]).split()


def kill_a_node(cluster: Cluster, run: Run) -> Callable[[], None]:
    """End the job's second node; return what brings it back."""
    name = nodes_of(cluster, run.jobs()[-1])[-1]
    cluster.kill_node(name)
    return lambda: cluster.start_node(name)


def kill_the_first_node(cluster: Cluster, run: Run) -> Callable[[], None]:
    """End the node that runs the job's script and rank 0; return what brings it back."""
    name = nodes_of(cluster, run.jobs()[-1])[0]
    cluster.kill_node(name)
    return lambda: cluster.start_node(name)


def set_a_node_down(cluster: Cluster, run: Run) -> Callable[[], None]:
    """Have an administrator take the job's second node away; return what gives it back."""
    name = nodes_of(cluster, run.jobs()[-1])[-1]
    cluster.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")
    back = ("scontrol", "update", f"NodeName={name}", "State=RESUME")
    return lambda: cluster.run(*back, check=False) and None  # it may be back by itself


def signal_term(cluster: Cluster, run: Run) -> Callable[[], None]:
    """End the training processes, as a preemption or an impatient user does."""
    cluster.run("scancel", "--signal=TERM", run.jobs()[-1])
    return lambda: None


def ask_to_save(cluster: Cluster, run: Run) -> Callable[[], None]:
    """Ask the training processes to save and exit, as before the time limit."""
    cluster.run("scancel", f"--signal={SAVING_SIGNAL}", run.jobs()[-1])
    return lambda: None


def restart_the_controller(cluster: Cluster, run: Run) -> Callable[[], None]:
    """Kill slurmctld and start it again, which no running job should notice."""
    cluster.stop_controller()
    time.sleep(2)
    cluster.start_controller()
    return lambda: None


def nothing(_cluster: Cluster, _run: Run) -> Callable[[], None]:
    """Leave the run alone."""
    return lambda: None


def fill_the_disk(cluster: Cluster, output: Path) -> Run:
    """Run on a disk that is full at the third checkpoint, and make room once a job has failed."""
    folder = cluster.resize_disk(CHECKPOINT_MIB * 5 // 2) / output.name
    run = submit(cluster, output, words(folder), **TINY, RESUBMIT="2")
    cluster.wait_for(lambda: len(run.jobs()) > 1, 180, "the first job to fail")
    assert "CheckpointException" in run.logs()[0], run.logs()[0][-3000:]
    assert shutil.disk_usage(folder).free < CHECKPOINT_MIB << 20
    cluster.resize_disk(1024)
    return run


@dataclass(frozen=True)
class Interruption:
    """Something that happens to a run, and the variables that the run is submitted with."""

    name: str
    happen: Callable[[Cluster, Run], Callable[[], None]]
    variables: tuple[tuple[str, str], ...] = ()


INTERRUPTIONS = (
    Interruption("node killed", kill_a_node),
    Interruption("first node killed", kill_the_first_node),
    Interruption("node set DOWN", set_a_node_down),
    Interruption("SIGTERM", signal_term, (("RESUBMIT", "1"),)),
    Interruption("asked to save", ask_to_save, (("RESUBMIT", "1"),)),
    Interruption("controller restarted", restart_the_controller),
    # Signalled a quarter before the limit, and by Slurm's clock up to half a minute earlier.
    Interruption("time limit", nothing, (("RESUBMIT", "3"), ("RUN_TIME", "1"))),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a run that was interrupted."""

    state: str  # of its last job
    jobs: int
    starts: int
    repeated: int  # steps made more than once
    equal: bool  # all steps as in the undisturbed run
    reached: int  # the last iteration
    seconds: float  # from the interruption to the next step after it
    left: int  # processes


def outcome(cluster: Cluster, run: Run, undisturbed: Run, seconds: float = 0.0) -> Outcome:
    """Wait for a run's end and compare it with the undisturbed one."""
    ended = finish(cluster, run, 300)
    wanted = {step.iteration: step for step in undisturbed.steps()}
    steps = run.steps()
    return Outcome(
        state=ended["JobState"],
        jobs=len(run.jobs()),
        starts=sum(log.count("=== Mixtral") for log in run.logs()),
        repeated=len(steps) - len({step.iteration for step in steps}),
        equal={step.iteration for step in steps} == set(wanted)
        and all(step.same_as(wanted[step.iteration]) for step in steps),
        reached=steps[-1].iteration,
        seconds=seconds,
        left=len(cluster.processes(str(run.directory.parent.parent))),
    )


def suffer(cluster: Cluster, interruption: Interruption, output: Path, undisturbed: Run) -> Outcome:
    """Let something happen to a run, and tell what became of it."""
    run = start(cluster, output, **dict(interruption.variables))
    before = len(run.steps())
    began = time.monotonic()
    mend = interruption.happen(cluster, run)
    starts = sum(log.count("=== Mixtral") for log in run.logs())

    def goes_on() -> bool:
        """Whether a step was made after the interruption, by another start if there was one."""
        again = sum(log.count("=== Mixtral") for log in run.logs()) > starts
        return len(run.steps()) > before + (1 if again else 60)

    cluster.wait_for(goes_on, 240, "the run to go on")
    seconds = time.monotonic() - began
    mend()
    return outcome(cluster, run, undisturbed, seconds)


def main(arguments: list[str]) -> int:
    """Run all interruptions, or those named, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args(arguments).names
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    failed = 0
    with ExitStack() as opened:
        output = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        cluster = opened.enter_context(Cluster())
        calm = submit(cluster, output / "calm", words(output / "calm" / "checkpoints"), **TINY)
        finish(cluster, calm, 240)
        print(
            "| interruption | goes on after | jobs | starts | steps repeated | end | same curve | left |"
        )
        print("|---|---|---|---|---|---|---|---|", flush=True)
        cases = [(each.name, each) for each in INTERRUPTIONS]
        for name, case in [*cases, ("full disk", None)]:
            if chosen and name not in chosen:
                continue
            folder = output / name.replace(" ", "-")
            if case is None:
                found = outcome(cluster, fill_the_disk(cluster, folder), calm)
            else:
                found = suffer(cluster, case, folder, calm)
            failed += not (found.equal and found.left == 0 and found.reached == ITERATIONS)
            # Where the machine is fast the run ends before its time limit: nothing was shown then.
            failed += found.starts < 2 and name != "controller restarted"
            print(
                f"| {name} | {found.seconds:.0f} s | {found.jobs} | {found.starts} "
                f"| {found.repeated} | {found.state} at {found.reached} "
                f"| {'yes' if found.equal else 'NO'} | {found.left} |",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
