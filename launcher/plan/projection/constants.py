"""The constants of the projection: fitted values, from constants.json."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from launcher.config.gpus import KNOWN, Known
from launcher.records import dataclass

DATA = Path(__file__).parent / "constants.json"
# The GPUs that the constants were fitted to. Of GB200 the data sheet says 2,500 TFLOPS: with 2,450
# the projection is closer to what was measured.
GPUS: Mapping[str, Known] = {
    **KNOWN,
    "GB200": dataclasses.replace(KNOWN["GB200"], bf16=2450e12, fp8=4900e12),
}


@dataclass(frozen=True)
class Constants:
    """The constants, which are the same for every job; constants.json explains each one."""

    e_bf16_hopper: float
    e_bf16_blackwell: float
    e_fp8_hopper: float
    e_fp8_blackwell: float
    e_attention_hopper: float
    e_attention_blackwell: float
    ultra: float
    power: float
    depth: float
    b_memory: float
    b_weights: float
    kernel: float
    op_x86: float
    op_grace: float
    fp8_ops: float
    expert_ops: float
    router_ops: float
    unbound: float
    sync: float
    overlap_ops: float
    hidden: float
    e_nvlink: float
    e_network: float
    e_alltoall: float
    e_deepep: float
    e_tensor: float
    quantize: float
    fused: float
    imbalance: float
    data_window: float
    jitter: float
    age: float


NAMES = tuple(field.name for field in dataclasses.fields(Constants))


def described() -> Mapping[str, Mapping[str, float | str]]:
    """Return every constant's value, prior, standard deviations of their logarithms, source."""
    return json.loads(DATA.read_text(encoding="utf-8"))


@functools.cache
def fitted() -> Constants:
    """Return the fitted constants."""
    found = described()
    return Constants(**{name: float(found[name]["value"]) for name in NAMES})
