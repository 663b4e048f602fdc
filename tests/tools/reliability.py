"""What a run survives: each interruption on a real cluster, held against an undisturbed run.

The run is DeepSeek-V3, shrunken, with its optimizer and schedule.

    .venv/training/bin/python tests/tools/reliability.py [NAME…]     prints a table; about 15 minutes

A fast machine ends 120 iterations before the time limit: RELIABILITY_ITERATIONS=800.
After each one the run has to end at its last iteration, every step's loss and gradient norm equal
to the undisturbed run's to the last printed digit, with no process left behind.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.job.sbatch import SAVING_SIGNAL  # noqa: E402
from tests.support.cluster import Cluster, missing  # noqa: E402
from tests.support.launching import launch  # noqa: E402
from tests.support.slurm_training import CONF, DEEPSEEK, Run, finish, submit  # noqa: E402

ITERATIONS, INTERVAL, STRUCK = int(os.environ.get("RELIABILITY_ITERATIONS", "120")), 10, 25
CHECKPOINT_MIB = 2.8
NO_OUTPUT = "--output=/dev/null"


def words(save: Path) -> list[str]:
    """The command line of a run that saves every INTERVAL iterations."""
    return [
        "--save", str(save), "--save-interval", str(INTERVAL), "--train-iters", str(ITERATIONS),
    ]  # fmt: skip


def start(cluster: Cluster, output: Path, **variables: str) -> Run:
    """Submit a run, and wait until it has saved twice."""
    run = submit(cluster, output, words(output / "checkpoints"), **DEEPSEEK, **variables)
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


def preempt(cluster: Cluster, run: Run) -> Callable[[], None]:
    """Give the run's nodes to a job of a partition that comes first; return what ends that job."""
    words = ("--partition=urgent", f"--nodes={len(cluster.nodes)}", "--exclusive", NO_OUTPUT)
    other = cluster.run("sbatch", "--parsable", *words, "--wrap=sleep 20").strip()
    cluster.wait_for(lambda: cluster.state(other) == "RUNNING", 60, "the other job to start")
    assert cluster.state(run.jobs()[-1]) != "RUNNING"
    return lambda: cluster.run("scancel", other) and None


def cut_the_tracker(text: str) -> Callable[[Cluster, Run], Callable[[], None]]:
    """Return what ends a node, as the file that names the last checkpoint is being written."""

    def happen(cluster: Cluster, run: Run) -> Callable[[], None]:
        mend = kill_a_node(cluster, run)
        tracker = run.directory.parent.parent / "checkpoints/latest_checkpointed_iteration.txt"
        tracker.write_text(text)
        return mend

    return happen


def nothing(_cluster: Cluster, _run: Run) -> Callable[[], None]:
    """Leave the run alone."""
    return lambda: None


def fill_the_disk(cluster: Cluster, output: Path) -> Run:
    """Run on a disk that is full at the third checkpoint, and make room once a job has failed."""
    folder = cluster.resize_disk(round(CHECKPOINT_MIB * 2.5)) / output.name
    run = submit(cluster, output, words(folder), **DEEPSEEK, RESUBMIT="2")
    cluster.wait_for(lambda: len(run.jobs()) > 1, 180, "the first job to fail")
    assert "CheckpointException" in run.logs()[0], run.logs()[0][-3000:]
    assert shutil.disk_usage(folder).free < CHECKPOINT_MIB * 2**20
    cluster.resize_disk(1024)
    return run


def inside_a_step(cluster: Cluster) -> dict[str, str]:
    """Return the variables that a shell has inside a job step, on one core and with PMIx."""
    told = cluster.run("srun", "--mpi=pmix", "--cpu-bind=map_cpu:0", "env", "--null")
    pairs = dict(entry.partition("=")[::2] for entry in told.split("\0") if "=" in entry)
    del pairs["SLURM_CONF"]
    prefixes = ("SLURM", "SBATCH", "SRUN", "PMIX", "PMI_", "OMPI")
    return {name: text for name, text in pairs.items() if name.startswith(prefixes)}


def undisturbed_run(cluster: Cluster, output: Path, **variables: str) -> Run:
    """Submit a run, to which nothing else happens."""
    return submit(cluster, output, words(output / "checkpoints"), **DEEPSEEK, **variables)


def by_hand(cluster: Cluster, output: Path, environ: Mapping[str, str]) -> Run:
    """Submit a run's script as a user does, from a shell with such variables."""
    run = undisturbed_run(cluster, output, SBATCH_OPTIONS="--begin=now+1hour")
    cluster.run("scancel", run.job_id)
    script = run.directory / "job.sh"
    cluster.run("sbatch", "--begin=now", str(script), environ=environ)
    return run


def on_taken_ports(cluster: Cluster, output: Path, taken: ExitStack) -> Run:
    """Submit a run while something listens on the ports that it would come to first."""
    last = cluster.run("sbatch", "--parsable", "--hold", NO_OUTPUT, "--wrap=true").strip()
    cluster.run("scancel", last)
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        ceiling = int(file.read().split()[0])
    for number in range(1, 6):
        listening = taken.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 20000 + (int(last) + number) % (ceiling - 20000)))
        listening.listen()
    return undisturbed_run(cluster, output)


# Python that makes the writing of a checkpoint's index, which comes last, take for ever.
SLOW = """
import os, time
replace, rename = os.replace, os.rename
def slow(then):
    def move(source, target, **options):
        if str(target).endswith(".metadata") and os.path.exists({flag!r}):
            time.sleep(600)
        return then(source, target, **options)
    return move
os.replace, os.rename = slow(replace), slow(rename)
"""


def save_slowly(cluster: Cluster, output: Path) -> Run:
    """Run with a checkpoint that takes longer than there is time before the limit."""
    tools, flag = output / "tools", output / "slow"
    tools.mkdir(parents=True)
    (tools / "sitecustomize.py").write_text(SLOW.format(flag=str(flag)))
    (tools / "bind").write_text(f'#!/bin/bash\nPYTHONPATH={tools} exec "$@"\n')
    (tools / "bind").chmod(0o755)
    run = undisturbed_run(
        cluster, output, BINDPCIE_PATH=str(tools / "bind"), RUN_TIME="2", RESUBMIT="4"
    )
    cluster.wait_for(lambda: run.reached(STRUCK), 180, f"iteration {STRUCK}")
    flag.touch()
    cluster.wait_for(lambda: len(run.jobs()) > 1, 240, "the next job")
    flag.unlink()
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
    Interruption("preempted", preempt),
    Interruption("empty tracker", cut_the_tracker("")),
    Interruption("tracker of a lost checkpoint", cut_the_tracker("9999")),
    # Signalled a quarter before the limit, and by Slurm's clock up to half a minute earlier.
    Interruption("time limit", nothing, (("RESUBMIT", "3"), ("RUN_TIME", "2"))),
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
        starts=sum(log.count("=== DeepSeek-V3") for log in run.logs()),
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
    starts = sum(log.count("=== DeepSeek-V3") for log in run.logs())

    def goes_on() -> bool:
        """Whether a step was made after the interruption, by another start if there was one."""
        again = sum(log.count("=== DeepSeek-V3") for log in run.logs()) > starts
        return len(run.steps()) > before + (1 if again else 8)

    cluster.wait_for(goes_on, 240, "the run to go on")
    seconds = time.monotonic() - began
    mend()
    return outcome(cluster, run, undisturbed, seconds)


@dataclass(frozen=True)
class Beginning:
    """A way for a run to begin, after which it has to go its course as if nothing were wrong."""

    name: str
    begin: Callable[[Cluster, Path, ExitStack], Run]


def _clean_environ(names: Mapping[str, str]) -> Callable[[Cluster, Path, ExitStack], Run]:
    return lambda cluster, output, _: by_hand(cluster, output, names)


BEGINNINGS = (
    Beginning(
        "launched inside an srun step",
        lambda cluster, output, _: undisturbed_run(cluster, output, **inside_a_step(cluster)),
    ),
    Beginning(
        "sbatch job.sh inside an srun step",
        lambda cluster, output, _: by_hand(cluster, output, inside_a_step(cluster)),
    ),
    Beginning(
        "SBATCH_EXPORT=NONE",
        lambda cluster, output, _: undisturbed_run(cluster, output, **NO_EXPORT),
    ),
    Beginning("sbatch job.sh, SBATCH_EXPORT=NONE", _clean_environ({"SBATCH_EXPORT": "NONE"})),
    Beginning("port in use", on_taken_ports),
    Beginning("full disk", lambda cluster, output, _: fill_the_disk(cluster, output)),
    Beginning("save longer than its time", lambda cluster, output, _: save_slowly(cluster, output)),
)
NO_EXPORT = {"SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE"}
SETTINGS = {
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "TaskPlugin": "task/affinity",
}
PARTITIONS = ("PartitionName=urgent Nodes=ALL PriorityTier=10",)


def refused(cluster: Cluster, output: Path) -> dict[str, str]:
    """Return what is said, in one line each, of launches that must not start."""
    told = {}
    for name, more in (
        ("missing load path", {"LOAD_PATH": str(output / "absent"), "SMOKE": "0", "FORCE": "0"}),
        ("second launch", {}),
    ):
        given = {**DEEPSEEK, "SMOKE": "1", "CLUSTER": str(CONF), "OUTPUT_PATH": str(output), **more}
        seen = launch(words(output / "checkpoints"), **cluster.environ, **given)
        lines = seen.stderr.splitlines()
        assert (seen.status, seen.stdout, len(lines)) == (1, "", 1), seen
        told[name] = re.sub(r"^error: ", "", lines[0])
    return told


def row(name: str, found: Outcome) -> str:
    """Return a line of the table."""
    return (
        f"| {name} | {found.seconds:.0f} s | {found.jobs} | {found.starts} "
        f"| {found.repeated} | {found.state} at {found.reached} "
        f"| {'yes' if found.equal else 'NO'} | {found.left} |"
    )


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
        cluster = opened.enter_context(Cluster(settings=SETTINGS, partitions=PARTITIONS))
        calm = undisturbed_run(cluster, output / "calm")
        assert finish(cluster, calm, 400)["JobState"] == "COMPLETED", calm.logs()
        print(
            "| interruption | goes on after | jobs | starts | steps repeated | end | same curve | left |"
        )
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for case in (*INTERRUPTIONS, *BEGINNINGS):
            if chosen and case.name not in chosen:
                continue
            folder = output / re.sub(r"\W+", "-", case.name)
            try:
                if isinstance(case, Interruption):
                    found = suffer(cluster, case, folder, calm)
                else:
                    with ExitStack() as taken:
                        run = case.begin(cluster, folder, taken)
                        found = outcome(cluster, run, calm)
            except AssertionError as error:
                print(f"| {case.name} | FAILED: {str(error)[-2000:]} |", flush=True)
                failed += 1
                continue
            failed += not (found.equal and found.left == 0 and found.reached == ITERATIONS)
            # Where the machine is fast the run ends before its time limit: nothing was shown then.
            failed += (
                isinstance(case, Interruption)
                and found.starts < 2
                and case.name != "controller restarted"
            )
            print(row(case.name, found), flush=True)
        if not chosen or "no pmix" in chosen:
            other = opened.enter_context(Cluster(without="mpi_pmix"))
            found = outcome(other, undisturbed_run(other, output / "no-pmix"), calm)
            failed += not (found.equal and found.reached == ITERATIONS)
            print(row("no pmix", found), flush=True)
        for name, line in refused(cluster, output / "calm").items():
            print(f"| {name} | refused: {line} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
