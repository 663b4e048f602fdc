"""Micro-batches in flight against Megatron's own functions that decide the schedule."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from launcher.plan import activations
from launcher.plan.shape import Shape
from tests.plan.test_parameters import shape_of

pytestmark = pytest.mark.skipif(
    find_spec("megatron") is None, reason="the training extra is not installed"
)

# PP, VPP (None: not interleaved), micro-batches, micro-batches a group (None: PP), overlap
JOBS = [
    (2, None, 1, None, False),
    (4, None, 3, None, False),
    (4, None, 16, None, False),
    (2, 2, 4, None, False),
    (2, 2, 4, None, True),
    (2, 2, 2, None, True),
    (2, 2, 5, 3, False),
    (2, 3, 64, None, True),
    (4, 2, 8, None, False),
    (4, 2, 8, None, True),
    (4, 4, 4, None, True),
    (4, 3, 22, 6, True),
    (4, 4, 512, None, False),
    (8, 4, 128, None, True),
    (8, 7, 32, None, False),
    (8, 2, 27, 9, False),
    (16, 2, 64, 32, True),
]


def shape(pipeline: int, micro_batches: int, group: int | None, overlap: bool) -> Shape:
    """A job of these sizes, one sequence a micro-batch and no data parallelism."""
    base = shape_of("Mixtral-8x2B")
    parallel = replace(base.parallel, world=pipeline, tensor=1, pipeline=pipeline, context=1)
    training = replace(
        base.training,
        micro_batch=1,
        global_batch=micro_batches,
        group_size=group,
        overlap_experts=overlap,
    )
    return replace(base, parallel=parallel, training=training)


def events(
    rank: int, pipeline: int, virtual: int | None, micro_batches: int, group: int, overlap: bool
) -> tuple[list[int], int]:
    """The chunks of all forward passes in order, and how many of them come before a backward."""
    from launcher.megatron import cpu_device

    cpu_device.install()  # before megatron is imported, which other tests use in this process
    from megatron.core.pipeline_parallel import schedules

    chunks = virtual or 1
    communicator = SimpleNamespace(
        pp_group=SimpleNamespace(size=lambda: pipeline, rank=lambda: rank),
        virtual_pipeline_model_parallel_size=virtual,
    )
    _, _, warm_up, _ = schedules.get_pp_rank_microbatches(
        micro_batches,
        chunks,
        group,
        overlap_moe_expert_parallel_comm=overlap,
        p2p_communicator=communicator,
    )
    table = schedules.get_schedule_table(micro_batches, chunks, group)
    return [chunk for _, chunk in table], warm_up


@pytest.mark.parametrize(("pipeline", "virtual", "micro_batches", "group", "overlap"), JOBS)
def test_in_flight_is_what_the_schedule_holds(pipeline, virtual, micro_batches, group, overlap):
    job, chunks = shape(pipeline, micro_batches, group, overlap), virtual or 1
    for weights in ([1.0] * chunks, [1.0] + [0.3] * (chunks - 1), [0.3] * (chunks - 1) + [1.0]):
        for rank in range(pipeline):
            order, ahead = events(
                rank, pipeline, virtual, micro_batches, group or pipeline, overlap
            )
            held, most = [0] * chunks, 0.0
            for step, chunk in enumerate(order):
                # One forward, one backward, which goes through the chunks in opposite order. With
                # the overlap, both at once: layers of the one go as layers of the other come.
                back = chunks - 1 - order[step - ahead]
                if overlap and step >= ahead:
                    held[back] -= 1
                held[chunk] += 1
                most = max(most, sum(n * weight for n, weight in zip(held, weights)))
                if not overlap and step >= ahead:
                    held[back] -= 1
            found = activations.in_flight(job, rank, weights)
            assert sum(n * weight for n, weight in zip(found, weights)) == pytest.approx(most)


@pytest.mark.parametrize("overlap", [False, True])
def test_without_a_pipeline_there_is_one(overlap):
    assert activations.in_flight(shape(1, 8, None, overlap), 0, [1.0]) == (1,)
