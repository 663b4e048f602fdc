"""What the projection knows of a GPU and its server: a data sheet each.

Sources: NVIDIA's data sheets of H100 SXM, H200 SXM, HGX B200 and B300, GB200 NVL72 and GB300 NVL72.
Rates are dense (without sparsity) and per GPU, NVLink and network in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A data sheet."""

    bf16: float  # FLOP/s
    fp8: float  # FLOP/s
    memory: float  # bytes/s of HBM
    nvlink: float  # bytes/s
    network: float  # bytes/s of its network adapter
    host: float  # bytes/s between GPU memory and CPU memory
    watts: int  # what it may draw
    domain: int  # GPUs that share NVLink
    blackwell: bool  # else Hopper
    grace: bool  # its CPU is an Arm Grace, else x86
    ultra: bool  # Blackwell Ultra: twice the rate of exponentials, which attention waits for


def _gpu(
    bf16: float,
    memory: float,
    watts: int,
    *,
    network: float = 50e9,
    blackwell: bool = True,
    grace: bool = False,
    ultra: bool = False,
) -> Gpu:
    """Return a sheet from what differs. `bf16` is in TFLOP/s, `memory` in TB/s."""
    return Gpu(
        bf16=bf16 * 1e12,
        fp8=2 * bf16 * 1e12,
        memory=memory * 1e12,
        nvlink=900e9 if blackwell else 450e9,
        network=network,
        host=300e9 if grace else 50e9,
        watts=watts,
        domain=72 if grace else 8,
        blackwell=blackwell,
        grace=grace,
        ultra=ultra,
    )


# B300 and GB300 come with 800 Gb/s adapters, the others with 400 Gb/s.
GPUS = {
    "H100": _gpu(989.5, 3.35, 700, blackwell=False),
    "H200": _gpu(989.5, 4.8, 700, blackwell=False),
    "B200": _gpu(2250, 8.0, 1000),
    "B300": _gpu(2250, 8.0, 1100, network=100e9, ultra=True),
    "GB200": _gpu(2450, 8.0, 1200, grace=True),
    "GB300": _gpu(2500, 8.0, 1400, network=100e9, grace=True, ultra=True),
}
