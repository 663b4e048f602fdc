"""The GPUs that the launcher knows: one table for everything that asks about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    memory: float  # GiB that CUDA reports
    capability: tuple[int, int]  # CUDA's compute capability
    tasks_per_node: int  # GPUs a node
    nvlink_domain: int  # GPUs that NVLink connects


# Sold with 80, 141, 180, 186 and 288 GB. GB200: 0.7 below the 185.0 of nvidia-smi, as on a B200.
# B300, GB300 and VR200: 288·10^9 bytes.
GPUS: Mapping[str, Gpu] = {
    "H100": Gpu(79.1, (9, 0), tasks_per_node=8, nvlink_domain=8),
    "H200": Gpu(139.8, (9, 0), tasks_per_node=8, nvlink_domain=8),
    "B200": Gpu(178.3, (10, 0), tasks_per_node=8, nvlink_domain=8),
    "B300": Gpu(268.2, (10, 3), tasks_per_node=8, nvlink_domain=8),
    "GB200": Gpu(184.3, (10, 0), tasks_per_node=4, nvlink_domain=72),
    "GB300": Gpu(268.2, (10, 3), tasks_per_node=4, nvlink_domain=72),
    # Vera Rubin NVL72. Its capability is not in a stored source: rules ask for 10.0 or above.
    "VR200": Gpu(268.2, (10, 3), tasks_per_node=4, nvlink_domain=72),
}
