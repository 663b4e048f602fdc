"""The plan's memory against peaks that others measured on GPUs and published.

MooreThreads/SimuMax, docs/b200/b200_release_v1.2_summary.json: torch.cuda.max_memory_allocated of
Megatron-LM with Transformer Engine 2.11 on eight B200, by pipeline stage, in GiB; the arguments are
those of simu_tools/megatron_scripts/scripts there. Dense models have the same attention, norms,
products, gradients and optimizer.
"""

from __future__ import annotations

import shlex

import pytest

from launcher.config.arguments import merge, parse
from launcher.plan import activations, memory, stages
from launcher.plan.shape import ACTIVATION, Shape, read
from tests.plan.test_parameters import words

COMMON = """
    --seq-length 4096 --micro-batch-size 1 --bf16 --use-distributed-optimizer --sequence-parallel
    --position-embedding-type rope --swiglu --normalization RMSNorm --disable-bias-linear
    --untie-embeddings-and-output-weights
"""
DEEPSEEK = """
    --num-layers 4 --moe-layer-freq ([0]*1+[1]*3) --num-attention-heads 128
    --multi-latent-attention --qk-layernorm --q-lora-rank 1536 --kv-lora-rank 512
    --qk-head-dim 128 --qk-pos-emb-head-dim 64 --v-head-dim 128
    --moe-token-dispatcher-type alltoall --moe-expert-capacity-factor 1
"""
V2 = f"""{DEEPSEEK}
    --hidden-size 5120 --ffn-hidden-size 12288 --vocab-size 102400 --num-experts 160
    --moe-ffn-hidden-size 1536 --moe-router-topk 6 --moe-shared-expert-intermediate-size 3072
"""
V3 = f"""{DEEPSEEK}
    --hidden-size 7168 --ffn-hidden-size 18432 --vocab-size 129280 --num-experts 256
    --moe-ffn-hidden-size 2048 --moe-router-topk 8 --moe-shared-expert-intermediate-size 2048
"""
LLAMA_70B = """
    --num-layers 12 --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64
    --group-query-attention --num-query-groups 8 --vocab-size 128256
"""
LLAMA_405B = """
    --num-layers 4 --hidden-size 16384 --ffn-hidden-size 53248 --num-attention-heads 128
    --group-query-attention --num-query-groups 16 --vocab-size 128256
"""
LONG = "--context-parallel-size {} --seq-length 32768"
# Model, TP, PP, EP, further arguments, and the peak of each pipeline stage.
MEASURED = {
    "DeepSeek-V2 EP8": (V2, 1, 1, 8, "", [45.63]),
    "DeepSeek-V2 EP4 PP2": (V2, 1, 2, 4, "", [31.59, 44.70]),
    "DeepSeek-V3 EP8": (V3, 1, 1, 8, "", [104.30]),
    "DeepSeek-V3 EP4 PP2": (V3, 1, 2, 4, "", [71.24, 114.00]),
    "Llama-3-70B PP2": (LLAMA_70B, 1, 2, 1, "", [66.55, 62.97]),
    "Llama-3-70B TP2": (LLAMA_70B, 2, 1, 1, "", [60.68]),
    "Llama-3-70B TP4": (LLAMA_70B, 4, 1, 1, "", [39.07]),
    "Llama-3-70B TP8": (LLAMA_70B, 8, 1, 1, "", [28.29]),
    "Llama-3-70B TP2 CP4": (LLAMA_70B, 2, 1, 1, LONG.format(4), [68.43]),
    "Llama-3-70B CP8": (LLAMA_70B, 1, 1, 1, LONG.format(8), [104.51]),
    "Llama-3-405B PP2": (LLAMA_405B, 1, 2, 1, "", [86.61, 87.08]),
    "Llama-3-405B TP2": (LLAMA_405B, 2, 1, 1, "", [81.59]),
    "Llama-3-405B TP4": (LLAMA_405B, 4, 1, 1, "", [52.89]),
    "Llama-3-405B TP8": (LLAMA_405B, 8, 1, 1, "", [38.57]),
}


def shape_of(name: str) -> Shape:
    model, tensor, pipeline, expert, further, _ = MEASURED[name]
    sizes = f"""
        --tensor-model-parallel-size {tensor} --pipeline-model-parallel-size {pipeline}
        --expert-model-parallel-size {expert} --global-batch-size 32
    """
    return read(parse(shlex.split(COMMON + model + sizes + further), "job"), 8)


def allocated(shape: Shape) -> list[float]:
    """What PyTorch allocates by our account, in GiB: all but the framework, of every stage.

    These jobs computed the loss with Transformer Engine's cross entropy, which turns the BF16
    logits into their gradient in place; Megatron 0.19 refuses it.
    """
    found = []
    for one, stage in zip(memory.ranks(shape, stages.split(shape)), stages.split(shape)):
        at_work = max(activations.working(shape, layer) for layer in stage.layers)
        loss = 0.0
        if stage.chunks[-1].loss:
            words = shape.model.vocabulary / shape.parallel.tensor
            loss = activations.tokens(shape) * words * ACTIVATION
        found.append((one.static + one.activations + max(at_work, loss)) / memory.GIB)
    return found


@pytest.mark.parametrize("name", MEASURED)
def test_peak_on_a_gpu(name):
    assert allocated(shape_of(name)) == pytest.approx(MEASURED[name][-1], rel=0.02)


FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


@pytest.mark.parametrize(
    ("recompute", "peak", "within"),
    # With full recomputation ours is 9 % short, and we do not know of what. It is neither MTP, which
    # is recomputed too, nor the logits, nor what a recomputed layer needs while it works.
    [("", 68704, 0.02), (FULL, 60154, 0.10)],
)
def test_deepseek_v3_of_14_layers_on_64_h100(recompute, peak, within):
    """NVIDIA/Megatron-LM pull request 6311: MiB allocated at most, TP1 PP4 VPP4 EP16, MTP, BF16.

    The optimizer's formats are not stated there; those are Megatron's defaults.
    """
    flags = f"""
        --num-layers 14 --moe-layer-freq ([0]*3+[1]*11) --mtp-num-layers 1 --seq-length 2048
        --pipeline-model-parallel-size 4 --expert-model-parallel-size 16 --global-batch-size 256
        --moe-token-dispatcher-type alltoall --moe-router-force-load-balancing
        --pipeline-model-parallel-layout Et|{"t|" * 13}m|L {recompute}
    """
    left_out = ("--recompute", "--decoder")
    given = {
        flag: one
        for flag, one in parse(words("DeepSeek-V3"), "job").items()
        if not flag.startswith(left_out)
    }
    shape = read(merge(given, parse(shlex.split(flags), "card")), 64)
    fullest = memory.worst(memory.ranks(shape, stages.split(shape)))
    ours = (fullest.total - fullest.framework) / 2**20
    assert ours == pytest.approx(peak, rel=within)


MOONLIGHT = """
    --num-layers 27 --hidden-size 2048 --ffn-hidden-size 11264 --num-attention-heads 16
    --multi-latent-attention --qk-layernorm --kv-lora-rank 512 --qk-head-dim 128
    --qk-pos-emb-head-dim 64 --v-head-dim 128 --vocab-size 163840
    --num-experts 64 --moe-router-topk 6 --moe-ffn-hidden-size 1408 --moe-layer-freq ([0]*1+[1]*26)
    --moe-shared-expert-intermediate-size 2816 --moe-shared-expert-overlap
    --moe-token-dispatcher-type alltoall --tensor-model-parallel-size 2
    --expert-model-parallel-size 8 --expert-tensor-parallel-size 1 --global-batch-size 2048
    --use-precision-aware-optimizer --main-grads-dtype bf16 --exp-avg-dtype bf16
    --exp-avg-sq-dtype bf16 --cross-entropy-loss-fusion --cross-entropy-fusion-impl te
"""


@pytest.mark.parametrize(
    ("modules", "gigabytes"),
    [  # the peak, and what recomputing a module saves of it: 1.85 % and 1.96 %
        ("core_attn", 36.618),
        ("core_attn moe_act", 36.618 * 0.9815),
        ("core_attn mla_up_proj", 36.618 * 0.9804),
    ],
)
def test_moonlight_on_8_h100(modules, gigabytes):
    """NVIDIA-NeMo/Megatron-Bridge, skills/nemo-mbridge-perf-activation-recompute/card.yaml; the flags
    are those of its recipe (recipes/moonlight/moonlight_16b.py, 08de997c8d): moments and main
    gradients in BF16, natural routing. Ours is 8 to 10 % lower, with 1.2 times the even share.
    """
    flags = f"{COMMON} {MOONLIGHT} --recompute-granularity selective --recompute-modules {modules}"
    shape = read(parse(shlex.split(flags), "card"), 8)
    (only,) = memory.ranks(shape, stages.split(shape))
    ours = (only.total - only.framework) / 1e9
    assert ours == pytest.approx(gigabytes, rel=0.11)
    assert ours < gigabytes


def test_overlapped_experts_need_no_second_micro_batch():
    """NVIDIA-NeMo/Megatron-Bridge, examples/model_verification_cards/qwen3-30b-a3b/card.yaml: on
    16 H100 the peak of allocated memory stays below 65 GiB. Another micro-batch would be 22 more.
    """
    flags = """
        --expert-model-parallel-size 16 --global-batch-size 1024 --grad-reduce-in-bf16
        --use-precision-aware-optimizer --moe-router-force-load-balancing
        --overlap-moe-expert-parallel-comm --moe-token-dispatcher-type flex
        --moe-flex-dispatcher-backend hybridep
    """
    given = {
        flag: one
        for flag, one in parse(words("Qwen3-30B-A3B"), "job").items()
        if not flag.startswith("--recompute")
    }
    shape = read(merge(given, parse(shlex.split(flags), "card")), 16)
    (only,) = memory.ranks(shape, stages.split(shape))
    assert only.in_flight == (1,)
    assert 55 < (only.total - only.framework) / memory.GIB < 65


if __name__ == "__main__":
    for name, (*_, peaks) in MEASURED.items():
        for stage, (ours, peak) in enumerate(zip(allocated(shape_of(name)), peaks)):
            print(
                f"{name:20} stage {stage} {ours:7.2f} {peak:7.2f} {100 * (ours / peak - 1):+5.1f} %"
            )
