"""The effect of single choices on speed, as measured on public runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BRIDGE = "NVIDIA-NeMo/Megatron-Bridge@067f987df"
LM = "NVIDIA/Megatron-LM@402bc50b1c"


@dataclass(frozen=True)
class Effect:
    """The gain of the better choice: 0.2 is 20 % more tokens a second."""

    low: float
    high: float
    measured: str  # on what
    source: str

    @property
    def middle(self) -> float:
        """The middle of the range."""
        return (self.low + self.high) / 2


BALANCE_MANY = Effect(
    1 / 0.67 - 1,
    1 / 0.53 - 1,
    "Qwen3-30B-A3B, 128 experts: natural routing gave 0.67 (16 H100, BF16) and 0.53 (8 GB200, "
    "MXFP8) of forced balance",
    f"{BRIDGE}:examples/model_verification_cards/qwen3-30b-a3b/card.yaml",
)
BALANCE_FEW = Effect(
    465 / 445 - 1,
    465 / 445 - 1,
    "Mixtral-8x22B, 8 experts, 128 H100: 445 → 465 TFLOPS/GPU by forced balance",
    "yanring/Megatron-MoE-ModelZoo@e865051:best_practice/mixtral/run_mixtral_8x22B.sh",
)
OVERLAP = Effect(
    0.0,
    287.305 / 244.039 - 1,
    "Qwen3-30B-A3B, 16 H100, EP16 over two nodes: 244.0 → 287.3 TFLOPS/GPU",
    f"{BRIDGE}:skills/nemo-mbridge-perf-expert-parallel-overlap/card.yaml",
)
DISPATCHER = Effect(
    566.07 / 540.0 - 1,
    943.56 / 829.93 * 566.07 / 540.0 - 1,
    "DeepSeek-V3, 256 GB200: all-to-all 540.0 → DeepEP 566.1 TFLOPS/GPU; later 829.9 → HybridEP "
    "943.6 (GPT-OSS-120B on GB200 lost 4 % by HybridEP: small experts)",
    f"{LM}:docs/discussions/deepseek-v3-gb200-optimization; "
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/3561",
)
GRAPHS = Effect(
    663.27 / 610.71 - 1,
    274 / 214 - 1,
    "DeepSeek-V3, 256 GB200: 610.7 → 663.3 TFLOPS/GPU; Qwen3-30B-A3B: 214 → 274",
    f"{LM}:docs/discussions/deepseek-v3-gb200-optimization; {BRIDGE}: card perf-cuda-graphs",
)
PRECISION = Effect(
    431.0 / 406.6 - 1,
    560 / 465 - 1,
    "Mixtral-8x22B, 128 H100: BF16 465 → FP8 560 TFLOPS/GPU; GPT-OSS-120B, 64 GB200: BF16 406.6 → "
    "MXFP8 431.0",
    "yanring/Megatron-MoE-ModelZoo@e865051:best_practice/mixtral; "
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/3561",
)
RELEASE = Effect(
    0.0,
    44544 / 31744 - 1,
    "Qwen3-30B-A3B, 8 GB300, the same sizes: 31,744 (NeMo 26.04.01) → 44,544 tokens/s/GPU (26.08)",
    f"{BRIDGE}:docs/performance-summary.md, performance-summary-archive.md",
)
SCALE = Effect(
    0.0,
    3988.3 / 2369.7 - 1,
    "DeepSeek-V3, GB200, MLPerf: 512 → 8,192 GPUs at nearly the same global batch: 3,988 → 2,370 "
    "tokens/s/GPU; with a batch that grows, Qwen3-30B kept its speed from 8 to 128 GB300",
    "mlcommons/training_results_v6.0; " + BRIDGE,
)
RECOMPUTE_SELECTIVE = Effect(
    0.0199,
    0.1079,
    "Moonlight-16B-A3B, 8 H100: moe_act 2.0 %, mla_up_proj 5.2 %, layernorm and moe_act 10.8 % "
    "slower than none",
    f"{BRIDGE}:skills/nemo-mbridge-perf-activation-recompute",
)
OFFLOAD = Effect(
    0.9,
    3.2,
    "Qwen3-30B-A3B, 16 H100: 1.9 to 4.2 times slower with 25 to 100 % of the optimizer on the CPU",
    f"{BRIDGE}: card perf-cpu-offloading",
)
FEW_EXPERTS = 16
# By the column of a published result.
OF: Mapping[str, Effect] = {
    "precision": PRECISION,
    "routing": BALANCE_MANY,
    "dispatcher": DISPATCHER,
    "overlap": OVERLAP,
    "graphs": GRAPHS,
    "recompute": RECOMPUTE_SELECTIVE,
    "gpus": SCALE,
    "gbs": SCALE,
    "software": RELEASE,
}


def balance(experts: int) -> Effect:
    """Return what forced balance is worth with so many experts."""
    return BALANCE_FEW if experts <= FEW_EXPERTS else BALANCE_MANY
