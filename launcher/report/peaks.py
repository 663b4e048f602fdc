"""Dense peak TFLOPS of one GPU, by the precision of its matrix products; no sparsity.

Sources: NVIDIA's data sheets of H100 SXM and H200 SXM (figures with sparsity, halved), HGX B200
and B300, GB200 NVL72 and GB300 NVL72 (the rack's figure over its 72 GPUs), A100 and V100; AMD's of
MI300X, MI325X and MI355X.
"""

from __future__ import annotations

from collections.abc import Mapping

TFLOPS: Mapping[str, Mapping[str, float]] = {
    "V100": {"fp16": 125.0},
    "A100": {"bf16": 312.0},
    "H100": {"bf16": 989.4, "fp8": 1978.9},
    "H200": {"bf16": 989.4, "fp8": 1978.9},
    "B200": {"bf16": 2250.0, "fp8": 4500.0, "fp4": 9000.0},
    "B300": {"bf16": 2250.0, "fp8": 4500.0, "fp4": 13500.0},
    "GB200": {"bf16": 2500.0, "fp8": 5000.0, "fp4": 10000.0},
    "GB300": {"bf16": 2500.0, "fp8": 5000.0, "fp4": 15000.0},
    "MI300X": {"bf16": 1307.4, "fp8": 2614.9},
    "MI325X": {"bf16": 1307.4, "fp8": 2614.9},
    "MI355X": {"bf16": 2516.6, "fp8": 5033.2, "fp4": 10066.3},
}
# Bytes a second and GPU in one direction: NVLink within its domain, and the network beside it
# (H100 and B200 nodes with one 400 Gb/s adapter a GPU; GB200, GB300 racks with 400 and 800).
NVLINK: Mapping[str, float] = {
    "H100": 450e9, "H200": 450e9, "B200": 900e9, "B300": 900e9, "GB200": 900e9, "GB300": 900e9,
}  # fmt: skip
NETWORK: Mapping[str, float] = {
    "H100": 50e9, "H200": 50e9, "B200": 50e9, "B300": 100e9, "GB200": 50e9, "GB300": 100e9,
}  # fmt: skip


def peak(gpu: str | None, precision: str) -> float | None:
    """Return a GPU's dense TFLOPS in a precision (bf16, fp16, fp8 or fp4); None where unknown."""
    known = TFLOPS.get(gpu or "", {})
    return known.get(precision) or (known.get("bf16") if precision == "fp16" else None)
