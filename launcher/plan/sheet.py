"""The plan of one job and its sheet: stages, parameters, FLOPs and memory, for one look."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from launcher.arguments import Arguments
from launcher.plan import Finding, flags, flops, memory, parameters, stages
from launcher.plan.parameters import Count
from launcher.plan.shape import Shape, read
from launcher.plan.stages import Stage

BAR = 24  # characters of a full GPU


@dataclass(frozen=True)
class Plan:
    """What a job is. What only a reader needs is worked out when it is asked for."""

    shape: Shape | None  # None where the arguments do not determine it
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...]

    @functools.cached_property
    def counts(self) -> tuple[Count, ...]:
        """Parameters of each pipeline rank."""
        return parameters.stages(self.shape, self.stages)

    @functools.cached_property
    def memory(self) -> tuple[memory.Rank, ...]:
        """Memory of each pipeline rank."""
        return memory.ranks(self.shape, self.stages)

    def assumptions(self) -> list[str]:
        """Return what the memory estimate rests on."""
        return memory.assumptions(self.shape) if self.shape else []


def plan(arguments: Arguments, world_size: int, release: str) -> Plan:
    """Work a job out from its Megatron arguments, and find what the release would refuse."""
    found = flags.check(arguments, release)
    if any(finding.severity == "error" for finding in found):
        return Plan(None, (), tuple(found))
    try:
        shape = read(arguments, world_size)
    except (ValueError, ArithmeticError, LookupError) as error:
        found.append(Finding("warning", f"no plan could be made: {error}", "plan"))
        return Plan(None, (), tuple(found))
    try:
        return Plan(shape, stages.split(shape), tuple(found))
    except ValueError as error:  # Megatron refuses the same
        found.append(Finding("error", str(error), "layout"))
        return Plan(None, (), tuple(found))


def sheet(made: Plan, gpu: str | None) -> list[str]:
    """Return the plan's lines: the model, the stages, the memory, and whether it seems to fit."""
    if made.shape is None:
        return []
    try:
        return [*_stages(made, gpu), *_fullest(made, gpu)]
    except (ValueError, ArithmeticError, LookupError) as error:
        return [f"warning: no plan could be made: {error}"]


def _stages(made: Plan, gpu: str | None) -> list[str]:
    """Return the model's line, then one for each run of equal pipeline stages."""
    model, step = parameters.whole(made.shape.model), flops.iteration(made.shape)
    mtp = f" and {_billions(model.mtp)} of MTP" if model.mtp else ""
    gpus = made.shape.parallel.world
    lines = [
        f"{_billions(model.total)} parameters, {_billions(model.active)} active{mtp}; "
        f"{flops.per_token(made.shape) / 1e9:.1f} GFLOP a token, {step / 1e15:.1f} PFLOP a step "
        f"({step / gpus / 1e12:.1f} TFLOP a GPU)"
    ]
    capacity = memory.GPU_GIB[gpu] if gpu else max(one.total for one in made.memory) / memory.GIB
    rows = [
        (
            stages.describe(stage),
            _billions(count.total),
            one.total / memory.GIB,
        )
        for stage, count, one in zip(made.stages, made.counts, made.memory)
    ]
    width = max(len(row[0]) for row in rows)
    number = 0
    for (content, size, total), run in groupby(
        rows, key=lambda row: (row[0], row[1], round(row[2]))
    ):
        length = len(list(run))
        ranks = f"{number}-{number + length - 1}" if length > 1 else f"{number}"
        number += length
        lines.append(
            f"stage {ranks:<6}{content:<{width}}  {size:>7}  {total:4} GiB {_bar(total / capacity)}"
        )
    return lines


def _fullest(made: Plan, gpu: str | None) -> list[str]:
    """Return the fullest rank's memory by terms, and a warning where a GPU has less."""
    worst = memory.worst(made.memory)
    need = worst.total / memory.GIB
    limit = f" of {memory.GPU_GIB[gpu]:.0f} ({gpu})" if gpu else ""
    lines = [
        f"memory, fullest rank {worst.pipeline_rank}: {need:.1f} GiB{limit} = "
        + ", ".join(f"{name} {size / memory.GIB:.1f}" for name, size in _terms(worst))
        + " (estimate)"
    ]
    if gpu and memory.room(made.memory, gpu) < 0:
        lines.append(
            f"warning: pipeline rank {worst.pipeline_rank} needs {need:.0f} GiB and "
            f"GPU={gpu} has {memory.GPU_GIB[gpu]:.0f} (estimate, not calibrated on a GPU)"
        )
    return lines


def _terms(rank: memory.Rank) -> Sequence[tuple[str, int]]:
    return (
        ("weights", rank.weights),
        ("gradients", rank.gradients),
        ("optimizer", rank.optimizer),
        ("activations", rank.activations),
        ("logits", rank.logits),
        ("working", rank.working),
        ("framework", rank.framework),
    )


def _bar(share: float) -> str:
    filled = min(BAR, round(share * BAR))
    return "█" * filled + "·" * (BAR - filled) + (" over" if share > 1 else "")


def _billions(number: int) -> str:
    return f"{number / 1e9:.1f}B"
