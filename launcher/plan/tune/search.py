"""The search for the fastest sizes: an estimate of each candidate, then memory, then the schedule.

Candidates are estimated without a schedule, the best of them checked for memory and projected in
full, until all others are estimated slower than the results. A result must also pass the plan's
own rules.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from launcher.config.arguments import Arguments
from launcher.plan import memory, parameters, rules, shape, stages
from launcher.plan.projection import layers
from launcher.plan.projection.constants import GPUS, Constants
from launcher.plan.projection.execution import Execution
from launcher.plan.projection.projection import NOW, Projection, project
from launcher.plan.rules import Case
from launcher.plan.shape import Shape
from launcher.plan.tune import candidates
from launcher.plan.tune.candidates import Candidate
from launcher.records import dataclass

# PyTorch reserves more than it allocates: 4 to 7 % in published runs on B200.
HEADROOM = 0.06
SLACK = 1.15  # an estimate may be this much faster than the projection in full
RESULTS = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """A job with other sizes."""

    candidate: Candidate
    arguments: Arguments
    projection: Projection
    memory: memory.Rank  # the fullest
    room: float  # GiB that it leaves


@dataclass(frozen=True)
class Found:
    """The results of a search, and its counts."""

    results: tuple[Result, ...]  # the fastest first, no two of the same sizes
    considered: int  # candidates whose sizes divide
    too_full: int  # of those that were looked at
    refused: int  # by the rules


@dataclass(frozen=True)
class Task:
    """The task of a search: a job whose sizes may change, and the GPU that it runs on."""

    case: Case
    execution: Execution
    gpu: str
    constants: Constants
    fixed: Mapping[str, int]
    recompute: bool  # whether it may change what is recomputed


def search(task: Task, wanted: int = RESULTS, progress: Progress | None = None) -> Found:
    """Return the fastest choices that fit and that the rules accept.

    Raises ValueError where the job has no shape.
    """
    start = shape.read(task.case.arguments, task.case.world_size, task.case.release)
    estimated = estimates(task, start, progress)
    estimated.sort()
    best: dict[tuple[int, ...], Result] = {}
    too_full = refused = looked = 0
    # A split that does not fit with the most recomputation never fits.
    leanest = options(task, start)[-1]
    hopeless: set[tuple] = set()
    hopeful: set[tuple] = set()
    for seconds, one in estimated:
        if len(best) >= wanted:
            worst = sorted(each.projection.seconds for each in best.values())[wanted - 1]
            if seconds > worst * SLACK:
                break
        known = best.get(one.sizes)
        if known is not None and seconds > known.projection.seconds * SLACK:
            continue
        looked += 1
        if progress is not None and looked % 16 == 0:
            progress(looked, len(estimated))
        split = (one.sizes, one.layout)
        result = None if split in hopeless else _looked_at(task, one)
        if result is None:
            too_full += 1
            if split not in hopeless and split not in hopeful:
                lean = _looked_at(task, candidates.with_recompute(one, leanest, one.layout))
                (hopeful if lean is not None else hopeless).add(split)
            continue
        if known is not None and known.projection.seconds <= result.projection.seconds:
            continue
        if _refused(task, result):
            refused += 1
            continue
        best[one.sizes] = result
    ranked = sorted(best.values(), key=lambda each: (each.projection.seconds, each.candidate))
    return Found(tuple(ranked[:wanted]), len(estimated), too_full, refused)


def evaluate(task: Task, arguments: Arguments) -> tuple[Projection, memory.Rank, float]:
    """Return a job's projection, its fullest rank and the GiB that this one leaves."""
    read = shape.read(arguments, task.case.world_size, task.case.release)
    split = stages.split(read)
    ranks = memory.ranks(read, split)
    there = project(read, split, task.execution, task.gpu, task.constants)
    return there, memory.worst(ranks), memory.room(ranks, task.gpu)


def options(task: Task, start: Shape) -> list[tuple[str, ...]]:
    """Return the choices of recomputation; the last one needs least memory."""
    full = start.training.recompute == "full"
    present = ("full",) if full else tuple(sorted(_named(task)))
    if not task.recompute:
        return [present]
    return candidates.recomputations(start.model, present, task.execution.graphs != "none")


def estimates(
    task: Task, start: Shape, progress: Progress | None = None
) -> list[tuple[float, Candidate]]:
    """Return every candidate with an estimate of its seconds.

    Seconds of layers are computed once for all candidates that share them; the pipeline is taken
    to be even, with the bubble of its schedule.
    """
    parallel, training = start.parallel, start.training
    choices = options(task, start)
    known: dict[tuple, tuple[list[float], float]] = {}
    found: list[tuple[float, Candidate]] = []
    scale = math.exp(task.constants.age * (NOW - task.execution.released))
    counted = candidates.counted(start)
    for one in candidates.candidates(start, task.fixed):
        if training.overlap_experts and (
            one.expert == 1 or (one.pipeline > 1) != (one.virtual > 1)
        ):
            continue
        data = parallel.world // (one.tensor * one.pipeline * one.context)
        micro_batches = training.global_batch // (data * one.micro_batch)
        for modules in choices:
            key = (one.tensor, one.context, one.expert, one.micro_batch, modules)
            if key not in known:
                known[key] = _costs(task, start, one, modules)
                if progress is not None and len(known) % 16 == 0:
                    progress(0, 0)
            costs, extra = known[key]
            turn = (sum(costs) + extra) / one.pipeline
            idle = (one.pipeline - 1) / one.virtual
            seconds = scale * turn * (micro_batches + idle)
            chunks = one.pipeline * one.virtual
            for layout in _layouts(costs, extra, chunks, start, counted):
                found.append((seconds, candidates.with_recompute(one, modules, layout)))
    return found


def _layouts(
    costs: Sequence[float], extra: float, chunks: int, start: Shape, counted: int
) -> tuple[str, ...]:
    """Return the layouts worth trying: they depend on proportions alone, and these on few sizes."""
    if chunks == 1:
        return ("",)
    unit = max(costs)
    rounded = tuple(round(cost / unit, 1) for cost in costs)
    return _packed(rounded, round(extra / unit, 1), chunks, start.model.mtp, counted)


@functools.lru_cache(maxsize=4096)
def _packed(
    costs: tuple[float, ...], extra: float, chunks: int, mtp: int, counted: int
) -> tuple[str, ...]:
    return tuple(candidates.layouts(list(costs), extra, chunks, mtp, counted))


def _named(task: Task) -> tuple[str, ...]:
    given = task.case.arguments.get("--recompute-modules")
    granularity = task.case.arguments.get("--recompute-granularity")
    if granularity is None:
        return ()
    return given.values if given is not None else ("core_attn",)


def _costs(
    task: Task, start: Shape, one: Candidate, modules: tuple[str, ...]
) -> tuple[list[float], float]:
    """Return seconds of a micro-batch: of each layer, and of what follows the last."""
    parallel = dataclasses.replace(
        start.parallel,
        tensor=one.tensor,
        context=one.context,
        expert=one.expert,
        sequence=one.tensor > 1 and "--sequence-parallel" in task.case.arguments,
    )
    training = dataclasses.replace(
        start.training,
        micro_batch=one.micro_batch,
        recompute="full" if modules == ("full",) else "selective" if modules else None,
        recompute_modules=frozenset() if modules == ("full",) else frozenset(modules),
    )
    work = layers.workload(
        dataclasses.replace(start, parallel=parallel, training=training),
        task.execution,
        GPUS[task.gpu],
        task.constants,
    )
    model = start.model
    kinds: dict[str, float] = {}
    costs = []
    for number in range(model.layers):
        kind = stages.Layer(number, model.moe[number], model.linear[number], False)
        if kind.kind not in kinds:
            kinds[kind.kind] = layers.turn(work, layers.layer(work, kind))
        costs.append(kinds[kind.kind])
    extra = layers.turn(work, layers.loss(work)) * (1 + model.mtp)
    if model.mtp_built:
        last = stages.mtp_layer(model, 0)
        extra += model.mtp_built * layers.turn(work, layers.layer(work, last))
    return costs, extra


def _looked_at(task: Task, one: Candidate) -> Result | None:
    """Return a candidate in full; None where it does not fit, or splits no layers."""
    arguments = one.arguments(task.case.arguments)
    try:
        read = shape.read(arguments, task.case.world_size, task.case.release)
        split = stages.split(read)
    except ValueError:
        return None
    # Most often one of the first two stages is the fullest: they have most in flight.
    for stage in split[:2]:
        one_rank = memory.rank(read, stage, parameters.stage(read, stage))
        if not _fits([one_rank], task.gpu):
            return None
    ranks = memory.ranks(read, split)
    if not _fits(ranks, task.gpu):
        return None
    fullest, room = memory.worst(ranks), memory.room(ranks, task.gpu)
    there = project(read, split, task.execution, task.gpu, task.constants)
    return Result(one, arguments, there, fullest, room)


def _fits(ranks: Sequence[memory.Rank], gpu: str) -> bool:
    needed = memory.worst(ranks).total / memory.GIB
    return memory.room(ranks, gpu) >= HEADROOM * needed


def _refused(task: Task, result: Result) -> bool:
    """Say whether the plan's rules object."""
    case = dataclasses.replace(task.case, arguments=result.arguments)
    return any(finding.severity == "error" for finding in rules.check(case))
