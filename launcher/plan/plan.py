"""The plan of one job: what it is, whether it can work, and what it needs."""

from __future__ import annotations

import functools
from pathlib import Path

from launcher.config.gpus import GPUS
from launcher.plan import Finding, flags, influence, memory, parameters, remedies, rules, stages
from launcher.plan.parameters import Count
from launcher.plan.rules import Case
from launcher.plan.shape import Shape, read
from launcher.plan.stages import Stage
from launcher.records import dataclass


@dataclass(frozen=True)
class Site:
    """Where a job runs."""

    model: str  # its name, for published results
    nodes: int
    tasks_per_node: int
    gpu: str | None  # a name of gpus.GPUS
    bound: bool = False  # whether processes are bound to their NUMA node
    calibration: Path | None = None  # what was measured on this cluster


@dataclass(frozen=True)
class Shaped:
    """A job whose arguments determine its shape. Numbers for readers are computed on demand."""

    case: Case
    shape: Shape
    stages: tuple[Stage, ...]
    unknown: frozenset[str] = frozenset()  # of parameters, memory and FLOPs (plan.influence)
    refused: bool = False  # the plan has an error, so that the job has no speed

    @functools.cached_property
    def counts(self) -> tuple[Count, ...]:
        """Parameters of each pipeline rank. Raises ValueError where they are unknown."""
        self._known("parameters")
        return parameters.stages(self.shape, self.stages)

    @functools.cached_property
    def memory(self) -> tuple[memory.Rank, ...]:
        """Memory of each pipeline rank. Raises ValueError where it is unknown."""
        self._known("memory")
        return memory.ranks(self.shape, self.stages)

    def _known(self, what: str) -> None:
        if what in self.unknown:
            raise ValueError(f"{what}: a flag of the job is not modelled")

    def assumptions(self) -> list[str]:
        """Return the assumptions of the memory estimate."""
        return memory.assumptions(self.shape)


@dataclass(frozen=True)
class Plan:
    """The plan: what Megatron would refuse, and the shape, where the arguments determine it."""

    shaped: Shaped | None  # None where the arguments do not determine it
    findings: tuple[Finding, ...]


def plan(case: Case) -> Plan:
    """Return the plan of a job, from its Megatron arguments."""
    unknown, unmodelled = influence.unknown(case.arguments)
    found = [*flags.check(case.arguments, case.release), *rules.check(case), *unmodelled]
    refused = any(finding.severity == "error" for finding in found)
    try:
        shape = read(case.arguments, case.world_size, case.release)
        return Plan(Shaped(case, shape, stages.split(shape), unknown, refused), tuple(found))
    except (ValueError, ArithmeticError, LookupError) as error:
        if (
            not refused and "parameters" not in unknown
        ):  # otherwise an error or a note gives the reason already
            found.append(Finding("warning", f"no plan could be made: {error}", "plan"))
        return Plan(None, tuple(found))


def too_full(made: Shaped, site: Site) -> Finding | None:
    """Return the warning that the fullest rank needs more memory than its GPU can give."""
    gpu = site.gpu
    if gpu is None or "memory" in made.unknown:
        return None
    worst = memory.worst(made.memory)
    needed, has = worst.total / memory.GIB, GPUS[gpu].memory
    if needed <= remedies.USABLE * has:
        return None
    message = (
        f"pipeline rank {worst.pipeline_rank} needs {needed:.0f} GiB and GPU={gpu} has {has:.0f}"
    )
    if needed <= has:
        message += ", of which published runs lose 4 to 7 % to fragments"
    known = remedies.recipe(site.model, gpu)
    ways = [f"{known} is a recipe for it"] if known else []
    change = remedies.smallest(made.case, made.shape, gpu)
    ways += [change] if change else []
    return Finding(
        "warning",
        "; ".join([f"{message} (estimate, not calibrated on a GPU)", *ways]),
        "memory",
    )
