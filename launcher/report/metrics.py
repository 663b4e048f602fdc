"""The numbers of one run: speed, utilization, memory, lost time."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.config.gpus import GPUS
from launcher.plan import flops, memory
from launcher.report import goodput, hardware_flops, peaks, steady
from launcher.report.steady import Window
from launcher.report.subject import Subject

AGREE = 0.02  # share within which two FLOP counts are the same


@dataclass(frozen=True)
class Metrics:
    """What a run achieved; None where the log and its job do not say it."""

    window: Window
    seconds: float | None  # a step, in the steady state
    spread: tuple[float, float] | None  # its 10th and 90th percentile
    batch: int | None  # sequences
    tokens: float | None  # a second and GPU
    tflops: float | None  # model TFLOPS a GPU, by our count
    flops_per_token: float | None  # by our count
    logged_tflops: float | None
    logged_flops_per_token: float | None  # what the logged figure counts, from its tokens
    precision: str | None
    peak_tflops: float | None  # of the GPU, dense, in that precision
    memory: float | None  # bytes, the fullest rank's max allocated
    planned_memory: int | None  # bytes
    gpu_memory: float | None  # bytes
    memory_by_stage: tuple[tuple[float | None, int], ...]  # measured, planned
    lost: dict[str, float] = field(default_factory=dict)  # seconds, by cause
    wall: float | None = None  # seconds
    iterations_left: int | None = None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization: model TFLOPS over the GPU's dense peak."""
        best = self.tflops if self.tflops is not None else self.logged_tflops
        return best / self.peak_tflops if best is not None and self.peak_tflops else None

    hardware_tflops: float | None = None

    @property
    def hfu(self) -> float | None:
        """Hardware FLOPs utilization: with what is recomputed."""
        if self.hardware_tflops is None or not self.peak_tflops:
            return None
        return self.hardware_tflops / self.peak_tflops

    @property
    def goodput(self) -> float | None:
        """Share of the wall time that went into steps of the steady speed, each once."""
        if not self.wall or not self.lost:
            return None
        return max(0.0, 1 - sum(self.lost.values()) / self.wall)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last iteration at the steady speed."""
        if self.seconds is None or self.iterations_left is None:
            return None
        return self.seconds * self.iterations_left

    @property
    def tokens_left(self) -> float | None:
        """Tokens to the last iteration."""
        if self.tokens_a_step is None or self.iterations_left is None:
            return None
        return self.tokens_a_step * self.iterations_left

    tokens_a_step: float | None = None

    @property
    def convention(self) -> str | None:
        """Say whose FLOPs the logged TFLOPS count, where that can be told."""
        ours, logged = self.flops_per_token, self.logged_flops_per_token
        if ours is None:
            return None
        text = f"{_giga(ours)} GFLOP a token ({flops.CONVENTION})"
        if logged is None:
            return text
        if abs(logged / ours - 1) <= AGREE:
            return f"{text}; the log counts the same"
        return f"{text}; the log counts {_giga(logged)}: compare tokens/s, not TFLOPS"


def measure(subject: Subject, convention: str = "steady") -> Metrics:
    """Work the numbers out. Raises UsageError where the convention is unknown."""
    log, made = subject.log, subject.shape
    unknown = subject.planned.unknown if subject.planned else frozenset()
    window = steady.window(log.iterations, convention, _profiled(subject))
    times = [one.seconds for one in window.counted if one.seconds is not None]
    seconds = window.middle(times)
    batch = _batch(subject, window)
    step = batch * subject.sequence if batch and subject.sequence else None
    tokens = step / seconds / subject.gpus if step and seconds and subject.gpus else None
    logged_tokens = window.middle([one.tokens for one in window.counted if one.tokens])
    tokens = tokens if tokens is not None else logged_tokens
    count = flops.per_token(made) if made and "FLOPs" not in unknown else None
    tflops = tokens * count / 1e12 if tokens and count else None
    logged = window.middle([one.tflops for one in window.counted if one.tflops])
    precision = _precision(subject)
    planned: Sequence[memory.Rank] = ()
    if subject.planned and not subject.smoke and "memory" not in unknown:
        planned = subject.planned.memory
    peak = max((one.peak for one in log.peaks.values()), default=None) or None
    gpu = GPUS.get(subject.gpu or "")
    again = hardware_flops.recomputed(made) if made and count else 0.0
    return Metrics(
        window=window,
        seconds=seconds,
        spread=_spread(times),
        batch=batch,
        tokens=tokens,
        tflops=tflops,
        flops_per_token=count,
        logged_tflops=logged,
        logged_flops_per_token=logged * 1e12 / tokens
        if logged and tokens and logged >= 1
        else None,
        precision=precision,
        peak_tflops=peaks.peak(subject.gpu, precision) if precision else None,
        memory=peak,
        planned_memory=memory.worst(planned).total if planned else None,
        gpu_memory=gpu.memory * memory.GIB if gpu else None,
        memory_by_stage=_by_stage(subject, planned),
        lost=goodput.lost(log, window, seconds),
        wall=log.latest - log.first if log.latest is not None and log.first is not None else None,
        iterations_left=max(0, log.newest.total - log.newest.number) if log.newest else None,
        hardware_tflops=tflops + tokens * again / 1e12 if tflops and tokens else None,
        tokens_a_step=step,
    )


def _giga(number: float) -> str:
    return f"{number / 1e9:.1f}" if number >= 1e9 else f"{number / 1e9:.2g}"


def exclusions(window: Window) -> dict[str, int]:
    """Return how many logged iterations were left out, by reason."""
    return dict(Counter(window.excluded.values()).most_common())


def _batch(subject: Subject, window: Window) -> int | None:
    logged = [one.batch for one in window.counted if one.batch]
    if logged:
        return round(logged[-1])
    if subject.shape:
        return subject.shape.training.global_batch
    text = subject.log.arguments.get("global_batch_size", "")
    return int(text) if text.isdigit() else None


def _precision(subject: Subject) -> str | None:
    if subject.shape is None:
        return None
    if subject.on("--fp4-format"):
        return "fp4"
    if subject.shape.training.fp8:
        return "fp8"
    return "fp16" if subject.on("--fp16") else "bf16" if subject.on("--bf16") else None


def _profiled(subject: Subject) -> tuple[int, int] | None:
    if not subject.on("--profile"):
        return None
    first = subject.value("--profile-step-start") or "10"
    last = subject.value("--profile-step-end") or "12"
    if not (first.isdigit() and last.isdigit()):
        return None
    return int(first), int(last) + 1  # the profile is written within the next


def _spread(times: Sequence[float]) -> tuple[float, float] | None:
    if len(times) < 2:
        return None
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return cuts[0], cuts[-1]


def _by_stage(
    subject: Subject, planned: Sequence[memory.Rank]
) -> tuple[tuple[float | None, int], ...]:
    """Return measured and planned peak of each pipeline stage, in bytes.

    Ranks count through the stages last: a stage is world / PP ranks in a row.
    """
    if not planned or not subject.gpus:
        return ()
    held = max(1, subject.gpus // len(planned))
    measured: dict[int, float] = {}
    for rank, one in subject.log.peaks.items():
        stage = rank // held
        measured[stage] = max(one.peak, measured.get(stage, 0.0))
    return tuple((measured.get(place) or None, rank.total) for place, rank in enumerate(planned))
