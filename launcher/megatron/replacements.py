"""Megatron arguments that need Transformer Engine or a GPU, and what stands in for them.

Used where a job runs on this machine (local.py) and where Megatron judges one without running it
(megatron/verify.py). A cluster's job is never changed by them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Replacement:
    """Flags that go together, what stands in for them (None: nothing), and why."""

    reason: str
    flags: tuple[str, ...]
    instead: tuple[str, ...] | None = None


# What Transformer Engine brings; its place is taken by Megatron's own local modules.
WITHOUT_TRANSFORMER_ENGINE = (
    Replacement("Transformer Engine is not installed", ("--transformer-impl",), ("local",)),
    Replacement(
        "FP8 and FP4 need Transformer Engine; this runs in BF16",
        (
            "--fp4-format",
            "--fp4-recipe",
            "--fp4-param-gather",
            "--fp8-format",
            "--fp8-recipe",
            "--fp8-param-gather",
            "--reuse-grad-buf-for-mxfp8-param-ag",
            "--moe-router-padding-for-quantization",
            "--moe-router-padding-for-fp8",
        ),
    ),
    Replacement(
        "the precision-aware optimizer needs Transformer Engine",
        (
            "--use-precision-aware-optimizer",
            "--main-grads-dtype",
            "--main-params-dtype",
            "--exp-avg-dtype",
            "--exp-avg-sq-dtype",
        ),
    ),
    Replacement(
        "fused kernels need Transformer Engine", ("--moe-permute-fusion", "--moe-router-fusion")
    ),
    Replacement("overlapped TP communication needs Transformer Engine", ("--tp-comm-overlap",)),
    Replacement("delayed weight gradients need Transformer Engine", ("--delay-wgrad-compute",)),
    Replacement(
        "activation offloading needs Transformer Engine",
        (
            "--fine-grained-activation-offloading",
            "--offload-modules",
            "--delay-offload-until-cuda-graph",
        ),
    ),
    Replacement(
        "CUDA graphs need Transformer Engine and a GPU",
        (
            "--cuda-graph-impl",
            "--cuda-graph-modules",
            "--cuda-graph-scope",
            "--cuda-graph-warmup-steps",
            "--te-rng-tracker",
        ),
    ),
)
ON_THE_CPU = (
    Replacement("DeepEP needs GPUs", ("--moe-token-dispatcher-type",), ("alltoall",)),
    Replacement(
        "DeepEP needs GPUs",
        (
            "--moe-flex-dispatcher-backend",
            "--moe-enable-deepep",
            "--moe-hybridep-num-sms",
            "--moe-deepep-num-sms",
            "--moe-flex-dispatcher-num-sms",
            "--moe-permute-fusion-into-hybridep",
        ),
    ),
    Replacement(
        "there is no GPU memory to offload",
        (
            "--optimizer-cpu-offload",
            "--overlap-cpu-optimizer-d2h-h2d",
            "--offload-optimizer-states",
        ),
    ),
    Replacement(
        "profiling is of GPUs",
        (
            "--profile",
            "--use-pytorch-profiler",
            "--profile-step-start",
            "--profile-step-end",
            "--profile-ranks",
        ),
    ),
)
