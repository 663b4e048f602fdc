"""Dense peak TFLOPS of one GPU, by the precision of its matrix products; no sparsity."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.config.gpus import KNOWN

# GPUs that the launcher does not launch on, whose logs it reads. Sources: the data sheets of NVIDIA
# (V100, A100) and AMD.
OTHERS: Mapping[str, Mapping[str, float]] = {
    "V100": {"fp16": 125.0},
    "A100": {"bf16": 312.0},
    "MI300X": {"bf16": 1307.4, "fp8": 2614.9},
    "MI325X": {"bf16": 1307.4, "fp8": 2614.9},
    "MI355X": {"bf16": 2516.6, "fp8": 5033.2, "fp4": 10066.3},
}


def peak(gpu: str | None, precision: str) -> float | None:
    """Return a GPU's dense TFLOPS in a precision (bf16, fp16, fp8 or fp4); None where unknown."""
    ours = KNOWN.get(gpu or "")
    if ours is None:
        known = OTHERS.get(gpu or "", {})
        return known.get(precision) or (known.get("bf16") if precision == "fp16" else None)
    rates = {"bf16": ours.bf16, "fp16": ours.bf16, "fp8": ours.fp8, "fp4": ours.fp4}
    rate = rates.get(precision)
    return rate / 1e12 if rate else None
