"""The search for the fastest sizes: an estimate of each candidate, then memory, then the schedule.

Candidates are estimated without a schedule, the best of them checked for memory and projected in
full, until what is left is estimated slower than the results. The plan's own rules have the last
word on every result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launcher.config.arguments import Arguments
from launcher.plan import memory, rules, shape, stages
from launcher.plan.projection import layers
from launcher.plan.projection.constants import Constants
from launcher.plan.projection.execution import Execution
from launcher.plan.projection.hardware import GPUS
from launcher.plan.projection.projection import NOW, Projection, project
from launcher.plan.rules import Case
from launcher.plan.shape import Shape
from launcher.plan.tune import candidates
from launcher.plan.tune.candidates import Candidate

# PyTorch reserves more than it allocates: 4 to 7 % in published runs on B200.
HEADROOM = 0.06
SLACK = 1.15  # an estimate may be this much better than what it stands for
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
    """What a search found."""

    results: tuple[Result, ...]  # the fastest first, no two of the same sizes
    considered: int  # candidates whose sizes divide
    too_full: int  # of those that were looked at
    refused: int  # by the rules


@dataclass(frozen=True)
class Task:
    """What a search looks at: a job whose sizes may change, and where it runs."""

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
    start = shape.read(task.case.arguments, task.case.world_size)
    estimated = estimates(task, start, progress)
    estimated.sort()
    best: dict[tuple[int, ...], Result] = {}
    too_full = refused = looked = 0
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
        result = _looked_at(task, one)
        if result is None:
            too_full += 1
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
    read = shape.read(arguments, task.case.world_size)
    split = stages.split(read)
    ranks = memory.ranks(read, split)
    there = project(read, split, task.execution, task.gpu, task.constants)
    return there, memory.worst(ranks), memory.room(ranks, task.gpu)


def estimates(
    task: Task, start: Shape, progress: Progress | None = None
) -> list[tuple[float, Candidate]]:
    """Return every candidate with an estimate of its seconds.

    Seconds of layers are computed once for all candidates that share them; the pipeline is taken
    to be even, with the bubble of its schedule.
    """
    parallel, training = start.parallel, start.training
    present = ("full",) if training.recompute == "full" else tuple(sorted(_named(task)))
    graphed = task.execution.graphs != "none"
    options = [present]
    if task.recompute:
        options = candidates.recomputations(start.model, present, graphed)
    known: dict[tuple, tuple[list[float], float, float]] = {}
    found: list[tuple[float, Candidate]] = []
    scale = math.exp(task.constants.age * (NOW - task.execution.released))
    counted = start.model.layers + start.split.account_embedding + start.split.account_loss
    for one in candidates.candidates(start, task.fixed):
        if training.overlap_experts and (one.expert == 1 or (one.pipeline > 1) != (one.virtual > 1)):
            continue
        data = parallel.world // (one.tensor * one.pipeline * one.context)
        micro_batches = training.global_batch // (data * one.micro_batch)
        for modules in options:
            key = (one.tensor, one.context, one.expert, one.micro_batch, modules)
            if key not in known:
                known[key] = _costs(task, start, one, modules)
                if progress is not None and len(known) % 16 == 0:
                    progress(0, 0)
            costs, extra, share = known[key]
            turn = (sum(costs) + extra) / one.pipeline
            idle = (one.pipeline - 1) / one.virtual
            seconds = scale * turn * (micro_batches + idle) + share
            chunks = one.pipeline * one.virtual
            for layout in _layouts(costs, extra, chunks, start, counted):
                found.append((seconds, candidates.with_recompute(one, modules, layout)))
    return found


_PACKED: dict[tuple, list[str]] = {}


def _layouts(
    costs: Sequence[float], extra: float, chunks: int, start: Shape, counted: int
) -> list[str]:
    if chunks == 1:
        return [""]
    # Layouts depend on the proportions alone, and those hardly on the sizes.
    unit = max(costs)
    rounded = tuple(round(cost / unit, 1) for cost in costs)
    key = (rounded, round(extra / unit, 1), chunks, start.model.mtp, counted)
    if key not in _PACKED:
        even = counted if not start.model.mtp else counted
        _PACKED[key] = candidates.layouts(
            list(rounded), round(extra / unit, 1), chunks, start.model.mtp, even
        )
    return _PACKED[key]


def _named(task: Task) -> tuple[str, ...]:
    given = task.case.arguments.get("--recompute-modules")
    granularity = task.case.arguments.get("--recompute-granularity")
    if granularity is None:
        return ()
    return given.values if given is not None else ("core_attn",)


def _costs(
    task: Task, start: Shape, one: Candidate, modules: tuple[str, ...]
) -> tuple[list[float], float, float]:
    """Return seconds of a micro-batch: of each layer, of what follows the last, of the ends."""
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
    job = layers.job(
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
            kinds[kind.kind] = layers.turn(job, layers.layer(job, kind))
        costs.append(kinds[kind.kind])
    extra = layers.turn(job, layers.loss(job)) * (1 + model.mtp)
    if model.mtp_built:
        last = stages.mtp_layer(model, 0)
        extra += model.mtp_built * layers.turn(job, layers.layer(job, last))
    return costs, extra, 0.0


def _looked_at(task: Task, one: Candidate) -> Result | None:
    """Return a candidate in full; None where it does not fit, or splits no layers."""
    arguments = one.arguments(task.case.arguments)
    try:
        read = shape.read(arguments, task.case.world_size)
        split = stages.split(read)
    except ValueError:
        return None
    ranks = memory.ranks(read, split)
    fullest = memory.worst(ranks)
    room = memory.room(ranks, task.gpu)
    if room < HEADROOM * fullest.total / memory.GIB:
        return None
    there = project(read, split, task.execution, task.gpu, task.constants)
    return Result(one, arguments, there, fullest, room)


def _refused(task: Task, result: Result) -> bool:
    """Say whether the plan's rules object."""
    case = dataclasses.replace(task.case, arguments=result.arguments)
    return any(finding.severity == "error" for finding in rules.check(case))
