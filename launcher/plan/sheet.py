"""The plan of one job and its sheet: stages, parameters, FLOPs and memory, for one look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from launcher.arguments import Arguments
from launcher.plan import Finding, flags, flops, memory, parameters, stages
from launcher.plan.parameters import Count, WholeModel
from launcher.plan.shape import Shape, read
from launcher.plan.stages import Stage

BAR = 24  # characters of a full GPU


@dataclass(frozen=True)
class Plan:
    """What a job is: None for what its arguments do not determine."""

    shape: Shape | None
    stages: tuple[Stage, ...]
    counts: tuple[Count, ...]  # parameters, a pipeline rank each
    memory: tuple[memory.Rank, ...]
    model: WholeModel | None
    flops_per_token: float  # forward and backward, Megatron's own count
    findings: tuple[Finding, ...]

    def assumptions(self) -> list[str]:
        """Return what the memory estimate rests on."""
        return memory.assumptions(self.shape) if self.shape else []


def plan(arguments: Arguments, world_size: int, release: str, gpu: str | None) -> Plan:
    """Work a job out from its Megatron arguments. `gpu` is a name of memory.GPU_GIB, if known."""
    found = flags.check(arguments, release)
    if any(finding.severity == "error" for finding in found):
        return Plan(None, (), (), (), None, 0.0, tuple(found))
    try:
        shape = read(arguments, world_size)
        try:
            split = stages.split(shape)
        except ValueError as error:  # Megatron refuses the same
            found.append(Finding("error", str(error), "layout"))
            return Plan(None, (), (), (), None, 0.0, tuple(found))
        counts = parameters.stages(shape, split)
        ranks = memory.ranks(shape, split)
        whole = parameters.whole(shape.model)
        per_token = flops.per_token(shape)
    except (ValueError, ArithmeticError, LookupError) as error:
        found.append(Finding("warning", f"no plan could be made: {error}", "plan"))
        return Plan(None, (), (), (), None, 0.0, tuple(found))
    if gpu and memory.room(ranks, gpu) < 0:
        worst = memory.worst(ranks)
        found.append(
            Finding(
                "warning",
                f"pipeline rank {worst.pipeline_rank} needs {worst.total / memory.GIB:.0f} GiB and "
                f"GPU={gpu} has {memory.GPU_GIB[gpu]:.0f} (estimate, not calibrated on a GPU)",
                "memory",
            )
        )
    return Plan(shape, split, counts, ranks, whole, per_token, tuple(found))


def sheet(made: Plan, gpu: str | None) -> list[str]:
    """Return the plan's lines: the model, then a line for each run of equal pipeline stages."""
    if made.shape is None or made.model is None:
        return []
    model, step = made.model, flops.iteration(made.shape)
    mtp = f" and {_billions(model.mtp)} of MTP" if model.mtp else ""
    gpus = made.shape.parallel.world
    lines = [
        f"{_billions(model.total)} parameters, {_billions(model.active)} active{mtp}; "
        f"{made.flops_per_token / 1e9:.1f} GFLOP a token, {step / 1e15:.1f} PFLOP a step "
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
    worst = memory.worst(made.memory)
    limit = f" of {memory.GPU_GIB[gpu]:.0f} ({gpu})" if gpu else ""
    lines.append(
        f"memory, fullest rank {worst.pipeline_rank}: {worst.total / memory.GIB:.1f} GiB{limit} = "
        + ", ".join(f"{name} {size / memory.GIB:.1f}" for name, size in _terms(worst))
        + " (estimate)"
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
