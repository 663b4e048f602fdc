"""`python3 -m launcher tune`: the sizes that make a job fastest, and a sweep to try them."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from launcher.config.arguments import Arguments, quote
from launcher.config.settings import FIELDS, unfilled
from launcher.errors import UsageError
from launcher.job.build import FLAG_OF, build
from launcher.job.draft import Job
from launcher.job.request import Request
from launcher.plan import architectures, flags, memory, published
from launcher.plan.plan import Shaped
from launcher.plan.projection import anchor, calibration, report
from launcher.plan.projection.constants import GPUS
from launcher.plan.tune import search
from launcher.plan.tune.candidates import SIZES
from launcher.plan.tune.search import Found, Result, Task
from launcher.sweep.grid import NOT_HERE

MEASURED = 5  # worth measuring: what is closer together than the projection can tell apart
FILE = "tune.yaml"
OPTIONS = ("--free SIZES", "--keep-recompute", "--sweep-file FILE")
_LEFT_OUT = {*SIZES, *NOT_HERE, "TRAINING_PARAMS", "PLAN_FORMAT"}  # of a sweep's variables


@dataclass(frozen=True)
class Wish:
    """What the words after `tune` ask for."""

    free: frozenset[str]  # sizes to choose although they are set
    recompute: bool  # whether to choose what is recomputed
    file: Path | None  # where the sweep is written; None: beside the runs
    rest: tuple[str, ...]  # for Megatron


def wish(words: Sequence[str]) -> Wish:
    """Read the words. Raises UsageError."""
    free: set[str] = set()
    file, recompute, rest = None, True, []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, text = word.partition("=")
        if name in ("--free", "--sweep-file"):
            if not equals and not left:
                raise UsageError(f"{name} needs a value")
            text = text if equals else left.pop(0)
            if name == "--free":
                free |= set(SIZES) if text == "all" else set(text.split(","))
            else:
                file = Path(text)
        elif word == "--keep-recompute":
            recompute = False
        else:
            rest.append(word)
    unknown = sorted(free - set(SIZES))
    if unknown:
        raise UsageError(f"--free {','.join(unknown)} is not allowed: all, {', '.join(SIZES)}")
    return Wish(frozenset(free), recompute, file, tuple(rest))


def tune(request: Request, wanted: Wish) -> int:
    """Search, print ten results and write a sweep of the five best. Raises UsageError."""
    job = build(request)
    for finding in flags.check(job.command_line, job.settings.MCORE_RELEASE_VERSION):
        if finding.severity == "error":
            raise UsageError(f"{finding.message}. Options of tune: {', '.join(OPTIONS)}")
    shaped = job.plan.shaped
    task = _task(request, wanted, job)
    assert shaped is not None  # _task has made sure
    started = time.monotonic()
    found = search.search(task, progress=_bar if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    factor = _factor(job, shaped, task)
    print("\n".join(_table(job, shaped, task, found, factor)))
    print(
        f"{found.considered:,} candidates in {time.monotonic() - started:.0f} s; of those looked"
        f" at in full, {found.too_full} do not fit with {search.HEADROOM:.0%} to spare, and the "
        f"rules refuse {found.refused}"
    )
    if not found.results:
        raise UsageError("nothing fits: more nodes, or OPTIMIZER_OFFLOAD=1, leave more room")
    # Without a cluster config the template's OUTPUT_PATH is no place: the working directory is.
    folder = Path() if unfilled(job.settings, "OUTPUT_PATH") else Path(job.settings.OUTPUT_PATH)
    path = wanted.file or folder / FILE
    _write(path, request, found.results[:MEASURED])
    print(f"The {len(found.results[:MEASURED])} best as a sweep: python3 -m launcher sweep {path}")
    return 0


# What may change to make a job fit, the least first.
_CLOSER: tuple[tuple[str, ...], ...] = ((), ("PP", "VPP"), ("TP", "PP", "VPP"), SIZES)


def nearby(request: Request, job: Job) -> str | None:
    """Return the fastest choice that fits and is like the job; None where there is none.

    First what is recomputed changes, then the pipeline, then all sizes.
    """
    try:
        task = _task(request, Wish(frozenset(), True, None, ()), job)
    except UsageError:
        return None
    sizes = _sizes(task.case.arguments)
    for free in _CLOSER:
        fixed = {name: size for name, size in sizes.items() if name not in free}
        found = search.search(dataclasses.replace(task, fixed=fixed), wanted=1)
        if found.results:
            one = found.results[0]
            return (
                f"{_changed(one)}: {one.memory.total / memory.GIB:.0f} GiB, "
                f"{report.duration(one.projection.seconds)} a step (projected)"
            )
    return None


def _task(request: Request, wanted: Wish, job: Job) -> Task:
    shaped, site = job.plan.shaped, job.site
    if shaped is None:
        raise UsageError("the job's arguments leave its shape open: python3 -m launcher plan")
    if shaped.unknown:
        raise UsageError(
            f"{', '.join(sorted(shaped.unknown))} of this job are unknown: see its plan"
        )
    if site.gpu is None:
        raise UsageError("GPU is not set: the kind of GPU that the job is to run on")
    if site.gpu not in GPUS:
        raise UsageError(f"GPU={site.gpu} cannot be projected; allowed: {', '.join(GPUS)}")
    fixed = {}
    for name in SIZES:
        if name in wanted.free:
            continue
        has_flag = FLAG_OF[name] in job.command_line
        if has_flag or request.settings.origin(name) == "environment":
            fixed[name] = int(getattr(job.settings, name) or 1)
    return Task(
        case=shaped.case,
        execution=report.how(shaped, site),
        gpu=site.gpu,
        constants=calibration.read(site.calibration).constants,
        fixed=fixed,
        recompute=wanted.recompute,
    )


def _factor(job: Job, shaped: Shaped, task: Task) -> float:
    """Return the correction that a measurement like the job brings; the same for all results."""
    found = report.expectation(shaped, job.site)
    return found.factor if found is not None else 1.0


def _table(job: Job, shaped: Shaped, task: Task, found: Found, factor: float) -> list[str]:
    """Return the job as it is, the results, and what was measured nearby."""
    there, fullest, room = search.evaluate(task, task.case.arguments)
    now = there.seconds * factor
    capacity = fullest.total / memory.GIB + room
    band = anchor.bands()["near" if factor != 1.0 else "alone"]
    sizes = _sizes(task.case.arguments)
    full = "" if room >= 0 else ", which is too much"
    lines = [
        f"{job.settings.MODEL_NAME}, {job.world_size} {task.gpu}, GBS {job.settings.GBS}, "
        f"SEQ_LEN {job.settings.SEQ_LEN}; fixed: {_words(task.fixed) or 'nothing'}",
        f"as it is   {_words(sizes)}: {report.duration(now)} a step, "
        f"{there.tflops / factor:,.0f} TFLOPS/GPU, {fullest.total / memory.GIB:.0f} of "
        f"{capacity:.0f} GiB{full}",
        "",
        f"{'':3} {'step':>8} {'80 % band':>17} {'TFLOPS':>7} {'tokens/s':>9} {'GiB':>5}  sizes",
    ]
    for number, one in enumerate(found.results, 1):
        seconds = one.projection.seconds * factor
        low, high = report.duration(seconds / band), report.duration(seconds * band)
        lines.append(
            f"{number:>3} {report.duration(seconds):>8} {low + ' to ' + high:>17} "
            f"{one.projection.tflops / factor:>7,.0f} {one.projection.tokens / factor:>9,.0f} "
            f"{one.memory.total / memory.GIB:>5.0f}  {_changed(one)}"
        )
    lines.append("")
    lines += _nearby(job, task, found)
    if task.case.arguments.keys() & {"--overlap-moe-expert-parallel-comm", "--cuda-graph-impl"}:
        lines.append("Expert overlap and CUDA graphs stay as the job has them.")
    return lines


def _nearby(job: Job, task: Task, found: Found) -> list[str]:
    """Return the measurements nearest to the best results, whose time is only projected."""
    known = calibration.read(job.site.calibration)
    seen: dict[str, str] = {}
    for one in found.results[:MEASURED]:
        read = search.shape.read(one.arguments, task.case.world_size, task.case.release)
        near = published.nearest(
            architectures.name(read.model), task.gpu, read, task.execution, known.runs
        )
        if near is not None:
            source = near.settings["source"]
            seen.setdefault(
                source, f"measured   {near.tflops:,.0f} TFLOPS/GPU on {near.sizes}: {source}"
            )
    return list(seen.values()) or [f"measured   nothing of {job.site.model} on {task.gpu}"]


def _sizes(arguments: Arguments) -> dict[str, int]:
    found = {}
    for name in SIZES:
        given = arguments.get(FLAG_OF[name])
        found[name] = int(given.values[0]) if given is not None and given.values else 1
    return found


def _words(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def _changed(one: Result) -> str:
    """Return a result's sizes, its layout and what it recomputes."""
    words = [_words(dict(zip(SIZES, one.candidate.sizes)))]
    if one.candidate.layout:
        words.append(short(one.candidate.layout))
    words.append("recompute " + (" ".join(one.candidate.recompute) or "nothing"))
    return "; ".join(words)


def short(layout: str) -> str:
    """Return a layout with equal neighbours folded: Et*4|(tttt|)*14tmL."""
    parts = layout.split("|")
    middle, folded = parts[1:-1], ""
    while middle:
        times = next((n for n, part in enumerate(middle) if part != middle[0]), len(middle))
        folded += f"({middle[0]}|)*{times}" if times > 1 else f"{middle[0]}|"
        middle = middle[times:]
    return f"{parts[0]}|{folded}{parts[-1]}"


def _write(path: Path, request: Request, results: Sequence[Result]) -> None:
    """Write a sweep whose points are the results."""
    settings = request.settings
    variables = {
        name: str(getattr(settings, name))
        for name in FIELDS
        if settings.origin(name) == "environment" and name not in _LEFT_OUT
    }
    variables["MODEL"] = settings.MODEL
    points = [" ".join(quote(word) for word in _point(one)) for one in results]
    decided = {flag for one in results for flag in one.arguments if flag in _decided(one)}
    flags = {
        flag: _yaml(given.values)
        for flag, given in build(request).command_line.items()
        if flag not in decided and not flag.startswith("--recompute")
    }
    content = {
        "variables": {**variables, "TRAINING_PARAMS": points},
        **({"arguments": flags} if flags else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
    path.write_text(f"# Written by `python3 -m launcher tune`.\n{text}", encoding="utf-8")


def _point(one: Result) -> list[str]:
    return one.candidate.words


def _decided(one: Result) -> set[str]:
    return {word for word in one.candidate.words if word.startswith("--")} | {
        "--pipeline-model-parallel-layout",
        "--num-virtual-stages-per-pipeline-rank",
    }


def _yaml(values: Sequence[str]) -> object:
    if not values:
        return True
    return values[0] if len(values) == 1 else [list(values)]


def _bar(done: int, whole: int) -> None:
    print(
        f"\r{done:,} of {whole:,} candidates looked at" if whole else "\restimating …",
        end="",
        file=sys.stderr,
    )
