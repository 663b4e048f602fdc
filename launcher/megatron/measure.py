"""Measure what a GPU sustains: products, attention, copies, the start of kernels, all-to-all.

    python launcher/megatron/measure.py [--seconds 20]
    torchrun --nproc-per-node 8 launcher/megatron/measure.py      all-to-all too

Needs torch alone. Prints one JSON object: FLOP/s, bytes/s and seconds. On a machine without a GPU
it measures the CPU, with small sizes, which tells no more than that the program runs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Callable

import torch
from torch.nn import functional

SIZE = {"cuda": 8192, "cpu": 256}  # rows and columns of a product
TOKENS = {"cuda": 4096, "cpu": 128}  # of an attention
BYTES = {"cuda": 2**30, "cpu": 2**22}  # of a copy, and of an exchange
STARTS = 1000  # operations whose start is timed


def main() -> None:
    """Measure everything for about the seconds asked for, and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    each = chosen.seconds / 6
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "bf16": product(device, each),
        "fp8": eight(device, each),
        "attention": attention(device, each),
        "memory": copy(device, each),
        "operation": start(device),
    }
    if ranks > 1:
        found["all_to_all"] = exchange(device, ranks, each)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found))


def sustained(work: Callable[[], object], device: str, seconds: float) -> float:
    """Return the seconds of one run of `work`, repeated until clocks and heat have settled."""
    work()
    wait(device)
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < seconds / 2:  # warm, uncounted
        work()
        wait(device)
    began = time.perf_counter()
    while not times or time.perf_counter() - began < seconds / 2:
        for _ in range(4):
            work()
        times += 4
        wait(device)
    return (time.perf_counter() - began) / times


def wait(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def product(device: str, seconds: float) -> float:
    """Return FLOP/s of a square product in BF16."""
    size = SIZE[device]
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / sustained(lambda: one @ other, device, seconds)


def eight(device: str, seconds: float) -> float | None:
    """Return FLOP/s of a square product in FP8; None where the GPU has none."""
    if device != "cuda" or torch.cuda.get_device_capability() < (8, 9):
        return None
    size = SIZE[device]
    one, other = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device=device)

    def work() -> torch.Tensor:
        return torch._scaled_mm(one, other.t(), scale, scale, out_dtype=torch.bfloat16)

    return 2 * size**3 / sustained(work, device, seconds)


def attention(device: str, seconds: float) -> float:
    """Return FLOP/s of causal attention, forward, heads of 128; half of the square counts."""
    tokens, heads, width = TOKENS[device], 32, 128
    q, k, v = (
        torch.randn(1, heads, tokens, width, device=device, dtype=torch.bfloat16) for _ in range(3)
    )
    operations = 2 * heads * tokens * tokens * width

    def work() -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return operations / sustained(work, device, seconds)


def copy(device: str, seconds: float) -> float:
    """Return bytes/s, read and written, of an element-wise kernel."""
    size = BYTES[device] // 2
    one = torch.zeros(size, device=device, dtype=torch.bfloat16)
    other = torch.empty_like(one)
    return 2 * BYTES[device] / sustained(lambda: torch.add(one, 1, out=other), device, seconds)


def start(device: str) -> float:
    """Return the CPU's seconds for one small operation, with what autograd adds."""
    one = torch.zeros(16, device=device, requires_grad=True)
    there = one
    for _ in range(STARTS // 10):
        there = there + 1
    wait(device)
    began = time.perf_counter()
    there = one
    for _ in range(STARTS):
        there = there + 1
    issued = time.perf_counter() - began
    wait(device)
    return issued / STARTS


def exchange(device: str, ranks: int, seconds: float) -> float:
    """Return bytes/s that leave a rank in an all-to-all."""
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    size = BYTES[device] // 2 // ranks * ranks
    one = torch.zeros(size, device=device, dtype=torch.bfloat16)
    other = torch.empty_like(one)

    def work() -> None:
        if device == "cuda":
            torch.distributed.all_to_all_single(other, one)
        else:  # Gloo has no all-to-all
            torch.distributed.all_reduce(one)

    # Every rank has to run as often as the others.
    work()
    wait(device)
    times = 10
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    taken = (time.perf_counter() - began) / times
    torch.distributed.destroy_process_group()
    return 2 * size * (ranks - 1) / ranks / taken


if __name__ == "__main__":
    main()
