"""Run directories as the launcher leaves them, with a log of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import yaml

from tests.report.test_training_log import line

BEGIN = datetime(2026, 9, 1, tzinfo=timezone.utc)
# Qwen3-30B-A3B as Megatron-Bridge's verified card runs it on 16 H100.
QWEN: Mapping[str, object] = {
    "--num-layers": 48, "--hidden-size": 2048, "--ffn-hidden-size": 6144, "--swiglu": True,
    "--num-attention-heads": 32, "--group-query-attention": True, "--num-query-groups": 4,
    "--kv-channels": 128, "--qk-layernorm": True, "--disable-bias-linear": True,
    "--normalization": "RMSNorm", "--position-embedding-type": "rope",
    "--untie-embeddings-and-output-weights": True, "--vocab-size": 151936,
    "--num-experts": 128, "--moe-router-topk": 8, "--moe-ffn-hidden-size": 768,
    "--moe-grouped-gemm": True, "--moe-permute-fusion": True, "--moe-router-fusion": True,
    "--moe-token-dispatcher-type": "flex", "--moe-flex-dispatcher-backend": "hybridep",
    "--moe-router-force-load-balancing": True, "--overlap-moe-expert-parallel-comm": True,
    "--overlap-grad-reduce": True, "--overlap-param-gather": True,
    "--seq-length": 4096, "--micro-batch-size": 1, "--global-batch-size": 1024, "--bf16": True,
    "--expert-model-parallel-size": 16, "--use-distributed-optimizer": True,
}  # fmt: skip


def make(
    path: Path,
    log: str,
    changed: Mapping[str, object] | None = None,
    gpus: int = 16,
    **plan: object,
) -> Path:
    """Write a run directory of Qwen3-30B-A3B; None in `changed` takes a flag away."""
    path.mkdir()
    flags = {**QWEN, **(changed or {})}
    arguments = {
        flag: {"values": [] if value is True else str(value).split(), "origin": "test"}
        for flag, value in flags.items()
        if value is not None
    }
    (path / "arguments.yaml").write_text(yaml.safe_dump({"arguments": arguments}))
    settings = {"MODEL": {"value": "Qwen3-30B-A3B", "origin": "test"}}
    (path / "environment.yaml").write_text(yaml.safe_dump({"settings": settings}))
    made = {
        "model": "Qwen3-30B-A3B", "nodes": gpus // 8, "tasks_per_node": 8, "gpu": {"name": "H100"},
        **plan,
    }  # fmt: skip
    (path / "plan.json").write_text(json.dumps(made))
    (path / "log").write_text(log)
    return path


def steady_log(seconds: float, count: int = 30, batch: int = 1024) -> str:
    """Return a log of steps of one length, the first one slow, with times."""
    now, text = BEGIN, "[before the start of training step] datetime: 2026-09-01 00:00:00 \n"
    for number in range(1, count + 1):
        took = 60.0 if number == 1 else seconds
        now += timedelta(seconds=took)
        text += line(number, count, seconds=took, at=f" [{now:%Y-%m-%d %H:%M:%S.%f}]").replace(
            "global batch size:    64", f"global batch size: {batch:5d}"
        )
    return text
