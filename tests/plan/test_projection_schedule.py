"""The simulated schedule, against the closed formula and against Megatron's own order."""

from __future__ import annotations

import random
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from launcher.plan.projection import schedule
from launcher.plan.projection.schedule import Passes


def even(stages: int, virtual: int, forward: float = 1.0, backward: float = 2.0) -> Passes:
    there = [[forward / virtual] * virtual] * stages
    back = [[backward / virtual] * virtual] * stages
    return Passes(there, back, there, back, transfer=0.0, blocking=False)


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("virtual", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 64])
def test_even_stages_have_the_bubble_of_the_formula(stages, virtual, groups):
    """Narayanan et al., arXiv:2104.04473: (p - 1) / v passes of a stage on top of m."""
    if stages == 1 and virtual > 1:
        pytest.skip("a single stage has no virtual ones")
    micro_batches = groups * stages
    expected = 3.0 * (micro_batches + (stages - 1) / virtual)
    assert schedule.seconds(even(stages, virtual), micro_batches, stages) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stages", "virtual", "micro_batches"), [(1, 1, 3), (4, 1, 8), (4, 1, 2), (2, 2, 4), (4, 3, 8)]
)
def test_timeline_holds_every_pass_once(stages: int, virtual: int, micro_batches: int):
    passes = schedule.even(stages, virtual)
    spans = schedule.timeline(passes, micro_batches, stages)
    assert len({(s.rank, s.chunk, s.micro_batch, s.backward) for s in spans}) == len(spans)
    assert len(spans) == 2 * stages * virtual * micro_batches
    for rank in range(stages):
        own = sorted((s for s in spans if s.rank == rank), key=lambda s: s.start)
        assert all(a.end <= b.start for a, b in zip(own, own[1:]))
    end = max(s.end for s in spans)
    assert end == pytest.approx(schedule.seconds(passes, micro_batches, stages))
    if micro_batches >= stages:
        assert end == pytest.approx(3 * virtual * micro_batches + 3 * (stages - 1))


# PP, VPP, micro-batches, group, overlap
UNEVEN = [
    (4, 1, 12, 4, False),
    (4, 3, 14, 5, False),
    (2, 4, 8, 4, True),
    (8, 2, 35, 9, True),
    (3, 5, 9, 3, False),
]


def megatrons_order(stages, rank, virtual, micro_batches, group, overlap):
    """Every pass of a rank in the order of Megatron's own functions."""
    from launcher.megatron import cpu_device

    cpu_device.install()  # before megatron is imported, which other tests use in this process
    from megatron.core.pipeline_parallel import schedules

    communicator = SimpleNamespace(
        pp_group=SimpleNamespace(size=lambda: stages, rank=lambda: rank),
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
    )
    _, _, ahead, _ = schedules.get_pp_rank_microbatches(
        micro_batches,
        virtual,
        group,
        overlap_moe_expert_parallel_comm=overlap,
        p2p_communicator=communicator,
    )
    table = schedules.get_schedule_table(micro_batches, virtual, group)
    forward = [(True, *entry) for entry in table]
    backward = [(False, micro_batch, virtual - 1 - chunk) for micro_batch, chunk in table]
    order = forward[:ahead]
    for one, two in zip(forward[ahead:], backward):
        order += [one, two]
    return order + backward[len(forward) - ahead :]


@pytest.mark.skipif(find_spec("megatron") is None, reason="the training extra is not installed")
@pytest.mark.parametrize("case", UNEVEN)
def test_order_is_megatrons(case):
    stages, virtual, micro_batches, group, overlap = case
    for rank in range(stages):
        expected = megatrons_order(stages, rank, virtual, micro_batches, group, overlap)
        assert schedule.order(stages, rank, virtual, micro_batches, group, overlap) == expected


def slowest_path(passes: Passes, orders: list[list[tuple[bool, int, int]]]) -> float:
    """When the last pass ends if each rank keeps its order: the longest path, by repetition."""
    stages, virtual = len(passes.forward), len(passes.forward[0])
    ends: dict[tuple, float] = {}

    def needs(rank, forward, micro_batch, chunk):
        place = chunk * stages + rank
        if forward:
            return None if place == 0 else (True, micro_batch, place - 1)
        if place == stages * virtual - 1:
            return (True, micro_batch, place)
        return (False, micro_batch, place + 1)

    waiting = [list(order) for order in orders]
    free = [0.0] * stages
    while any(waiting):
        moved = False
        for rank, order in enumerate(waiting):
            while order:
                forward, micro_batch, chunk = order[0]
                before = needs(rank, forward, micro_batch, chunk)
                if before is not None and before not in ends:
                    break
                ready = 0.0 if before is None else ends[before]
                own = before is not None and before[2] == chunk * stages + rank
                ready += passes.transfer if before is not None and not own else 0.0
                times = passes.forward if forward else passes.backward
                free[rank] = max(free[rank], ready) + times[rank][chunk]
                ends[forward, micro_batch, chunk * stages + rank] = free[rank]
                order.pop(0)
                moved = True
        assert moved, "the order waits for itself"
    return max(free)


def uneven(stages: int, virtual: int, seed: int) -> Passes:
    chance = random.Random(seed)
    there = [[chance.uniform(0.5, 2) for _ in range(virtual)] for _ in range(stages)]
    back = [[2 * seconds for seconds in row] for row in there]
    return Passes(there, back, there, back, transfer=0.1, blocking=False)


@pytest.mark.skipif(find_spec("megatron") is None, reason="the training extra is not installed")
@pytest.mark.parametrize("case", UNEVEN)
def test_uneven_stages_take_as_long_as_in_megatrons_order(case):
    stages, virtual, micro_batches, group, overlap = case
    passes = uneven(stages, virtual, seed=micro_batches)
    orders = [
        megatrons_order(stages, rank, virtual, micro_batches, group, overlap)
        for rank in range(stages)
    ]
    expected = slowest_path(passes, orders)
    found = schedule.seconds(passes, micro_batches, group, overlap)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("stages", "virtual"), [(4, 1), (4, 4), (8, 3), (2, 8)])
def test_the_rest_of_a_long_step_repeats_its_beginning(stages, virtual):
    passes = uneven(stages, virtual, seed=stages)
    micro_batches = 16 * stages
    orders = [
        schedule.order(stages, rank, virtual, micro_batches, stages) for rank in range(stages)
    ]
    found = schedule.seconds(passes, micro_batches, stages)
    assert found == pytest.approx(slowest_path(passes, orders), rel=0.01)


def test_a_last_group_that_megatron_refuses_is_taken_for_a_part_of_a_whole_one():
    passes = even(4, 2)
    whole, more = (schedule.seconds(passes, count, 4) for count in (12, 16))
    assert whole < schedule.seconds(passes, 14, 4) < more


def test_blocking_transfers_cost_time():
    passes = even(4, 1)
    slow = Passes(*(passes.forward, passes.backward) * 2, transfer=0.1, blocking=True)
    assert schedule.seconds(slow, 16, 4) > schedule.seconds(passes, 16, 4)
