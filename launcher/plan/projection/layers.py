"""Seconds of a layer's passes on one GPU, module by module."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable

from launcher.config.gpus import Known
from launcher.plan.projection import host, kernels, network
from launcher.plan.projection.constants import Constants
from launcher.plan.projection.execution import Execution
from launcher.plan.projection.host import Count
from launcher.plan.projection.kernels import Kernels, Product
from launcher.plan.projection.network import Network
from launcher.plan.shape import Experts, Shape
from launcher.plan.stages import Chunk, Layer
from launcher.records import dataclass

SHARPNESS = 4  # of the larger of GPU's and CPU's seconds: they alternate within a pass


@dataclass(frozen=True)
class Parts:
    """Seconds of one pass, by what they are spent on."""

    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    quantize: float = 0.0
    tensor: float = 0.0  # communication of tensor and context parallelism
    expert: float = 0.0  # dispatch and combine
    host: float = 0.0  # of the CPU
    sync: float = 0.0

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            self.products + other.products,
            self.attention + other.attention,
            self.memory + other.memory,
            self.quantize + other.quantize,
            self.tensor + other.tensor,
            self.expert + other.expert,
            self.host + other.host,
            self.sync + other.sync,
        )

    def __mul__(self, times: float) -> Parts:
        return Parts(*(value * times for value in _values(self)))

    @property
    def computing(self) -> float:
        """Seconds of the GPU without communication between experts."""
        return self.products + self.attention + self.memory + self.quantize + self.tensor

    @property
    def seconds(self) -> float:
        """Seconds of the pass alone."""
        return together(self.computing + self.expert, self.host) + self.sync


NAMES = tuple(field.name for field in dataclasses.fields(Parts))


def _values(parts: Parts) -> tuple[float, ...]:
    return (
        parts.products,
        parts.attention,
        parts.memory,
        parts.quantize,
        parts.tensor,
        parts.expert,
        parts.host,
        parts.sync,
    )


def together(one: float, other: float) -> float:
    """Return the seconds of two things that wait for each other now and then."""
    longer, shorter = max(one, other), min(one, other)
    if shorter <= 0:
        return longer
    return longer * (1 + (shorter / longer) ** SHARPNESS) ** (1 / SHARPNESS)


@dataclass(frozen=True)
class Passes:
    """A forward pass and its backward pass."""

    forward: Parts
    backward: Parts

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Passes:
        return Passes(self.forward * times, self.backward * times)


NOTHING = Passes(Parts(), Parts())


@dataclass(frozen=True)
class Workload:
    """What all layers of a job share."""

    shape: Shape
    execution: Execution
    constants: Constants
    gpu: Known
    rates: Kernels
    network: Network
    operation: float  # seconds of the CPU

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on a rank of tensor parallelism, all of its sequence's part."""
        training = self.shape.training
        return training.micro_batch * training.sequence / self.shape.parallel.context

    @property
    def own(self) -> float:
        """Tokens between products, which sequence parallelism splits."""
        parallel = self.shape.parallel
        return self.tokens / (parallel.tensor if parallel.sequence else 1)

    @property
    def fp8_ops(self) -> float:
        """Operations of a linear layer, of those in BF16."""
        return self.constants.fp8_ops if self.shape.training.fp8 else 1.0

    def graphed(self, *names: str) -> bool:
        """Say whether CUDA graphs replay a module."""
        execution = self.execution
        if execution.graphs == "full":
            return True
        named = execution.graph_modules
        return execution.graphs == "modules" and (not named or bool(named.intersection(names)))

    def cpu(self, count: Count, *names: str) -> Count:
        """Return the CPU's seconds, where the module has these names among graphs."""
        if self.execution.graphs == "full":
            return host.NOTHING
        return (host.even(host.REPLAY) if self.graphed(*names) else count) * self.operation


def workload(shape: Shape, execution: Execution, gpu: Known, constants: Constants) -> Workload:
    """Return what the layers of a job share."""
    operation = constants.op_grace if gpu.grace else constants.op_x86
    return Workload(
        shape=shape,
        execution=execution,
        constants=constants,
        gpu=gpu,
        rates=kernels.kernels(gpu, constants, shape.training.fp8, execution.fp8_attention),
        network=network.network(gpu, constants, shape.training.dispatcher),
        operation=operation * (constants.unbound if gpu.grace and not execution.bound else 1.0),
    )


def chunk(work: Workload, held: Chunk, layers: dict[str, Passes]) -> Passes:
    """Return the passes of a model chunk; `layers` are those of each kind of layer."""
    found = NOTHING
    for kind, times in Counter(each.kind for each in held.layers).items():
        found += layers[kind] * times
    if held.embedding or held.embedding_copy:
        found += _embedding(work)
    if held.loss:
        found += loss(work) * (1 + work.shape.model.mtp)
    return found


def turn(work: Workload, passes: Passes) -> float:
    """Return the seconds of a forward and a backward pass in the steady part of a step."""
    if work.shape.training.overlap_experts:
        return sum(pair(work, passes))
    return passes.forward.seconds + passes.backward.seconds


def pair(work: Workload, each: Passes) -> tuple[float, float]:
    """Return a forward and a backward pass's seconds where they run in turns, layer by layer.

    One hides a share of the other's expert communication. The CPU issues both, and more.
    """
    both = each.forward + each.backward
    alone = each.forward.seconds + each.backward.seconds
    if not both.expert or not alone:
        return each.forward.seconds, each.backward.seconds
    host = both.host * (1 + work.constants.overlap_ops)
    seconds = together(both.computing + both.expert - hidden(work, both), host) + both.sync
    share = each.forward.seconds / alone
    return seconds * share, seconds * (1 - share)


def hidden(work: Workload, both: Parts) -> float:
    """Return the seconds of expert communication that overlap hides."""
    return min(min(1.0, work.constants.hidden) * both.expert, both.computing)


def layer(work: Workload, kind: Layer) -> Passes:
    """Return the passes of a layer, with what is computed again before its backward pass."""
    modules = {**_attention(work, kind), **(_moe(work) if kind.moe else _dense(work))}
    if kind.mtp:
        hidden = work.shape.model.hidden
        projection = Product(work.tokens, 2 * hidden, hidden // work.shape.parallel.tensor)
        modules["mtp"] = _module(
            work, (projection,), 8 * work.own * hidden, 6, work.cpu(host.even(24))
        )
    whole = functools.reduce(Passes.__add__, modules.values(), NOTHING)
    training = work.shape.training
    if training.recompute == "full":
        share = _recomputed(work)
        return Passes(whole.forward, whole.backward + whole.forward * share)
    again = (modules[name] for name in _again(training.recompute_modules) if name in modules)
    backward = sum((each.forward for each in again), whole.backward)
    return Passes(whole.forward, backward)


def _recomputed(work: Workload) -> float:
    """Return the share of layers that full recomputation computes again."""
    training = work.shape.training
    if training.recompute_method != "block":
        return 1.0
    layers = work.shape.model.layers / work.shape.parallel.pipeline
    return min(1.0, training.recompute_layers / layers)


def _again(names: Iterable[str]) -> set[str]:
    """Return the modules behind the words of --recompute-modules."""
    found = set(names)
    if "moe" in found:
        found |= {"router", "dispatch", "experts", "moe_act", "shared_experts"}
    return found


def _module(
    work: Workload,
    products: tuple[Product, ...],
    moved: float,
    small: float,
    cpu: Count,
    *,
    tensor: tuple[float, float] = (0.0, 0.0),
    speed: float = 1.0,
) -> Passes:
    """Return a module's passes.

    `moved` are the bytes of its element-wise kernels in the forward pass, of which the backward
    pass moves half as much again; `small` is the number of its kernels; `speed` multiplies the
    time of its products.
    """
    gradient = work.shape.training.gradient_bytes
    there = [kernels.forward(each, work.rates) for each in products]
    back = [kernels.backward(each, work.rates, gradient) for each in products]
    least = small * work.constants.kernel
    return Passes(
        Parts(
            products=sum(seconds for seconds, _ in there) * speed,
            memory=moved / work.rates.memory + least,
            quantize=sum(seconds for _, seconds in there) * speed,
            tensor=tensor[0],
            host=cpu.forward,
        ),
        Parts(
            products=sum(seconds for seconds, _ in back) * speed,
            memory=1.5 * moved / work.rates.memory + least,
            quantize=sum(seconds for _, seconds in back) * speed,
            tensor=tensor[1],
            host=cpu.backward,
        ),
    )


def _tensor(work: Workload) -> tuple[float, float]:
    """Return the seconds of tensor parallelism's collectives around two products.

    With sequence parallelism: gather and scatter forward; backward also the gathering again of
    the input, half of which the other product hides.
    """
    parallel, model = work.shape.parallel, work.shape.model
    each = network.collective(work.network, work.tokens * model.hidden * 2, parallel.tensor)
    if not parallel.sequence:
        each *= 2  # all-reduce
    if work.execution.overlap_tensor:
        each *= 0.5
    return 2 * each, 2.5 * each


def _attention(work: Workload, kind: Layer) -> dict[str, Passes]:
    if kind.linear and work.shape.model.linear_attention is not None:
        return _linear_attention(work)
    model, parallel = work.shape.model, work.shape.parallel
    attention, constants = model.attention, work.constants
    tokens, split, hidden = work.tokens, parallel.tensor, model.hidden
    cpu = work.cpu(
        host.attention(
            attention.latent, attention.q_rank is not None, attention.qk_norm, work.fp8_ops
        ),
        "attn",
    )
    norms = 10.0 * work.own * hidden
    found = {}
    if attention.latent:
        q_width = attention.heads * (attention.qk_dim + attention.rope_dim) // split
        kv_width = attention.heads * (attention.qk_dim + attention.v_dim) // split
        out = attention.heads * attention.v_dim // split
        down = [Product(work.own, hidden, attention.kv_rank + attention.rope_dim)]
        up = [Product(tokens, attention.kv_rank, kv_width)]
        if attention.q_rank:
            down.append(Product(work.own, hidden, attention.q_rank))
            up.append(Product(tokens, attention.q_rank, q_width))
        else:
            up.append(Product(tokens, hidden, q_width))
        # The fused kernel turns a third of the queries in place, and writes keys and values anew.
        turned = q_width * 1.5 + kv_width * 4.5
        shaping = tokens * (turned if work.execution.fused_rope else (q_width + kv_width) * 8.0)
        found["mla_up_proj"] = _module(work, tuple(up), shaping, 14, cpu * 0.5)
        products = (*down, Product(tokens, out, hidden))
        found["attention"] = _module(work, products, 0.0, 8, cpu * 0.4, tensor=_tensor(work))
        heads, qk, v = (
            attention.heads / split,
            attention.qk_dim + attention.rope_dim,
            attention.v_dim,
        )
        kv = kv_width
    else:
        queries = attention.heads * attention.head_dim // split
        keys = max(1, attention.query_groups // split) * attention.head_dim
        qkv = queries * (1 + attention.output_gate) + 2 * keys
        shaping = tokens * (queries + keys) * (4.0 + 4.0 * attention.qk_norm)
        shaping += tokens * queries * 6.0 * attention.output_gate
        products = (Product(tokens, hidden, qkv), Product(tokens, queries, hidden))
        found["attention"] = _module(work, products, shaping, 10, cpu * 0.8, tensor=_tensor(work))
        heads, qk, v = attention.heads / split, attention.head_dim, attention.head_dim
        kv = 2 * keys
    found["layernorm"] = _module(work, (), norms, 4, cpu * 0.05)
    training = work.shape.training
    pairs = tokens * training.sequence / 2
    seconds, back = kernels.core(pairs, heads, qk, v, work.rates)
    # A rank's keys and values pass through all others while it works on those it has.
    size = tokens * kv * 2.0 * parallel.context
    ring = network.collective(work.network, size, parallel.context) if parallel.context > 1 else 0.0
    waits = [
        max(0.0, ring * share - hidden_) + 0.1 * ring
        for share, hidden_ in ((1, seconds), (2, back))
    ]
    small = 2 * constants.kernel
    share = 0.1 if attention.latent else 0.15
    found["core_attn"] = Passes(
        Parts(attention=seconds, memory=small, tensor=waits[0], host=cpu.forward * share),
        Parts(attention=back, memory=small, tensor=waits[1], host=cpu.backward * share),
    )
    return found


def _linear_attention(work: Workload) -> dict[str, Passes]:
    model, split = work.shape.model, work.shape.parallel.tensor
    net = model.linear_attention
    assert net is not None
    width = (2 * net.keys + 2 * net.values + 2 * net.value_heads) // split
    products = (
        Product(work.tokens, model.hidden, width),
        Product(work.tokens, net.values // split, model.hidden),
    )
    # The recurrence works on blocks of tokens; its small products reach little of the peak.
    operations = 2.0 * work.tokens * net.value_heads * net.value_dim * net.key_dim * 4 / split
    state = operations / (work.rates.bf16 * 0.15)
    moved = 10.0 * work.own * model.hidden + work.tokens * width * 16.0
    cpu = work.cpu(host.linear_attention(work.fp8_ops), "attn")
    found = _module(work, products, moved, 40, cpu, tensor=_tensor(work))
    return {"attention": found + Passes(Parts(attention=state), Parts(attention=2.5 * state))}


def _feed(work: Workload, rows: float, width: int, count: int = 1) -> tuple[Product, Product]:
    model = work.shape.model
    inner = (model.experts.latent or model.hidden) if count > 1 and model.experts else model.hidden
    return (
        Product(rows, inner, width * (1 + model.gated), count),
        Product(rows, width, inner, count),
    )


def _dense(work: Workload) -> dict[str, Passes]:
    model = work.shape.model
    width = model.ffn // work.shape.parallel.tensor
    moved = 10.0 * work.own * model.hidden + work.tokens * width * 6.0
    cpu = work.cpu(host.dense(work.fp8_ops), "mlp")
    feed = _feed(work, work.tokens, width)
    return {"mlp": _module(work, feed, moved, 5, cpu, tensor=_tensor(work))}


def load(work: Workload, moe: Experts) -> float:
    """Return the tokens of the fullest rank, of its even share."""
    ranks = work.shape.parallel.expert
    excess = 0.0 if moe.balanced or ranks == 1 else work.constants.imbalance
    # More experts are harder to balance; a bias for each, moved every step, balances them best.
    excess *= (moe.count / 128) ** 0.5 * (0.3 if moe.score_bias else 1.0)
    if moe.capacity_factor is None:
        return 1 + excess
    return moe.capacity_factor if work.execution.padded else min(1 + excess, moe.capacity_factor)


def _moe(work: Workload) -> dict[str, Passes]:
    model, parallel, execution = work.shape.model, work.shape.parallel, work.execution
    moe, constants = model.experts, work.constants
    assert moe is not None
    width = moe.latent or model.hidden
    local = max(1, moe.count // parallel.expert)
    full = load(work, moe)
    arrived = work.own * moe.top_k * parallel.expert_tensor * full
    ffn = max(1, moe.ffn // parallel.expert_tensor)
    dispatcher = work.shape.training.dispatcher

    norms = 10.0 * work.own * model.hidden + work.own * moe.count * 24.0
    choosing = host.router(execution.fused_router, constants.router_ops)
    cpu = work.cpu(choosing * 0.6, "moe_router") + work.cpu(choosing * 0.4, "moe_preprocess")
    router = Product(work.own, model.hidden, moe.count, half=True)
    found = {"router": _module(work, (router,), norms, choosing.forward * 0.6, cpu)}

    # Tokens are put in the order of their experts, and back.
    times = {"hybridep": 0.5, "deepep": 1.0}.get(dispatcher, 2.0)
    times *= 1.0 if execution.fused_permute else 2.0
    moved = times * arrived * width * 7.0
    calls = host.dispatch(dispatcher, execution.fused_permute)
    cpu = host.NOTHING if execution.graphs == "full" else calls * work.operation
    carried = _module(work, (), moved, 10 * times, cpu)
    ranks = parallel.expert * parallel.expert_tensor
    limit = execution.groups_chosen or moe.top_k
    each = network.exchange(
        work.network, work.own * full, width, ranks, moe.top_k, dispatcher, limit
    )
    if parallel.expert == 1 and parallel.expert_tensor == 1:
        each = 0.0
    waiting = constants.sync if execution.graphs != "full" and not execution.padded else 0.0
    found["dispatch"] = carried + Passes(
        Parts(expert=2 * each, sync=waiting), Parts(expert=2 * each)
    )

    grouped = execution.grouped
    calls = host.experts(
        local, grouped, execution.fused_experts, work.fp8_ops, constants.expert_ops
    )
    cpu = host.NOTHING if execution.graphs == "full" else calls * work.operation
    speed = constants.fused if execution.fused_experts else 1.0
    feed = _feed(work, arrived / local, ffn, local)
    found["experts"] = _module(work, feed, 0.0, 2 + local * (0 if grouped else 4), cpu, speed=speed)
    bytes_ = 6.0 if work.shape.training.fused_activation else 14.0
    found["moe_act"] = _module(work, (), arrived * ffn * bytes_ * speed, 1, host.NOTHING)
    if moe.shared_ffn:
        shared = moe.shared_ffn // parallel.tensor
        cpu = work.cpu(host.shared_expert(moe.shared_gate, work.fp8_ops), "moe_router")
        each_ = _module(
            work,
            _feed(work, work.tokens, shared),
            work.tokens * shared * 6.0,
            3,
            cpu,
            tensor=_tensor(work),
        )
        if moe.shared_overlap:
            hidden = 0.8 * each
            each_ = Passes(
                dataclasses.replace(each_.forward, expert=-min(hidden, each_.forward.computing)),
                dataclasses.replace(each_.backward, expert=-min(hidden, each_.backward.computing)),
            )
        found["shared_experts"] = each_
    return found


def _embedding(work: Workload) -> Passes:
    moved = 6.0 * work.own * work.shape.model.hidden
    return _module(work, (), moved, 4, work.cpu(host.even(15)))


def loss(work: Workload) -> Passes:
    """Return output layer and cross entropy: logits are written once and read in FP32."""
    model = work.shape.model
    width = model.vocabulary // work.shape.parallel.tensor
    product = Product(work.tokens, model.hidden, width, half=True)
    moved = work.tokens * width * 12.0
    cpu = host.NOTHING if work.execution.graphs == "full" else host.even(30) * work.operation
    return _module(work, (product,), moved, 10, cpu)
