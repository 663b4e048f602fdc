"""The projection of a planned job, for its sheet and for tools."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launcher.config.arguments import value
from launcher.plan import architectures, influence, published
from launcher.plan.plan import Shaped, Site
from launcher.plan.projection import anchor, calibration, execution, projection, schedule
from launcher.plan.projection.anchor import Expectation
from launcher.plan.projection.constants import GPUS
from launcher.plan.projection.schedule import Span
from launcher.plan.published import Result

# Parts in the words of the sheet; what a job spends nothing on is left out.
PARTS = {
    "products": "matrix products",
    "attention": "attention",
    "memory": "memory-bound kernels",
    "quantize": "quantization",
    "tensor": "TP and CP",
    "expert": "waiting for experts' communication",
    "host": "host",
    "pipeline": "bubble and uneven stages",
    "data": "waiting for gradients' communication",
    "optimizer": "optimizer",
    "scale": "slowest GPU and age of the software",
}
SHOWN = ("host", "pipeline", "expert")
MOST = 10**18  # tokens; no training is that long
DIGITS = 20  # more than MOST has
LEAST = 0.01  # share of a step below which a part is not shown


def how(made: Shaped, site: Site) -> execution.Execution:
    """Return how a planned job runs."""
    variables = {name: text for name, (text, _) in made.case.environment.items()}
    released = execution.RELEASED[made.case.release]
    return execution.read(made.case.arguments, variables, released, site.bound)


def expectation(made: Shaped, site: Site, apart_from: Path | None = None) -> Expectation | None:
    """Return what a planned job is expected to reach; None where nobody can tell.

    Of the cluster's own runs the one in the folder `apart_from` does not count.
    """
    if site.gpu is None or site.gpu not in GPUS or made.unknown or made.refused:
        return None
    known = calibration.read(site.calibration)
    if apart_from is not None:
        runs = (row for row in known.runs if Path(row["source"]).resolve() != apart_from.resolve())
        known = dataclasses.replace(known, runs=tuple(runs))
    return anchor.expect(
        made.shape,
        made.stages,
        how(made, site),
        site.gpu,
        architectures.name(made.shape.model),
        made.case.arguments,
        known,
    )


def nearest(made: Shaped, site: Site) -> Result | None:
    """Return the published measurement most like a planned job; None for a refused one."""
    if made.refused:
        return None
    model = architectures.name(made.shape.model)
    return published.nearest(model, site.gpu, made.shape, how(made, site))


def timeline(made: Shaped, site: Site, passes: int) -> tuple[list[Span], str]:
    """Return about `passes` passes of a step's schedule, or all, and the unit of their time.

    Where a job cannot be projected, a forward pass of any chunk takes one unit, a backward two.
    """
    parallel, training = made.shape.parallel, made.shape.training
    size, unit = schedule.even(parallel.pipeline, parallel.virtual), "forward passes"
    if expectation(made, site) is not None:
        known = calibration.read(site.calibration).constants
        size = projection.passes(made.shape, made.stages, how(made, site), site.gpu or "", known)
        unit = "s (projected)"
    group = training.group_size or parallel.pipeline
    micro_batches = training.global_batch // (training.micro_batch * parallel.data)
    most = max(1, passes // (2 * parallel.pipeline * parallel.virtual) // group) * group
    few = min(micro_batches, most)
    return schedule.timeline(size, few, group, training.overlap_experts), unit


def lines(made: Shaped, site: Site, everything: bool = False) -> list[str]:
    """Return the sheet's lines: what a step takes, how sure that is, and what it is spent on."""
    if made.unknown and site.gpu and not made.refused:
        return [f"projected  nothing, because {', '.join(_unmodelled(made))} is not modelled"]
    found = expectation(made, site)
    if found is None:
        return []
    there, seconds = found.projection, found.projection.seconds
    low, high = found.tflops
    spent = [
        f"{there.by[name] / seconds:.0%} {PARTS[name]}"
        for name in SHOWN
        if there.by[name] >= LEAST * seconds
    ]
    told = [
        f"projected  {there.tflops:,.0f} TFLOPS/GPU ({low:,.0f} to {high:,.0f}), "
        f"{duration(seconds)} a step, {there.tokens:,.0f} "
        "tokens/s/GPU",
        f"           {', '.join(spent) or 'no time lost'}",
        f"           {_anchored(found)}",
    ]
    if everything:
        told += [
            f"           {PARTS[name]} {duration(part)}, {part / seconds:.1%}"
            for name, part in there.by.items()
            if abs(part) >= LEAST * seconds / 10
        ]
        told += _whole(made, there.tokens)
    return [*told, *(f"           outside of what was measured: {each}" for each in found.warnings)]


def _unmodelled(made: Shaped) -> list[str]:
    """Return the flags that the plan does not know the effect of."""
    found = []
    for flag, argument in made.case.arguments.items():
        line = influence.of(flag, argument.values)
        if line is not None and line.influence == influence.UNMODELLED:
            found.append(flag)
    return found


def duration(seconds: float) -> str:
    """Return seconds in three digits: 32.7 s, 412 ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _anchored(found: Expectation) -> str:
    if found.anchor is None:
        return "no measurement is like it"
    where = found.anchor.settings["source"]
    if found.kind == "exact":
        return f"measured: {where}"
    return f"anchored to {where}, times {found.factor:.2f}"


def training_tokens(made: Shaped) -> int | None:
    """Return the tokens that a job's arguments train for, None without a believable number."""
    shape = made.shape
    arguments = made.case.arguments
    samples = value(arguments, "--train-samples")
    steps = value(arguments, "--train-iters")
    if samples is not None and samples.isdecimal():
        tokens = int(samples[:DIGITS]) * shape.training.sequence
    elif steps is not None and steps.isdecimal():
        tokens = int(steps[:DIGITS]) * shape.training.global_batch * shape.training.sequence
    else:
        return None
    return tokens if tokens < MOST else None


def _whole(made: Shaped, rate: float) -> list[str]:
    """Return how long all tokens take."""
    tokens = training_tokens(made)
    if not tokens:
        return []
    hours = tokens / rate / 3600
    days = hours / made.shape.parallel.world / 24
    return [f"           {tokens / 1e9:,.4g}B tokens: {days:,.3g} days, {hours:,.0f} GPU-hours"]


def as_data(made: Shaped, site: Site) -> dict[str, Any] | None:
    """Return the projection for tools, in seconds; None where there is none."""
    found = expectation(made, site)
    if found is None:
        return None
    there, tokens = found.projection, training_tokens(made)
    return {
        "seconds": there.seconds,
        "low_seconds": found.low,
        "high_seconds": found.high,
        "band": "80 % of held-out measurements",
        "tokens_per_second_per_gpu": there.tokens,
        "tflops_per_gpu": there.tflops,
        "by": there.by,
        "kind": found.kind,
        "anchor": {
            "source": found.anchor.settings["source"],
            "factor": found.factor,
            "distance": found.anchor.distance,
            "differences": list(found.anchor.differences),
        }
        if found.anchor
        else None,
        "warnings": list(found.warnings),
        # With its step time, this is a measurement for others: `calibrate`.
        "settings": published.row(
            architectures.name(made.shape.model) or site.model,
            site.gpu or "",
            made.shape,
            how(made, site),
        ),
        "training": {
            "tokens": tokens,
            "hours": tokens / there.tokens / 3600 / made.shape.parallel.world,
            "gpu_hours": tokens / there.tokens / 3600,
        }
        if tokens
        else None,
    }
