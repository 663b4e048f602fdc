"""The plan's static memory and micro-batches in flight, against real training runs on the CPU."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher.config.arguments import parse
from launcher.plan import activations, parameters, stages, static
from launcher.plan.shape import Shape, read
from tests.support.launching import ROOT, preview

pytestmark = pytest.mark.skipif(
    find_spec("megatron") is None, reason="the training extra is not installed"
)

MEASURE = ROOT / "tests" / "tools" / "measure_memory.py"
# Recipes shrunk as SMOKE=1 does: latent attention, dense and shared experts, MTP in a layout of
# virtual stages; grouped queries with virtual stages; norms of queries and keys; a gated delta net.
JOBS = {
    "deepseek": (
        {"MODEL": "DeepSeek-V3", "TP": "2", "PP": "8", "VPP": "4", "EP": "64"},
        ("--pipeline-model-parallel-layout", "Et|(tt|)*30mL", "--mtp-num-layers", "1"),
    ),
    "mixtral": (
        {"MODEL": "Mixtral-8x7B"},
        ("--microbatch-group-size-per-virtual-pipeline-stage", "3"),
    ),
    "qwen3": ({"MODEL": "Qwen3-30B-A3B"}, ("--grad-reduce-in-bf16",)),
    "qwen3-next": ({"MODEL": "Qwen3-Next-80B-A3B"}, ()),
}
# Five micro-batches in groups of three: the shrunk recipe has four.
LONGER = {"mixtral": "10"}


@functools.cache
def job(name: str) -> tuple[list[str], Shape, int]:
    """Megatron's arguments of a shrunk recipe, their shape, and the number of ranks."""
    variables, further = JOBS[name]
    seen = preview([*further, "--train-iters", "1"], CLUSTER="local", SMOKE="1", **variables)
    words = seen.command
    start = next(n for n, word in enumerate(words) if word.endswith("pretrain.py")) + 1
    if name in LONGER:
        words[words.index("--global-batch-size") + 1] = LONGER[name]
    ranks = int(seen.flag("--nproc-per-node")[0])
    return words[start:], read(parse(words[start:], "job"), ranks), ranks


@functools.cache
def measured(name: str) -> list[dict]:
    """What each rank of a training run allocates."""
    words, _, ranks = job(name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(MEASURE)]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, folder, *words],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return [
            json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8"))
            for rank in range(ranks)
        ]


def total(buffers: Iterable[dict]) -> int:
    """The elements of all parameters in the buffers."""
    return sum(size for buffer in buffers for bucket in buffer["sizes"] for size in bucket)


def padded(buffer: dict) -> int:
    """The elements of a buffer as Megatron says that it pads.

    A parameter starts at a multiple of 64 elements, a bucket ends at one of 128 and of the ranks
    that share the buffer's optimizer states.
    """
    offset, unit = 0, math.lcm(buffer["shards"], 128)
    for bucket in buffer["sizes"]:
        for size in bucket:
            offset = math.ceil(offset / 64) * 64 + size
        offset = math.ceil(offset / unit) * unit
    return offset


def by_stage(name: str) -> list[list[dict]]:
    """The measured ranks of each pipeline stage, which follow one another."""
    found, stage_count = measured(name), job(name)[1].parallel.pipeline
    size = len(found) // stage_count
    return [found[stage * size : (stage + 1) * size] for stage in range(stage_count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_weights_and_gradients_are_what_megatron_allocates(name):
    _, shape, _ = job(name)
    split = stages.split(shape)
    for stage, count, ranks in zip(split, parameters.stages(shape, split), by_stage(name)):
        assert static.placeholders(shape, stage) == 0  # Megatron's local modules need none
        for rank in ranks:
            assert rank["parameters"] == count.total  # all of them in buffers, as below
            buffers = [buffer for chunk in rank["chunks"] for buffer in chunk]
            assert total(buffers) == count.total
            experts = total(buffer for buffer in buffers if buffer["expert"])
            assert experts == parameters.expert_parameters(shape, count)
            # What is beyond our count is padding alone, to the last element.
            padding = sum(padded(buffer) for buffer in buffers) - count.total
            for kind, ours, each in (
                ("parameters", static.weights(shape, count), shape.training.weight_bytes),
                ("gradients", static.gradients(shape, count), shape.training.gradient_bytes),
            ):
                assert sum(buffer[kind] for buffer in buffers) == ours + padding * each


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_optimizer_states_are_what_megatron_allocates(name):
    _, shape, _ = job(name)
    split = stages.split(shape)
    each = static.state_bytes(shape)
    for count, ranks in zip(parameters.stages(shape, split), by_stage(name)):
        bytes_of = [sum(one["main"] + one["moments"] for one in rank["optimizers"]) for rank in ranks]  # fmt: skip
        # All ranks of a stage: TP times as much as one model has, each state once.
        experts = parameters.expert_parameters(shape, count)
        copies = len(ranks) // shape.parallel.dense_shards
        expert_copies = len(ranks) // shape.parallel.expert_data
        assert sum(bytes_of) == each * ((count.total - experts) * copies + experts * expert_copies)
        # One rank: its even share, but for the padding, of which the last shards have more.
        ours, visiting = static.optimizer(shape, count)
        assert visiting == 0
        margin = each * max(
            padded(buffer) - total([buffer])
            for rank in ranks
            for chunk in rank["chunks"]
            for buffer in chunk
        )
        for found in bytes_of:
            assert abs(found - ours) <= margin


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_micro_batches_in_flight_are_what_megatron_holds(name):
    _, shape, _ = job(name)
    for rank, found in enumerate(by_stage(name)):
        chunks = len(found[0]["in_flight"])
        # Alone, each chunk is at its fullest when it holds most.
        ours = [
            activations.in_flight(shape, rank, [float(one == chunk) for one in range(chunks)])[
                chunk
            ]
            for chunk in range(chunks)
        ]
        assert all(one["in_flight"] == ours for one in found)
