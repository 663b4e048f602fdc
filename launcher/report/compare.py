"""Is it good: the projection of the job, and the nearest published run with what differs.

Differences come with the largest measured effect first.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan import flops, published, shape
from launcher.plan.projection import report as projected
from launcher.plan.projection.anchor import Expectation
from launcher.plan.shape import Shape
from launcher.report import effects
from launcher.report.metrics import Metrics
from launcher.report.subject import Subject


@dataclass(frozen=True)
class Difference:
    """One setting in which a run and the published one differ."""

    what: str
    effect: effects.Effect | None  # None where no measurement is known


@dataclass(frozen=True)
class Comparison:
    """The nearest published run beside this one."""

    sizes: str
    source: str
    software: str
    tflops: float  # as published
    tokens: float  # a second and GPU; where none are published, by our count of FLOPs
    ratio: float | None  # this run's tokens/s over it
    differences: tuple[Difference, ...]


def expect(subject: Subject) -> Expectation | None:
    """Return what the projection expects of the run; None where it cannot tell."""
    if subject.planned is None or subject.smoke:
        return None
    try:
        return projected.expectation(subject.planned, subject.site, apart_from=subject.path)
    except (ValueError, ArithmeticError, LookupError):
        return None


def reached(expected: Expectation, metrics: Metrics) -> float | None:
    """Return the run's tokens/s over the projection's."""
    return metrics.tokens / expected.projection.tokens if metrics.tokens else None


def compare(subject: Subject, metrics: Metrics) -> Comparison | None:
    """Return the nearest published run; None where none is of the same model and GPU."""
    if subject.planned is None or subject.smoke:
        return None
    found = projected.nearest(subject.planned, subject.site)
    if found is None:
        return None
    tokens = _tokens(found, subject)
    ours = subject.planned.shape
    words = [Difference(text, _effect(text, ours)) for text in found.differences]
    return Comparison(
        sizes=found.sizes,
        source=found.settings["source"],
        software=found.settings["software"],
        tflops=found.tflops,
        tokens=tokens,
        ratio=metrics.tokens / tokens if metrics.tokens else None,
        differences=tuple(
            sorted(words, key=lambda one: one.effect.high if one.effect else 0.0, reverse=True)
        ),
    )


def _tokens(found: published.Result, subject: Subject) -> float:
    """Return a published run's tokens a second and GPU: from its step, or from its TFLOPS."""
    row = found.settings
    gpus = int(row["gpus"])
    if row["seconds"]:
        return int(row["gbs"]) * int(row["sequence"]) / float(row["seconds"]) / gpus
    theirs = shape.read(published.arguments(row, subject.arguments), gpus)
    return found.tflops * 1e12 / flops.per_token(theirs)


def _effect(text: str, ours: Shape) -> effects.Effect | None:
    name, *rest = text.lower().split()
    if name == "routing" and ours.model.experts:
        return effects.balance(ours.model.experts.count)
    if name == "recompute" and "full" in rest:
        return None  # measured was selective recomputation
    return effects.OF.get(name)
