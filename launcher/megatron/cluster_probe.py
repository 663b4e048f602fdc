"""What the job of `moe-zoo check-cluster` runs in each rank: it looks around and adds numbers up.

It needs torch alone. Rank 0 prints one line, MARK and a JSON object; so does a rank that fails.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import socket
import sys
import tempfile
import time
from typing import Any

MARK = "CLUSTER_PROBE"
REPEATS = 5
PACKAGES = ("transformer_engine", "deep_ep")


def main() -> int:
    """Look, add up over all ranks, tell; return the exit status."""
    own: dict[str, Any] = {
        "rank": int(os.environ["RANK"]),
        "local_rank": int(os.environ["LOCAL_RANK"]),
        "world": int(os.environ["WORLD_SIZE"]),
        "host": socket.gethostname(),
    }
    sys.path.insert(0, os.getcwd())  # MEGATRON_PATH, where the job has one
    try:
        import torch
        import torch.distributed as dist

        # A job for nodes without GPUs says so; there a stand-in takes the place of the device.
        gpus = 0 if "gloo" in sys.argv else torch.cuda.device_count()
        own["gpu"] = torch.cuda.get_device_name(own["local_rank"]) if gpus else None
        own["gpus"] = gpus
        if gpus:
            torch.cuda.set_device(own["local_rank"])
        dist.init_process_group("nccl" if gpus else "gloo")
        total, rate = _all_reduce(torch, dist, gpus > 0)
        every: list[Any] = [None] * own["world"]
        dist.all_gather_object(every, own)
        if own["rank"] == 0:
            told = {"ranks": every, "sum": total, "gigabytes_per_second": rate}
            told |= {"backend": dist.get_backend(), "versions": _versions(torch)}
            told["writable"] = _writable()
            _print(told)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        _print({"failed": f"{type(error).__name__}: {error}", **own})
        return 1
    return 0


def _all_reduce(torch: Any, dist: Any, on_gpu: bool) -> tuple[float, float]:
    """Return the sum of all ranks' numbers 1 to the world size, and the bus bandwidth in GB/s.

    Bus bandwidth: bytes × 2 (n - 1) / n over the time (nccl-tests, doc/PERFORMANCE.md).
    """
    device, world = ("cuda" if on_gpu else "cpu"), dist.get_world_size()
    one = torch.full((1,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(one)
    data = torch.ones((64 if on_gpu else 1) * 2**20, device=device)  # FP32
    dist.all_reduce(data)
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(data)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / REPEATS
    return one.item(), data.numel() * 4 * 2 * (world - 1) / world / seconds / 1e9


def _versions(torch: Any) -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    try:
        found["megatron-core"] = importlib.import_module("megatron.core").__version__
    except Exception as error:
        found["megatron-core"] = f"not usable: {type(error).__name__}: {error}"
    for package in PACKAGES:
        try:
            found[package.replace("_", "-")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _writable() -> bool:
    """Say whether this script's folder, the job's OUTPUT_PATH, can be written from here."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(__file__))):
            return True
    except OSError:
        return False


def _print(told: dict[str, Any]) -> None:
    print(f"{MARK} {json.dumps(told)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
