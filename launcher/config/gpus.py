"""The GPUs that the launcher knows: one table for everything that asks about them.

Sources: NVIDIA's data sheets of H100 SXM, H200 SXM, HGX B200 and B300, GB200 NVL72 and GB300 NVL72
(the rack's figures over its 72 GPUs); figures with sparsity halved. Hopper's peaks have one digit
more in NVIDIA's paper on its architecture.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.records import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    memory: float  # GiB that CUDA reports
    capability: tuple[int, int]  # CUDA's compute capability
    tasks_per_node: int  # GPUs a node
    nvlink_domain: int  # GPUs that NVLink connects


@dataclass(frozen=True)
class Known(Gpu):
    """A GPU with its data sheet: dense peaks in FLOP/s, rates in bytes/s and one direction."""

    bf16: float
    fp8: float
    fp4: float | None  # None: it computes no FP4
    hbm: float
    nvlink: float
    network: float  # of its network adapter
    host: float  # between GPU memory and CPU memory
    watts: int  # what it may draw

    @property
    def blackwell(self) -> bool:
        """Whether it is a Blackwell, else a Hopper."""
        return self.capability[0] == 10

    @property
    def ultra(self) -> bool:
        """Whether it is a Blackwell Ultra: twice the exponentials, which attention waits for."""
        return self.capability == (10, 3)

    @property
    def grace(self) -> bool:
        """Whether its CPU is an Arm Grace, in a rack of 72 GPUs; else x86."""
        return self.nvlink_domain == 72


# Sold with 80, 141, 180, 186 and 288 GB. GB200: 0.7 below the 185.0 of nvidia-smi, as on a B200.
# B300, GB300 and VR200: 288·10^9 bytes.
# B300 and GB300 come with 800 Gb/s adapters, the others with 400 Gb/s.
GPUS: Mapping[str, Gpu] = {
    "H100": Known(
        79.1, (9, 0), tasks_per_node=8, nvlink_domain=8, bf16=989.4e12, fp8=1978.9e12, fp4=None,
        hbm=3.35e12, nvlink=450e9, network=50e9, host=50e9, watts=700,
    ),
    "H200": Known(
        139.8, (9, 0), tasks_per_node=8, nvlink_domain=8, bf16=989.4e12, fp8=1978.9e12, fp4=None,
        hbm=4.8e12, nvlink=450e9, network=50e9, host=50e9, watts=700,
    ),
    "B200": Known(
        178.3, (10, 0), tasks_per_node=8, nvlink_domain=8, bf16=2250e12, fp8=4500e12, fp4=9000e12,
        hbm=8e12, nvlink=900e9, network=50e9, host=50e9, watts=1000,
    ),
    "B300": Known(
        268.2, (10, 3), tasks_per_node=8, nvlink_domain=8, bf16=2250e12, fp8=4500e12, fp4=13500e12,
        hbm=8e12, nvlink=900e9, network=100e9, host=50e9, watts=1100,
    ),
    "GB200": Known(
        184.3, (10, 0), tasks_per_node=4, nvlink_domain=72, bf16=2500e12, fp8=5000e12,
        fp4=10000e12, hbm=8e12, nvlink=900e9, network=50e9, host=300e9, watts=1200,
    ),
    "GB300": Known(
        268.2, (10, 3), tasks_per_node=4, nvlink_domain=72, bf16=2500e12, fp8=5000e12,
        fp4=15000e12, hbm=8e12, nvlink=900e9, network=100e9, host=300e9, watts=1400,
    ),
    # Vera Rubin NVL72. Its capability is not in a stored source: rules ask for 10.0 or above.
    "VR200": Gpu(268.2, (10, 3), tasks_per_node=4, nvlink_domain=72),
}  # fmt: skip
KNOWN: Mapping[str, Known] = {name: gpu for name, gpu in GPUS.items() if isinstance(gpu, Known)}
