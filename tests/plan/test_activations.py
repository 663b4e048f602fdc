"""The plan's activations against what the layers of real Megatron models save for backward.

tests/tools/count_saved.py builds the layers at their real size and counts. Transformer Engine
is not there: where its fused kernels save something else than Megatron's local modules, either the
counter has a stand-in or `fused` corrects what it found, tensor by tensor.
"""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest

from launcher.config.arguments import Arguments, argv, merge, parse
from launcher.plan import activations, stages
from launcher.plan.shape import ACTIVATION, SINGLE, Shape, read
from tests.plan.test_parameters import ROOT, words

pytestmark = pytest.mark.skipif(
    find_spec("megatron") is None, reason="the training extra is not installed"
)

TOLERANCE = 0.0125
SELECTIVE = "--recompute-granularity selective --recompute-modules "
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
MTP = "--mtp-num-layers 1"
# A job: a model's defaults, tensor ranks, and further arguments.
JOBS = [
    *(
        (model, 1, "")
        for model in (
            "DeepSeek-V2",
            "DeepSeek-V2-Lite",
            "DeepSeek-V3",
            "Kimi-K2",
            "Mixtral-8x7B",
            "Qwen2-57B-A14B",
            "Qwen3-30B-A3B",
            "Qwen3-235B-A22B",
            "Qwen3-Next-80B-A3B",
        )
    ),
    ("DeepSeek-V3", 2, ""),
    ("Mixtral-8x22B", 2, ""),
    ("Qwen3-235B-A22B", 4, ""),
    *(
        ("DeepSeek-V3", 2, SELECTIVE + modules)
        for modules in ("core_attn", "mla_up_proj", "layernorm", "mlp", "moe", "shared_experts")
    ),
    ("DeepSeek-V3", 2, SELECTIVE + "mla_up_proj moe layernorm mlp"),
    *(("Qwen3-30B-A3B", 1, SELECTIVE + modules) for modules in ("core_attn", "layernorm", "moe")),
    ("Mixtral-8x7B", 1, SELECTIVE + "core_attn"),
    ("Qwen2-57B-A14B", 2, SELECTIVE + "layernorm"),
    ("Qwen3-Next-80B-A3B", 1, SELECTIVE + "layernorm moe"),
    *((model, 1, MTP) for model in ("DeepSeek-V3", "Qwen3-Next-80B-A3B")),
    *((model, 1, FULL) for model in ("DeepSeek-V3", "Mixtral-8x7B", "Qwen3-Next-80B-A3B")),
]
# What does not concern a layer, and what chooses a layer's place.
DROPPED = shlex.split(
    """
    --pipeline-model-parallel-layout --num-virtual-stages-per-pipeline-rank
    --num-layers-per-virtual-pipeline-stage --decoder-first-pipeline-num-layers
    --decoder-last-pipeline-num-layers --account-for-embedding-in-pipeline-split
    --account-for-loss-in-pipeline-split --overlap-moe-expert-parallel-comm --delay-wgrad-compute
    --mtp-num-layers --mtp-loss-scaling-factor --recompute-granularity --recompute-modules
    --recompute-method --recompute-num-layers --load --save --save-interval --data-path
    --tokenizer-model
    """
)


@functools.cache
def arguments(model: str, tensor: int) -> Arguments:
    """A model's defaults on one pipeline stage, with an equal number of tokens for each expert."""
    found = {flag: one for flag, one in parse(words(model), "job").items() if flag not in DROPPED}
    layers = 4 if "--linear-attention-freq" in found else 2
    dense = int("--moe-layer-freq" in found and "0]" in found["--moe-layer-freq"].values[0])
    over = shlex.split(
        f"""
        --num-layers {layers} --pipeline-model-parallel-size 1
        --tensor-model-parallel-size {tensor} --expert-model-parallel-size 1
        --expert-tensor-parallel-size 1 --context-parallel-size 1
        --micro-batch-size 1 --global-batch-size 1 --mock-data --tokenizer-type NullTokenizer
        --moe-expert-capacity-factor 1.0 --moe-pad-expert-input-to-capacity
        --moe-layer-freq ([0]*{dense}+[1]*{layers - dense})
    """
    )
    return merge(found, parse(over, "test"))


def shape_of(job: tuple[str, int, str]) -> Shape:
    model, tensor, further = job
    return read(merge(arguments(model, tensor), parse(further.split(), "test")), tensor)


@functools.cache
def counted() -> dict[tuple[str, int, str], dict]:
    """What each layer of every job saves."""
    lines = [
        {
            "name": json.dumps(job),
            "argv": argv(arguments(*job[:2])),
            "world_size": job[1],
            "environment": {"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
            "further": job[2].split(),
            "own_training": True,
        }
        for job in JOBS
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tools" / "count_saved.py")],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {tuple(json.loads(one["name"])): one for one in found}


def fused(shape: Shape, layer: stages.Layer) -> float:
    """What Transformer Engine keeps and Megatron's local modules do not, in bytes.

    It computes a norm inside of the matrix product that reads it, and so recomputes them together.
    """
    modules = shape.training.recompute_modules
    attention, hidden = shape.model.attention, activations.layer_input(shape)
    compressed = (attention.q_rank or 0) + attention.kv_rank
    extra = 0.0
    if "layernorm" in modules:
        extra += hidden * (not attention.latent) + hidden * (not layer.moe)
        extra -= hidden * ("mlp" in modules and not layer.moe)
    elif "mlp" in modules and not layer.moe:
        extra -= hidden
    if "mla_up_proj" in modules and attention.latent:
        extra -= activations.own_tokens(shape) * compressed * ACTIVATION
    return extra


def compared(job: tuple[str, int, str]) -> list[tuple[str, float, float]]:
    """Of each kind of layer: ours, and what was counted, in bytes."""
    shape, found = shape_of(job), counted()[job]
    assert "saved" in found, found
    (stage,) = stages.split(shape)
    if shape.training.recompute == "full":
        nothing = {layer.kind: 0.0 for layer in stage.layers}
        # Behind the decoder's layers, inputs all, comes the input of the final norm.
        ours = activations.chunk_activations(
            shape, stage.chunks[0], nothing
        ) - activations.layer_input(shape)
        return [("block", ours, found["saved"]["block"]["total"])]
    kinds = {layer.kind: layer for layer in stage.layers}
    if shape.model.mtp:
        kept = {kind: activations.kept(shape, layer) for kind, layer in kinds.items()}
        (chunk,) = stage.chunks
        # Beside what the loss saves are the BF16 logits, or their gradient, which nothing saves, and
        # the exponentials of a compiled loss, which runs uncompiled here.
        exponentials = SINGLE if shape.training.fused_loss else 0
        each = activations.tokens(shape) * shape.model.vocabulary
        passing = each * (ACTIVATION + exponentials)
        ours = (
            activations.chunk_activations(shape, chunk, kept)
            + activations.logits(shape, chunk)
            - passing
        )
        return [("model", ours, found["saved"]["model"]["total"])]
    assert kinds.keys() == found["saved"].keys()
    return [
        (kind, activations.kept(shape, layer), found["saved"][kind]["total"] + fused(shape, layer))
        for kind, layer in kinds.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: " ".join(map(str, job)).strip())
def test_activations_are_what_megatron_saves(job):
    for kind, ours, theirs in compared(job):
        assert ours == pytest.approx(theirs, rel=TOLERANCE), kind


if __name__ == "__main__":
    for each in JOBS:
        for what, plan, count in compared(each):
            error = 100 * (plan / count - 1)
            name = f"{each[0]} TP{each[1]} {each[2]}".replace("--", "").replace("recompute-", "")
            print(f"{what:12} {plan / 2**20:8.1f} {count / 2**20:8.1f} MiB {error:+5.2f} %  {name}")
