"""Remedies for a job that does not fit its GPU: a recipe of its model, or the smallest change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from itertools import product

from launcher import ROOT
from launcher.config.arguments import Arguments, merge, parse
from launcher.config.gpus import GPUS
from launcher.config.layout import balanced
from launcher.config.parallelism import EXPERT, LAYOUT, PIPELINE, VIRTUAL
from launcher.plan import memory, rules, stages
from launcher.plan.rules import Case
from launcher.plan.shape import Shape, read

RECIPES = ROOT / "best_practice"
# Published runs reserve 4 to 7 % more than they allocate.
USABLE = 0.93
# Sets of recomputed modules, each more costly than the one before.
RECOMPUTED = (
    ("layernorm",),
    ("layernorm", "moe_act"),
    ("layernorm", "moe_act", "mla_up_proj"),
    ("layernorm", "moe_act", "mla_up_proj", "mlp", "shared_experts"),
    ("layernorm", "mla_up_proj", "mlp", "moe"),
)
OFFLOAD = "--optimizer-cpu-offload --overlap-cpu-optimizer-d2h-h2d --use-precision-aware-optimizer"


def recipe(model: str, gpu: str) -> str | None:
    """Return the path of a recipe for the model on the GPU, None where there is none."""
    for path in sorted(RECIPES.glob(f"*/run_*_{gpu.lower()}*.sh"), key=lambda path: len(path.name)):
        if re.search(rf"\bMODEL={re.escape(model)}\b", path.read_text(encoding="utf-8")):
            return str(path.relative_to(ROOT))
    return None


def smallest(case: Case, shape: Shape, gpu: str) -> str | None:
    """Return the first change that makes a job fit, and the GiB it then needs; None without one."""
    for words in _changes(case, shape):
        changed = dataclasses.replace(case, arguments=_applied(case.arguments, words))
        needed = _needed(changed)
        if needed is not None and needed <= USABLE * GPUS[gpu].memory:
            return f"{' '.join(words)} would need {needed:.0f} GiB"
    return None


def _applied(arguments: Arguments, words: Sequence[str]) -> Arguments:
    return merge(arguments, parse(words, "remedy"))


def _needed(case: Case) -> float | None:
    """Return the GiB of the fullest rank; None where Megatron refuses the job."""
    if any(finding.severity == "error" for finding in rules.check(case)):
        return None
    try:
        shape = read(case.arguments, case.world_size, case.release)
        return memory.worst(memory.ranks(shape, stages.split(shape))).total / memory.GIB
    except (ValueError, ArithmeticError, LookupError):
        return None


def _changes(case: Case, shape: Shape) -> Iterator[tuple[str, ...]]:
    """Yield the words of each change, the smallest first: one kind alone, then two together."""
    recomputed = list(_recomputations(shape))
    others = list(_splits(case, shape))
    if not shape.training.offloaded:
        others.append(tuple(OFFLOAD.split()))
    yield from recomputed
    yield from others
    for first, second in product(recomputed[-1:], others):
        yield (*first, *second)
    for number, first in enumerate(others):
        for second in others[number + 1 :]:
            yield (*recomputed[-1], *first, *second) if recomputed else (*first, *second)


def _recomputations(shape: Shape) -> Iterator[tuple[str, ...]]:
    if shape.training.recompute == "full":
        return
    model, done = shape.model, shape.training.recompute_modules
    has = {
        "layernorm": True,
        "moe_act": model.experts is not None,
        "moe": model.experts is not None,
        "mla_up_proj": model.attention.latent,
        "mlp": not all(model.moe),
        "shared_experts": model.experts is not None and model.experts.shared_ffn > 0,
    }
    tried: set[frozenset[str]] = set()
    for modules in RECOMPUTED:
        chosen = [name for name in modules if has[name]]
        if set(chosen) <= done or frozenset(chosen) in tried:
            continue
        tried.add(frozenset(chosen))
        yield ("--recompute-granularity", "selective", "--recompute-modules", *chosen)


def _splits(case: Case, shape: Shape) -> Iterator[tuple[str, ...]]:
    """Yield twice and four times the expert groups, then twice the virtual stages or stages."""
    parallel, model = shape.parallel, shape.model
    if model.experts is not None:
        yield (EXPERT, str(2 * parallel.expert))
        yield (EXPERT, str(4 * parallel.expert))
    if parallel.pipeline > 1 and LAYOUT not in case.arguments:
        yield (VIRTUAL, str(2 * parallel.virtual))
    chunks = 2 * parallel.pipeline * (parallel.virtual if parallel.pipeline > 1 else 1)
    if chunks <= model.layers:
        layout = balanced(model.layers, chunks, model.mtp)
        yield (PIPELINE, str(2 * parallel.pipeline), LAYOUT, layout)
