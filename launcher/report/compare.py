"""Is it good: the nearest published run, and what differs, the biggest expected effect first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.plan import flops, published
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
    tokens: float  # a second and GPU, by our count of FLOPs
    ratio: float | None  # this run's tokens/s over it
    differences: tuple[Difference, ...]


def compare(subject: Subject, metrics: Metrics) -> Comparison | None:
    """Return the nearest published run; None where none is of the same model and GPU."""
    if subject.shape is None or not subject.model or subject.smoke:
        return None
    found = published.nearest(subject.model, subject.gpu, subject.shape)
    if found is None:
        return None
    row = found.settings
    # Tokens depend on the published sequence: attention's share grows with it.
    theirs = replace(
        subject.shape,
        training=replace(subject.shape.training, sequence=int(row["sequence"])),
    )
    stated = row.get("tokens") or row.get("tokens_per_s_per_gpu")
    tokens = float(stated) if stated else found.tflops * 1e12 / flops.per_token(theirs)
    words = [Difference(text, _effect(text)) for text in found.differences]
    theirs_dispatcher = row.get("dispatcher")
    ours = subject.shape.training.dispatcher
    if (
        theirs_dispatcher
        and theirs_dispatcher != ours
        and not any("dispatcher" in one.what for one in words)
    ):
        words.append(
            Difference(f"dispatcher {ours} instead of {theirs_dispatcher}", effects.DISPATCHER)
        )
    return Comparison(
        sizes=found.sizes,
        source=row["source"],
        software=row["software"],
        tflops=found.tflops,
        tokens=tokens,
        ratio=metrics.tokens / tokens if metrics.tokens else None,
        differences=tuple(
            sorted(words, key=lambda one: one.effect.high if one.effect else 0.0, reverse=True)
        ),
    )


def _effect(text: str) -> effects.Effect | None:
    name = text.split()[0].lower()
    return effects.OF.get(name)
