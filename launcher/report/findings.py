"""Why a run is not faster: each reason with its evidence, what it may cost, and who says so.

Idle stages, communication and waiting for the CPU cost what the job's projection says. Where there
is none, communication is arithmetic: bytes that a rank sends in a step over the bandwidth that its
GPU has on that way. It is an upper bound of what overlap or a better way can gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.config.gpus import GPUS, KNOWN
from launcher.plan import memory
from launcher.plan.projection.anchor import Expectation
from launcher.plan.shape import Shape
from launcher.report import effects, hardware_flops
from launcher.report.metrics import Metrics
from launcher.report.subject import Subject

WORTH = 0.01  # gains below are not told
WIDE = 1.1  # 90th over 10th percentile of step time
SLOW_TASK = 1.03
ROOM = 0.85  # of the GPU's memory
MOST = 0.5  # of a step, that a part of it may be taken to cost
ARITHMETIC = "the plan's arithmetic"
PROJECTION = "the job's projection"


@dataclass(frozen=True)
class Finding:
    """One reason."""

    what: str
    evidence: str
    low: float  # by how much the run would be faster without: 0.2 is 20 %
    high: float
    source: str

    @property
    def gain(self) -> str:
        """The expected gain, in words."""
        low, high = round(self.low * 100), round(self.high * 100)
        return (
            f"up to {high} %" if low <= 0 else f"{low} %" if low == high else f"{low} to {high} %"
        )


@dataclass(frozen=True)
class Spent:
    """What a measured step is spent on: the projection's seconds, or an arithmetic's."""

    expected: Expectation | None
    step: float | None  # measured seconds

    def share(self, part: str, arithmetic: float = 0.0) -> float:
        """Return a part's share of the step; 0 where it is not known."""
        if not self.step:
            return 0.0
        seconds, whole = arithmetic, self.step
        if self.expected:
            projected = self.expected.projection
            seconds, whole = projected.by[part], max(self.step, projected.seconds)
        return min(MOST, max(0.0, seconds) / whole)

    @property
    def source(self) -> str:
        """Whose seconds they are."""
        return PROJECTION if self.expected else ARITHMETIC


def findings(
    subject: Subject, metrics: Metrics, expected: Expectation | None = None
) -> list[Finding]:
    """Return what keeps a run from being faster, the largest expected gain first."""
    found = [*_from_log(subject, metrics)]
    # A shrunken model's sizes tell nothing.
    if subject.shape is not None and not subject.smoke:
        spent = Spent(expected if metrics.seconds else None, metrics.seconds)
        found += _from_shape(subject, subject.shape, metrics, spent)
    worth = [one for one in found if one.high >= WORTH]
    return sorted(worth, key=lambda one: one.low + one.high, reverse=True)


def _from_shape(
    subject: Subject, shape: Shape, metrics: Metrics, spent: Spent
) -> Iterator[Finding]:
    yield from _bubble(shape, spent)
    if metrics.flops_per_token:
        yield from _recompute(shape, metrics, metrics.flops_per_token)
    yield from _offload(shape)
    if shape.model.experts:
        yield from _routing(subject, shape)
        yield from _experts_communication(subject, shape, metrics, spent)
    yield from _tensor_communication(subject, shape, metrics, spent)
    yield from _data_communication(subject, shape, metrics, spent)
    yield from _launches(subject, shape, metrics, spent)


def _gain(share: float) -> float:
    """Return by how much a run is faster without a share of its step."""
    return share / (1 - share)


def _bubble(shape: Shape, spent: Spent) -> Iterator[Finding]:
    parallel, training = shape.parallel, shape.training
    if parallel.pipeline < 2:
        return
    virtual = parallel.virtual
    micro_batches = training.global_batch / (training.micro_batch * parallel.data)
    idle = (parallel.pipeline - 1) / (virtual * micro_batches)
    source = "(PP-1)/(VPP·micro-batches): Narayanan et al., arXiv:2104.04473, section 2.2"
    gain, seen = idle, ""
    if spent.expected:
        lost = spent.share("pipeline")
        gain, seen = _gain(lost), f", with uneven stages {lost:.0%} of this one"
        source = f"{PROJECTION}; {source}"
    yield Finding(
        "pipeline bubble",
        f"PP{parallel.pipeline} VPP{virtual} with {micro_batches:g} micro-batches: "
        f"{idle:.0%} of the ideal step is idle{seen}; more virtual stages, more micro-batches "
        "(larger GBS, smaller DP) or fewer stages",
        gain / 2,
        gain,
        source,
    )


def _recompute(shape: Shape, metrics: Metrics, whole: float) -> Iterator[Finding]:
    training = shape.training
    again = hardware_flops.recomputed(shape)
    left = ""
    if metrics.memory and metrics.gpu_memory:
        left = f"; {(metrics.gpu_memory - metrics.memory) / memory.GIB:.0f} GiB were left free"
    if training.recompute == "full":
        yield Finding(
            "full recomputation",
            f"--recompute-granularity full ({training.recompute_method or 'uniform'}) repeats "
            f"{again / whole:.0%} of the model's FLOPs{left}; selective recomputation of moe_act, "
            "layernorm and mla_up_proj keeps most of the memory",
            again / whole * 0.5,
            again / whole,
            f"{ARITHMETIC}; Korthikanti et al., arXiv:2205.05198",
        )
    elif training.recompute == "selective" and training.recompute_modules:
        effect = effects.RECOMPUTE_SELECTIVE
        yield Finding(
            "selective recomputation",
            f"--recompute-modules {' '.join(sorted(training.recompute_modules))}: "
            f"{again / whole:.1%} of the model's FLOPs again, and norms and activations{left}",
            again / whole * 0.5,
            max(again / whole, effect.low),
            f"{effect.measured} ({effect.source})",
        )


def _offload(shape: Shape) -> Iterator[Finding]:
    if shape.training.offloaded:
        effect = effects.OFFLOAD
        yield Finding(
            "optimizer on the CPU",
            f"{shape.training.offloaded:.0%} of the optimizer's states are on the CPU "
            "(--optimizer-cpu-offload)",
            effect.low * 0.2,
            effect.high * shape.training.offloaded,
            f"{effect.measured} ({effect.source})",
        )


def _routing(subject: Subject, shape: Shape) -> Iterator[Finding]:
    experts = shape.model.experts
    if experts is None or experts.balanced or experts.capacity_factor is not None:
        return
    if shape.parallel.expert == 1:
        return
    effect = effects.balance(experts.count)
    seen = _imbalance(subject)
    yield Finding(
        "natural routing",
        "no --moe-router-force-load-balancing: the fullest expert rank decides, and benchmarks "
        "force balance" + (f"; the log's {seen}" if seen else ""),
        effect.low,
        effect.high,
        f"{effect.measured} ({effect.source})",
    )


def _imbalance(subject: Subject) -> str:
    newest = subject.log.newest
    for name, number in (newest.fields if newest else {}).items():
        if "imbalance" in name or "max_vio" in name.lower():
            return f"{name} is {number:g}"
    losses = [
        number
        for name, number in (newest.fields if newest else {}).items()
        if name.endswith("load_balancing_loss") and number
    ]
    return f"load balancing loss is {losses[0]:.3f} (1 is even)" if losses else ""


def exchange(shape: Shape, gpu: str, domain: int, deduplicated: bool) -> float:
    """Return the seconds of a step that a rank's tokens are under way to experts and back.

    Each MoE layer sends every routed copy there and back, forward and backward, and once more
    where it is recomputed. Within the NVLink domain copies go to all its ranks; beyond, an
    all-to-all sends each of the top-k copies, a fused dispatcher one a node.
    """
    parallel, training, experts = shape.parallel, shape.training, shape.model.experts
    span = parallel.expert * parallel.expert_tensor
    if experts is None or span < 2 or gpu not in KNOWN:
        return 0.0
    domain = min(span, domain)
    nodes = max(1, span // domain)
    micro_batches = training.global_batch / (training.micro_batch * parallel.data)
    tokens = training.micro_batch * training.sequence / parallel.context / parallel.tensor
    layers = (sum(shape.model.moe) + shape.model.moe[-1] * shape.model.mtp) / parallel.pipeline
    again = training.recompute == "full" or "moe" in training.recompute_modules
    trips = 4 + 2 * again
    size = tokens * (experts.latent or shape.model.hidden) * 2 * layers * micro_batches * trips
    away = (
        min(experts.top_k, nodes) * (nodes - 1) / nodes
        if deduplicated
        else (experts.top_k * (span - domain) / span)
    )
    near = (
        experts.top_k * (domain - 1) / span
        if nodes == 1 or not deduplicated
        else (experts.top_k * (domain - 1) / domain)
    )
    return size * (away / KNOWN[gpu].network + near / KNOWN[gpu].nvlink)


def _experts_communication(
    subject: Subject, shape: Shape, metrics: Metrics, spent: Spent
) -> Iterator[Finding]:
    span = shape.parallel.expert * shape.parallel.expert_tensor
    experts = shape.model.experts
    if span < 2 or experts is None:
        return
    domain = _domain(subject)
    gpu = subject.gpu or ""
    plain = shape.training.dispatcher in ("alltoall", "allgather")
    now = exchange(shape, gpu, domain, deduplicated=not plain)
    step = metrics.seconds
    share = spent.share("expert", now)
    if plain:
        fused = exchange(shape, gpu, domain, deduplicated=True)
        spared = min(MOST, (now - fused) / step) if step and now else 0.0
        effect = effects.DISPATCHER
        yield Finding(
            f"{shape.training.dispatcher} dispatcher",
            f"EP{shape.parallel.expert} sends every token {experts.top_k} times"
            + (f"; {spared:.0%} of the step by arithmetic" if spared > 0.005 else "")
            + "; DISPATCHER=deepep or hybridep sends a token once a node and fuses the permutation",
            effect.low,
            max(effect.high, _gain(spared)),
            f"{ARITHMETIC}; {effect.measured} ({effect.source})",
        )
    if not shape.training.overlap_experts:
        effect = effects.OVERLAP
        high = _gain(share) if share or spent.expected else effect.high
        cost = f"for {share:.0%} of the step" if share else "in the open"
        yield Finding(
            "expert communication not overlapped",
            f"no --overlap-moe-expert-parallel-comm (A2A_OVERLAP=1): tokens of EP{span} are under "
            f"way {cost}",
            high / 2,
            high,
            f"{spent.source}; {effect.measured} ({effect.source})",
        )


def _tensor_communication(
    subject: Subject, shape: Shape, metrics: Metrics, spent: Spent
) -> Iterator[Finding]:
    """Gather and scatter of activations, twice a layer and direction (arXiv:2205.05198, 4.2)."""
    parallel, training, gpu = shape.parallel, shape.training, subject.gpu or ""
    if parallel.tensor < 2 or not metrics.seconds or gpu not in KNOWN:
        return
    within = parallel.tensor <= _domain(subject)
    bandwidth = KNOWN[gpu].nvlink if within else KNOWN[gpu].network
    micro_batches = training.global_batch / (training.micro_batch * parallel.data)
    tokens = training.micro_batch * training.sequence / parallel.context
    layers = (shape.model.layers + shape.model.mtp) / parallel.pipeline
    trips = 4 * (3 if training.recompute == "full" else 2)
    size = tokens * shape.model.hidden * 2 * trips * layers * micro_batches
    overlap = subject.on("--tp-comm-overlap")
    seconds = size * (1 - 1 / parallel.tensor) / bandwidth * (0.5 if overlap else 1.0)
    share = spent.share("tensor", seconds)
    # The projection has both in one.
    beside = f" and CP{parallel.context}" if spent.expected and parallel.context > 1 else ""
    where = "within NVLink" if within else "over the network"
    yield Finding(
        "tensor parallelism",
        f"TP{parallel.tensor} {where}{beside}: {share:.0%} of the step for activations under way"
        + (", beside what --tp-comm-overlap hides" if overlap else ", not overlapped"),
        0.0,
        _gain(share),
        f"{spent.source}; Korthikanti et al., arXiv:2205.05198, section 4.2",
    )


def _data_communication(
    subject: Subject, shape: Shape, metrics: Metrics, spent: Spent
) -> Iterator[Finding]:
    """Gradients reduced and parameters gathered once a step, where neither is overlapped."""
    gpu, parallel = subject.gpu or "", shape.parallel
    if not metrics.seconds or gpu not in KNOWN or parallel.dense_shards < 2:
        return
    if not subject.planned or "parameters" in subject.planned.unknown:
        return
    count = max(subject.planned.counts, key=lambda one: one.total)
    reduce = count.total * shape.training.gradient_bytes * (1 - subject.on("--overlap-grad-reduce"))
    gather = count.total * shape.training.weight_bytes * (1 - subject.on("--overlap-param-gather"))
    share = spent.share("data", (reduce + gather) / KNOWN[gpu].network)
    missing = [
        flag for flag in ("--overlap-grad-reduce", "--overlap-param-gather") if not subject.on(flag)
    ]
    if missing and parallel.world > subject.tasks_per_node:
        yield Finding(
            "data parallelism not overlapped",
            f"without {' and '.join(missing)} a step waits for {share:.0%} of its time",
            0.0,
            _gain(share),
            spent.source,
        )


def _launches(subject: Subject, shape: Shape, metrics: Metrics, spent: Spent) -> Iterator[Finding]:
    """CPU-bound steps: many small kernels without graphs, or a wide spread of step times."""
    if shape.training.graph_modules or subject.value("--cuda-graph-impl") not in (None, "none"):
        return
    if subject.gpu is None or subject.smoke:
        return
    spread = metrics.spread[1] / metrics.spread[0] if metrics.spread and metrics.spread[0] else 1.0
    fast = subject.gpu[:2] in ("B2", "B3", "GB")
    waited = spent.share("host")
    if not fast and spread < WIDE and waited < WORTH:
        return
    effect = effects.GRAPHS
    low, high = (effect.low, effect.high) if fast else (0.0, spread - 1)
    source, seen = f"{effect.measured} ({effect.source})", ""
    if spent.expected:
        low, high = _gain(waited) / 2, max(_gain(waited), spread - 1 if spread >= WIDE else 0.0)
        source, seen = f"{PROJECTION}; {source}", f"; the GPU waits {waited:.0%} of the step for it"
    yield Finding(
        "no CUDA graphs",
        f"kernels of one micro-batch of {shape.training.micro_batch} × "
        f"{shape.training.sequence} tokens are launched one by one on a {subject.gpu}{seen}"
        + (f"; steps spread by {spread - 1:.0%}" if spread >= WIDE else ""),
        low,
        high,
        source,
    )


def _from_log(subject: Subject, metrics: Metrics) -> Iterator[Finding]:
    log, wall = subject.log, metrics.wall
    names = {
        "checkpoints": "--async-save, or a longer --save-interval",
        "evaluation": "a longer --eval-interval, fewer --eval-iters",
        "work done again": "a shorter --save-interval, where restarts are to be expected",
        "restarts": "the time between two starts of the job",
        "other pauses": "time between two iterations that no iteration took",
    }
    trained = sum(one.seconds or 0.0 for one in log.iterations) * log.stride
    for cause, remedy in names.items():
        lost = metrics.lost.get(cause, 0.0)
        if wall and lost and trained:
            yield Finding(
                cause, f"{lost:,.0f} of {wall:,.0f} s; {remedy}", lost / trained,
                lost / trained, "the log's times",
            )  # fmt: skip
    slow = metrics.lost.get("slow steps", 0.0)
    if slow and trained:
        number = sum(
            1 for one in metrics.window.counted
            if one.seconds and metrics.seconds and one.seconds > 1.5 * metrics.seconds
        )  # fmt: skip
        collected = (
            ""
            if subject.on("--manual-gc")
            else "; ranks that collect garbage at different times show like this: --manual-gc"
        )
        yield Finding(
            "slow steps",
            f"{number} of {len(metrics.window.counted)} steps took more than 1.5 times the median, "
            f"{slow:,.0f} s in all{collected}",
            slow / trained,
            slow / trained,
            "the log's times",
        )
    yield from _slow_task(subject)
    if metrics.memory and metrics.gpu_memory and metrics.memory < ROOM * metrics.gpu_memory:
        free = (metrics.gpu_memory - metrics.memory) / memory.GIB
        yield Finding(
            "memory left over",
            f"{free:.0f} of {metrics.gpu_memory / memory.GIB:.0f} GiB were never used: a larger "
            "micro-batch, less recomputation or fewer pipeline stages fit",
            0.0,
            0.05,
            "the log's memory lines; the gain depends on what takes the room",
        )


def _slow_task(subject: Subject) -> Iterator[Finding]:
    paces = {
        name: pace.mean for name, pace in subject.log.paces.items() if name and pace.count >= 3
    }
    if len(paces) < 3:
        return
    ordered = sorted(paces.values())
    middle = ordered[len(ordered) // 2]
    worst = max(paces, key=lambda name: paces[name])
    if paces[worst] > SLOW_TASK * middle:
        excess = paces[worst] / middle - 1
        yield Finding(
            "a slow task",
            f"task {worst} takes {paces[worst]:.3f} s a step, the median of {len(paces)} tasks "
            f"{middle:.3f}",
            excess,
            excess,
            "the log's times, task by task",
        )


def _domain(subject: Subject) -> int:
    """Return the GPUs that NVLink connects."""
    known = GPUS.get(subject.gpu or "")
    return known.nvlink_domain if known and known.nvlink_domain > 8 else subject.tasks_per_node
