"""Faults of parallel layouts and memory estimates that were reported to Megatron, by their number.

Each is refused here before anything is submitted, or comes out right.
"""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from launcher.config.arguments import parse
from launcher.plan.plan import plan
from launcher.plan.rules import check
from tests.plan.test_rules import case

LAYOUT = "--pipeline-model-parallel-layout"


def errors(*words: str, **fields) -> dict[str, str]:
    """The errors of the good job with changes, by rule."""
    found = check(case(" ".join(words), **fields))
    return {one.rule: one.message for one in found if one.severity == "error"}


# NVIDIA/Megatron-LM#5768 lists these eight. Two cannot be met through Megatron's arguments:
# sequence parallelism without TP is switched off with a warning by validate_args, and
# pipeline_dtype is set from the parameters' format. Those jobs run, so they are none of our errors.
EIGHT = {
    "1 world size": ("", "parallelism.world_size", {"world_size": 18}),
    "2 interleaving without a pipeline": (
        "--pipeline-model-parallel-size 1 --num-virtual-stages-per-pipeline-rank 2",
        "layout.virtual_needs_pipeline",
        {},
    ),
    "3 sequence parallelism without TP": ("--tensor-model-parallel-size 1", None, {}),
    "4 pipeline dtype": ("--pipeline-model-parallel-size 4", None, {}),
    "5 heads": ("--num-attention-heads 15", "parallelism.heads", {}),
    "6 EP without experts": ("", "moe.experts_over_ranks", {"without": "--num-experts"}),
    "7 FP16 and BF16": ("--fp16", "precision.one_half", {}),
    "8 expert world size": ("", "parallelism.expert_world_size", {"world_size": 12}),
}


@pytest.mark.parametrize("number", EIGHT)
def test_common_parallelism_errors_of_megatron_lm_5768(number: str):
    flags, rule, fields = EIGHT[number]
    found = errors(flags, **fields)
    assert rule in found if rule else not found, found


DEEP = "--num-layers 61 --moe-layer-freq ([0]*3+[1]*58) --pipeline-model-parallel-size 16"
PIPELINE = {"world_size": 128}


@pytest.mark.parametrize("layout", ["Et|(tt|)*29L|", "Et|(tt|)*29|L"])
def test_layouts_of_megatron_lm_1852_that_megatron_refuses(layout: str):
    """Attempts to keep the last stage free of layers, with 59 of 61."""
    assert list(errors(DEEP, LAYOUT, f"'{layout}'", **PIPELINE)) == ["layout.layout_layers"]


def test_empty_stage_of_megatron_lm_1852():
    """A whole layout with an empty chunk, on which runs hung, is pointed out."""
    layout = "Et|(tt|)*12(ttt|)*12||||||L"
    found = check(case(f"{DEEP} {LAYOUT} '{layout}'", **PIPELINE))
    assert [one.rule for one in found] == ["layout.empty_chunks"]
    assert "rank 9 chunk 1, rank 10 chunk 1" in found[0].message


def test_lost_layers_of_megatron_lm_1304():
    """30 layers over PP4 became 4 times 7."""
    found = errors("--num-layers 30 --pipeline-model-parallel-size 4", world_size=32)
    assert list(found) == ["layout.even_split"]
    assert "PP may be 1, 2, 3, 5, 6, 10, 15, 30" in found["layout.even_split"]


@pytest.mark.parametrize("end", ["first", "last"])
def test_silent_depth_of_megatron_lm_1778(end: str):
    """20 layers on one stage whose last stage was said to have 1: the model had 1."""
    found = errors(
        f"--num-layers 20 --pipeline-model-parallel-size 1 --decoder-{end}-pipeline-num-layers 1"
    )
    assert list(found) == ["layout.uneven_split"]


@pytest.mark.parametrize("layers", [(6, 4), (9, 1)])
def test_layers_less_than_none(layers: tuple[int, int]):
    """Of the same kind, and started by 0.19: the stages between get less than no layer."""
    first, last = layers
    found = errors(
        f"--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers {first}",
        f"--decoder-last-pipeline-num-layers {last}",
        world_size=32,
    )
    assert list(found) == ["layout.overfull_ends"]


DENSE = """
--num-layers 8 --hidden-size 64 --ffn-hidden-size 256 --num-attention-heads 4 --kv-channels 16
--seq-length 128 --max-position-embeddings 128 --micro-batch-size 1 --global-batch-size 8
--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1
--decoder-last-pipeline-num-layers 3 --swiglu --disable-bias-linear --normalization RMSNorm
--position-embedding-type rope --untie-embeddings-and-output-weights --bf16
--vocab-size 256 --use-distributed-optimizer --train-iters 10 --lr 1e-4 --mock-data
"""
WIDTH, FFN, VOCABULARY = 64, 256, 256


def fullest(flags: str, world_size: int) -> tuple[list[int], int]:
    """Parameters of each stage, and the bytes of weights where there are most."""
    job = dataclasses.replace(
        case(), arguments=parse(shlex.split(flags), "test"), world_size=world_size
    )
    made = plan(job)
    assert made.shaped is not None, made.findings
    return [count.total for count in made.shaped.counts], max(
        one.weights for one in made.shaped.memory
    )


@pytest.mark.parametrize("experts", [0, 4])
def test_wrong_memory_of_megatron_bridge_5077(experts: int):
    """Layers split 1, 2, 2, 3: the last stage is the fullest, not the average of all four.

    With experts, the first four layers are dense and the others have four experts each.
    """
    attention = 4 * WIDTH * WIDTH + 2 * WIDTH  # queries, keys, values, output; two norms
    network = 3 * WIDTH * FFN
    dense = attention + network
    sparse = attention + experts * network + experts * WIDTH if experts else dense
    table = VOCABULARY * WIDTH
    flags = DENSE
    if experts:
        flags += f" --num-experts {experts} --moe-ffn-hidden-size {FFN}"
        flags += " --moe-layer-freq ([0]*4+[1]*4) --moe-grouped-gemm"
    wanted = [dense + table, 2 * dense, dense + sparse, 3 * sparse + WIDTH + table]
    parameters, weights = fullest(flags, world_size=4)
    assert parameters == wanted
    assert weights == 2 * wanted[-1] > 2 * sum(wanted) / 4 * 1.3
