"""Plan the points of a sweep: each as it would be launched, or the reason why it cannot be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config import bash_layers
from launcher.errors import UsageError
from launcher.job import request
from launcher.job.build import build
from launcher.job.draft import Job
from launcher.job.request import Request
from launcher.plan import memory
from launcher.sweep import layers
from launcher.sweep.grid import Grid, Point


@dataclass(frozen=True)
class Planned:
    """A point as it would be launched, or why it cannot be."""

    point: Point
    request: Request | None = None
    ranks: int = 0
    gib: float | None = None  # memory of the fullest rank, estimated
    refusal: str = ""
    job: str = ""  # the same for two points whose jobs are the same


def plan(read: Grid, words: Sequence[str], environ: Mapping[str, str]) -> list[Planned]:
    """Plan every point, each through the same layers as a single launch."""
    for name in read.axes:
        if environ.get(name) or any(word.partition("=")[0] == name for word in words):
            where = "on the command line" if name.startswith("-") else "in the environment"
            raise UsageError(f"{name} is an axis of {read.path}, and it is set {where} too")
    points = read.points()
    planned = []
    for point, left in zip(points, layers.of_points(read, points, words, environ)):
        planned.append(_plan(read, point, left))
        _tell(len(planned), len(points))
    return _refuse_repeated(planned)


def _tell(done: int, count: int) -> None:
    """Say how far a large sweep is."""
    if done % 100 == 0 and count > 200:
        line = f"planned {done:,} of {count:,} points"
        if sys.stderr.isatty():
            print(
                f"\r{line}" if done + 100 <= count else "\r\x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )
        elif done % 500 == 0:
            print(line, file=sys.stderr, flush=True)


def _plan(read: Grid, point: Point, left: layers.Sourced) -> Planned:
    if isinstance(left, UsageError):
        return Planned(point, refusal=str(left))
    sourced, all_words = left
    try:
        sourced.update(_place(read, point, sourced))
        asked = request.read(bash_layers.settings_of(sourced), all_words, sourced)
        job = build(asked)
    except UsageError as error:
        return Planned(point, refusal=str(error))
    refusal = "" if job.settings.FORCE else "; ".join(job.objections)
    if job.is_local and not job.settings.DRY_RUN:
        refusal = "CLUSTER=local runs one job at a time: a sweep submits to Slurm"
    return Planned(point, asked, job.world_size, _memory(job), refusal, _fingerprint(job))


def _refuse_repeated(planned: Sequence[Planned]) -> list[Planned]:
    """Refuse each point whose job equals an earlier one's: an axis has no effect there."""
    seen: dict[str, int] = {}
    found = []
    for number, each in enumerate(planned, 1):
        first = seen.setdefault(each.job, number) if each.job else number
        if first != number and not each.refusal:
            reason = f"the same job as point {first}: the values that differ have no effect"
            each = dataclasses.replace(each, refusal=reason)
        found.append(each)
    return found


def _fingerprint(job: Job) -> str:
    """Return a hash of what the job computes, without the names and paths of this point."""
    settings = job.settings
    text = json.dumps([job.nodes, job.tasks_per_node, job.command, sorted(job.environment.items())])
    for own in (settings.OUTPUT_PATH, settings.RUN_NAME or ""):
        text = text.replace(json.dumps(own)[1:-1], "") if own else text
    # The other options of sbatch count: --qos, --segment, --time.
    options = [option for option in job.sbatch if not option.startswith(("--job-name", "--output"))]
    return hashlib.sha256("\n".join([text, *options]).encode()).hexdigest()


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


def _memory(job: Job) -> float | None:
    if job.plan.shaped is None or job.settings.SMOKE:
        return None
    try:
        return memory.worst(job.plan.shaped.memory).total / memory.GIB
    except (ValueError, ArithmeticError, LookupError):
        return None
