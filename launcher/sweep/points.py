"""The points of a sweep as they would be launched, or why they cannot be."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.config import bash_layers
from launcher.errors import UsageError
from launcher.job import request
from launcher.job.build import build
from launcher.job.draft import Job
from launcher.job.request import Request
from launcher.plan import memory
from launcher.sweep.grid import Grid, Point


@dataclass(frozen=True)
class Planned:
    """A point as it would be launched, or why it cannot be."""

    point: Point
    request: Request | None = None
    ranks: int = 0
    gib: float | None = None  # memory of the fullest rank, estimated
    refusal: str = ""


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
        asked = request.read(bash_layers.settings_of(sourced), all_words, sourced)
        job = build(asked)
    except UsageError as error:
        return Planned(point, refusal=str(error))
    refusal = "" if job.settings.FORCE else "; ".join(job.objections)
    if job.is_local and not job.settings.DRY_RUN:
        refusal = "CLUSTER=local runs one job at a time: a sweep submits to Slurm"
    return Planned(point, asked, job.world_size, _memory(job), refusal)


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
    if job.plan.shape is None or job.settings.SMOKE:
        return None
    try:
        return memory.worst(job.plan.memory).total / memory.GIB
    except (ValueError, ArithmeticError, LookupError):
        return None
