"""How long a step of a job takes: stages, schedule, optimizer and data parallelism together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from launcher.plan import flops, parameters
from launcher.plan.parameters import Count
from launcher.plan.projection import layers, network, schedule
from launcher.plan.projection.constants import GPUS, Constants, fitted
from launcher.plan.projection.execution import Execution
from launcher.plan.projection.layers import Parts, Workload
from launcher.plan.shape import Shape
from launcher.plan.stages import Stage
from launcher.records import dataclass

FIXED = 8e-3  # seconds of a step outside its passes: the norm of gradients, logging
NOW = 2026.5  # year of the software whose speed the constants describe


@dataclass(frozen=True)
class Projection:
    """Seconds of a step, and what they are spent on."""

    seconds: float
    tflops: float  # model FLOPs of a GPU and second, in 10^12
    tokens: float  # of a GPU and second
    by: dict[str, float]  # seconds by part; they add up to `seconds`


def project(
    shape: Shape,
    split: Sequence[Stage],
    execution: Execution,
    gpu: str,
    constants: Constants | None = None,
) -> Projection:
    """Project a step of a job on a GPU of constants.GPUS. Raises ValueError for a broken shape."""
    work = layers.workload(shape, execution, GPUS[gpu], constants or fitted())
    chunks = _chunks(work, split)
    micro_batches = max(
        1, shape.training.global_batch // (shape.training.micro_batch * shape.parallel.data)
    )
    turns = _turns(work, chunks)
    group = shape.training.group_size or shape.parallel.pipeline
    overlap = shape.training.overlap_experts
    piped = schedule.seconds(turns, micro_batches, group, overlap)
    data, optimizer = _ends(work, chunks, parameters.stages(shape, split))
    scale = math.exp(work.constants.age * (NOW - execution.released))
    scale *= 1 + work.constants.jitter * max(0.0, math.log2(shape.parallel.world / 8))
    total = (piped + data + optimizer + FIXED) * scale
    by = _by(work, chunks, turns, micro_batches)
    by["pipeline"] = piped - sum(by.values())
    by |= {"data": data, "optimizer": optimizer + FIXED}
    by["scale"] = total - piped - data - optimizer - FIXED
    world = shape.parallel.world
    tokens = shape.training.global_batch * shape.training.sequence
    return Projection(
        seconds=total,
        tflops=flops.iteration(shape) / world / total / 1e12,
        tokens=tokens / world / total,
        by=by,
    )


def passes(
    shape: Shape,
    split: Sequence[Stage],
    execution: Execution,
    gpu: str,
    constants: Constants | None = None,
) -> schedule.Passes:
    """Return the seconds of every chunk's passes. Raises ValueError for a broken shape."""
    work = layers.workload(shape, execution, GPUS[gpu], constants or fitted())
    return _turns(work, _chunks(work, split))


def _chunks(work: Workload, split: Sequence[Stage]) -> list[list[layers.Passes]]:
    """Return the passes of every chunk; layers of a kind and equal chunks are computed once."""
    kinds = {each.kind: each for stage in split for each in stage.layers}
    known = {name: layers.layer(work, each) for name, each in kinds.items()}
    found: dict[tuple, layers.Passes] = {}
    rows = []
    for stage in split:
        row = []
        for held in stage.chunks:
            key = (
                tuple(each.kind for each in held.layers),
                held.embedding or held.embedding_copy,
                held.loss,
            )
            if key not in found:
                found[key] = layers.chunk(work, held, known)
            row.append(found[key])
        rows.append(row)
    return rows


def _turns(work: Workload, chunks: Sequence[Sequence[layers.Passes]]) -> schedule.Passes:
    """Return the seconds of all passes, alone and in turn."""
    shape = work.shape
    forward = [[each.forward.seconds for each in row] for row in chunks]
    backward = [[each.backward.seconds for each in row] for row in chunks]
    steady_forward, steady_backward = forward, backward
    if shape.training.overlap_experts:
        pairs = [[layers.pair(work, each) for each in row] for row in chunks]
        steady_forward = [[first for first, _ in row] for row in pairs]
        steady_backward = [[second for _, second in row] for row in pairs]
    size = work.own * shape.model.hidden * 2.0
    apart = shape.parallel.world // shape.parallel.pipeline
    return schedule.Passes(
        forward=forward,
        backward=backward,
        steady_forward=steady_forward,
        steady_backward=steady_backward,
        transfer=network.transfer(work.network, size, apart) if len(chunks) > 1 else 0.0,
        blocking=len(chunks) > 1 and len(chunks[0]) == 1,
    )


def _by(
    work: Workload,
    chunks: Sequence[Sequence[layers.Passes]],
    turns: schedule.Passes,
    micro_batches: int,
) -> dict[str, float]:
    """Return the busiest rank's seconds by part; `host` is the time that it waits for its CPU."""
    busy = [
        sum(forward) + sum(backward)
        for forward, backward in zip(turns.steady_forward, turns.steady_backward)
    ]
    rank = max(range(len(busy)), key=busy.__getitem__)
    whole = sum((each.forward + each.backward for each in chunks[rank]), Parts())
    by = {
        name: getattr(whole, name)
        for name in ("products", "attention", "memory", "quantize", "tensor")
    }
    if work.shape.training.overlap_experts:
        by["expert"] = whole.expert - layers.hidden(work, whole)
    else:
        by["expert"] = whole.expert
    by["host"] = busy[rank] - sum(by.values())
    return {name: seconds * micro_batches for name, seconds in by.items()}


def _ends(
    work: Workload, chunks: Sequence[Sequence[layers.Passes]], counts: Sequence[Count]
) -> tuple[float, float]:
    """Return the seconds of data parallelism that nothing hides, and of the optimizer."""
    shape, training, parallel = work.shape, work.shape.training, work.shape.parallel
    worst_data = worst_optimizer = 0.0
    for row, count in zip(chunks, counts):
        routed = parameters.expert_parameters(shape, count)
        dense = count.total - routed
        carried = 1 if training.fp8_parameters else training.weight_bytes
        stride = parallel.expert * parallel.expert_tensor

        def travel(
            each: float, dense: int = dense, routed: int = routed, stride: int = stride
        ) -> float:
            return network.spread(
                work.network, dense * each, parallel.dense_shards, parallel.tensor
            ) + network.spread(work.network, routed * each, parallel.expert_data, stride)

        window = work.constants.data_window
        back = sum(each.backward.seconds for each in row) * window
        ahead = sum(each.forward.seconds for each in row) * window
        reduced = travel(training.gradient_bytes)
        gathered = travel(carried) if training.distributed_optimizer else 0.0
        if not training.distributed_optimizer:
            reduced *= 2
        data = max(0.0, reduced - back * work.execution.overlap_gradients)
        data += max(0.0, gathered - ahead * work.execution.overlap_parameters)
        worst_data = max(worst_data, data)
        worst_optimizer = max(worst_optimizer, _optimizer(work, dense, routed))
    return worst_data, worst_optimizer


def _optimizer(work: Workload, dense: int, routed: int) -> float:
    """Return the seconds of Adam: it reads and writes its states, and reads the gradients."""
    training, parallel = work.shape.training, work.shape.parallel
    share = float(dense + routed)
    if training.distributed_optimizer:
        share = dense / parallel.dense_shards + routed / parallel.expert_data
    states = training.first_moment_bytes + training.second_moment_bytes + 4
    moved = share * (2 * states + training.main_gradient_bytes + 2)
    moved += (dense + routed) * training.gradient_bytes * 2.0  # norm, and zero for the next step
    here = moved * (1 - training.offloaded) / work.rates.memory
    if training.states_offloaded:
        here += share * 2 * states / work.gpu.host
    if not training.offloaded:
        return here
    away = share * training.offloaded
    # A CPU's Adam is bound by its memory, of which each GPU has its part.
    processor = 60e9 if work.gpu.grace else 40e9
    return here + away * 6 / work.gpu.host + away * 2 * states / processor


def replaced(projection: Projection, factor: float) -> Projection:
    """Return a projection all of whose seconds are multiplied."""
    return dataclasses.replace(
        projection,
        seconds=projection.seconds * factor,
        tflops=projection.tflops / factor,
        tokens=projection.tokens / factor,
        by={name: seconds * factor for name, seconds in projection.by.items()},
    )
