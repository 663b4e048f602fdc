"""`python -m launcher sweep FILE`: every point of a grid planned, and submitted exactly once.

What was submitted is kept beside FILE, in FILE.state: one JSON line an event, on disk before and
after each sbatch. A sweep can be stopped at any moment; the same command continues it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from launcher.config import bash_layers
from launcher.config.settings import Settings
from launcher.errors import UsageError
from launcher.job import build, local
from launcher.plan import memory
from launcher.report import training_log
from launcher.run import slurm, start, submission
from launcher.run.follow import TAIL
from launcher.sweep import grid
from launcher.sweep.grid import Grid, Point

REFUSALS = 3  # that many at the start, and none accepted: something is wrong with all of them


@dataclass(frozen=True)
class Planned:
    """A point as it would be launched, or why it cannot be."""

    point: Point
    environ: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()
    settings: Settings | None = None
    ranks: int = 0
    gib: float | None = None  # memory of the fullest rank, estimated
    refusal: str = ""


class State:
    """What is known of the points that were begun, kept in a file that one sweep at a time holds.

    Of each point: run_dir (about to be submitted), then job_id or refused, later ended.
    """

    def __init__(self, path: Path) -> None:
        """Take the file. Raises UsageError when another sweep, or its last sbatch, still has it."""
        try:
            self.file = path.open("a+b")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path} is in use: this sweep is running already") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be used: {error.strerror}") from None
        self.points = recorded(path)
        # What a crash left of a line was not yet done.
        self.file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def note(self, key: str, **facts: str) -> None:
        """Write facts of a point to disk."""
        line = json.dumps({"point": key, **facts}, ensure_ascii=False) + "\n"
        try:
            self.file.write(line.encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise UsageError(f"{self.file.name} cannot be written: {error.strerror}") from None
        _apply(self.points, key, facts)


def recorded(path: Path) -> dict[str, dict[str, str]]:
    """Read a state file: facts by point. Raises UsageError for a line that is none of ours."""
    points: dict[str, dict[str, str]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            facts = json.loads(line)
            key = facts.pop("point")
        except (ValueError, AttributeError, KeyError):
            raise UsageError(f"{path}:{number}: not a line of a sweep's state") from None
        _apply(points, key, facts)
    return points


def _apply(points: dict[str, dict[str, str]], key: str, facts: Mapping[str, str]) -> None:
    if "run_dir" in facts:  # a new attempt
        points[key] = {}
    points.setdefault(key, {}).update(facts)


def sweep(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Plan all points, submit what is left of them, print the tables; return the exit status."""
    if not words or words[0].startswith("-"):
        raise UsageError("python -m launcher sweep FILE [--megatron-flag value …]: FILE is missing")
    read = grid.read(Path(words[0]))
    planned = plan(read, words[1:], environ)
    state_path = read.path.with_name(f"{read.path.name}.state")
    ready = [each for each in planned if not each.refusal]
    print(plan_table(planned, recorded(state_path)), flush=True)
    _say(f"{len(planned)} points, {len(planned) - len(ready)} of them refused by the plan")
    if _on("DRY_RUN", environ) or not ready:
        return 0 if ready else 1
    start.need_sbatch()
    state = State(state_path)
    try:
        _settle(state)
        refused = _submit(ready, read.in_flight, state)
        if _on("WAIT", environ):
            _make_room(1, state, "the last jobs")
    except KeyboardInterrupt:
        _say("stopped: jobs that are submitted go on, and the same command continues the sweep")
        return 130
    states = _states(state)
    print(result_table(ready, state.points, states))
    ended_badly = any(slurm.is_over(name) and name != "COMPLETED" for name in states.values())
    return 1 if refused or (ended_badly and _on("WAIT", environ)) else 0


def plan(read: Grid, words: Sequence[str], environ: Mapping[str, str]) -> list[Planned]:
    """Plan every point, each through the same layers as a single launch."""
    for name in read.axes:
        if environ.get(name) or any(word.partition("=")[0] == name for word in words):
            where = "on the command line" if name.startswith("-") else "in the environment"
            raise UsageError(f"{name} is an axis of {read.path}, and it is set {where} too")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(_plan, read, words, environ), read.points()))


def _plan(read: Grid, words: Sequence[str], environ: Mapping[str, str], point: Point) -> Planned:
    # As everywhere, the environment wins over a file's fixed values; axes are not in it.
    given = {name: text for name, text in point.variables.items() if not environ.get(name)}
    try:
        sourced, all_words = bash_layers.source(
            read.script, [*point.words, *words], {**environ, **given}
        )
        sourced.update(_place(read, point, sourced))
        settings = bash_layers.read(sourced)
        described = build.build(settings, all_words, sourced)
    except UsageError as error:
        return Planned(point, refusal=str(error))
    refusal = "" if settings.FORCE else "; ".join(described.objections)
    if local.is_local(settings) and not settings.DRY_RUN:
        refusal = "CLUSTER=local runs one job at a time: a sweep submits to Slurm"
    ranks = described.world_size
    return Planned(point, sourced, all_words, settings, ranks, _memory(described), refusal)


def _place(read: Grid, point: Point, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the name and the OUTPUT_PATH that keep a point's job apart from all others."""
    text = re.sub(r"[^\w.+]+", "-", point.label.replace("=", "_"), flags=re.ASCII).strip("-")
    name = f"{text[:60]}-{hashlib.sha256(point.key.encode()).hexdigest()[:6]}"
    run_name = environ.get("RUN_NAME") or environ["MODEL_NAME"]
    output = environ.get("OUTPUT_PATH")
    return {
        "RUN_NAME": f"{run_name}-{name}",
        **({"OUTPUT_PATH": str(Path(output) / read.path.stem / name)} if output else {}),
    }


def _memory(described: build.Job) -> float | None:
    if described.plan.shape is None or described.settings.SMOKE:
        return None
    try:
        return memory.worst(described.plan.memory).total / memory.GIB
    except (ValueError, ArithmeticError, LookupError):
        return None


def _settle(state: State) -> None:
    """Find out what became of submissions that a crash or a silent Slurm cut off."""
    for key, facts in list(state.points.items()):
        if "run_dir" in facts and not {"job_id", "refused"} & facts.keys():
            job_id = _job_of(Path(facts["run_dir"]))
            state.note(key, **({"job_id": job_id} if job_id else {"refused": "never submitted"}))


def _job_of(run_dir: Path) -> str | None:
    """Return the job that was made of a run directory: by its notes, its log, or Slurm's queue."""
    notes = run_dir / "submission.yaml"
    known = yaml.safe_load(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    if "job_id" in known:
        return known["job_id"]
    if (run_dir / "log").is_symlink():  # the job itself makes it
        return (run_dir / "log").resolve().stem
    try:
        found = slurm.find(run_dir / "job.sh")
    except slurm.NoAnswer as error:
        raise UsageError(
            f"it cannot be told whether {run_dir} was submitted: {error}; "
            "nothing was submitted now, try again"
        ) from None
    if found:
        return found.job_id
    left = notes.stat().st_mtime + slurm.SUBMIT_SECONDS - time.time() if known else 0
    if "unanswered" in known and left > 0:
        raise UsageError(
            f"{run_dir} was submitted a moment ago without an answer, and Slurm may still take it; "
            f"try again in {left:.0f} s"
        )
    return None


def _submit(ready: Sequence[Planned], in_flight: int, state: State) -> int:
    """Submit the points that have no job yet; return how many Slurm refused."""
    waiting = [each for each in ready if "job_id" not in state.points.get(each.point.key, {})]
    refused = 0
    for number, each in enumerate(waiting, 1):
        _make_room(in_flight, state, f"{len(waiting) - number + 1} points to submit")
        described, _ = start.prepare(each.settings, each.words, each.environ)
        state.note(each.point.key, run_dir=str(described.run_dir))
        try:
            job_id = submission.hand_over(described, each.environ, [state.file.fileno()])
        except submission.Refusal as error:
            state.note(each.point.key, refused=str(error))
            _say(f"[{number}/{len(waiting)}] {each.point.label}: {error}")
            refused += 1
            if refused == number == REFUSALS:
                raise UsageError(f"the first {REFUSALS} submissions were refused") from None
            continue
        state.note(each.point.key, job_id=job_id)
        _say(f"[{number}/{len(waiting)}] {each.point.label}: job {job_id}")
    return refused


def _make_room(limit: int, state: State, why: str) -> None:
    """Wait until fewer than `limit` of the sweep's jobs wait or run."""
    scripts = {
        f"{facts['run_dir']}/job.sh" for facts in state.points.values() if "run_dir" in facts
    }
    shown, since = "", time.monotonic()
    while scripts:
        try:
            live = [
                queued.state
                for queued in slurm.queue()
                if queued.script in scripts and not slurm.is_over(queued.state)
            ]
            if len(live) < limit:
                return
            running = live.count("RUNNING")
            line = f"{running} jobs run, {len(live) - running} wait; {why}"
        except slurm.NoAnswer as error:
            line = f"Slurm does not answer: {error}"
        if line != shown:
            _say(line)
            shown, since = line, time.monotonic()
        time.sleep(slurm.interval(time.monotonic() - since))


def _states(state: State) -> dict[str, str]:
    """Return Slurm's state of each submitted point; the final ones are kept."""
    try:
        queued = {each.script: each.state for each in slurm.queue()}
        states = {}
        for key, facts in list(state.points.items()):
            if "job_id" not in facts:
                continue
            name = queued.get(f"{facts['run_dir']}/job.sh") or facts.get("ended")
            if name is None:
                known = slurm.state(facts["job_id"])
                name = known.name if known else "ENDED"
            if slurm.is_over(name) and name != facts.get("ended"):
                state.note(key, ended=name)
            states[key] = name
    except slurm.NoAnswer as error:
        raise UsageError(f"{error}; the same command shows the results later") from None
    return states


def plan_table(planned: Sequence[Planned], points: Mapping[str, Mapping[str, str]]) -> str:
    """Return the plan: each point, its world size, its memory, and whether it can be submitted."""
    rows = [("#", "point", "ranks", "GiB", "plan")]
    for number, each in enumerate(planned, 1):
        gib = "-" if each.gib is None else f"{each.gib:.0f}"
        job_id = points.get(each.point.key, {}).get("job_id")
        verdict = f"submitted, job {job_id}" if job_id else _verdict(each)
        rows.append((str(number), each.point.label, str(each.ranks or "-"), gib, verdict))
    return _columns(rows)


def _verdict(planned: Planned) -> str:
    if planned.refusal:
        return f"refused: {planned.refusal}"
    room = memory.GPU_GIB.get(planned.settings.GPU or "") if planned.settings else None
    if planned.gib is not None and room is not None and planned.gib > room:
        return f"ok, but seems not to fit {planned.settings.GPU} ({room:.0f} GiB)"
    return "ok"


def result_table(
    planned: Sequence[Planned],
    points: Mapping[str, Mapping[str, str]],
    states: Mapping[str, str],
) -> str:
    """Return what became of each point: job, state, progress, median throughput, run directory."""
    rows = [("#", "point", "job", "state", "iteration", "TFLOPS/GPU", "run directory")]
    for number, each in enumerate(planned, 1):
        facts = points.get(each.point.key, {})
        done = training_log.tail(Path(facts["run_dir"]) / "log", TAIL) if "run_dir" in facts else []
        speeds = [one.tflops for one in done if one.tflops is not None]
        rows.append(
            (
                str(number),
                each.point.label,
                facts.get("job_id", "-"),
                states.get(each.point.key, "refused" if "refused" in facts else "-"),
                f"{done[-1].number}/{done[-1].total}" if done else "-",
                f"{statistics.median(speeds):.1f}" if speeds else "-",
                facts.get("run_dir", "-"),
            )
        )
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _on(name: str, environ: Mapping[str, str]) -> bool:
    return environ.get(name, "") in ("1", "true")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
