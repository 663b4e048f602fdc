"""The Megatron side of a conversion: the launcher's arguments of the same job."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.config.arguments import Arguments, parse
from launcher.config.parallelism import tensor_expert
from launcher.convert import names
from launcher.convert.names import Naming
from launcher.errors import UsageError
from launcher.plan import shape, stages
from launcher.plan.shape import Shape
from launcher.plan.stages import Stage

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Description:
    """A training job, as far as its checkpoint depends on it."""

    shape: Shape
    stages: tuple[Stage, ...]
    naming: Naming
    dtype: torch.dtype  # of the parameters
    arguments: Arguments
    release: str

    @property
    def tensor_expert(self) -> list[tuple[int, int, int]]:
        """The (tensor, expert, expert tensor) ranks that occur together in a pipeline stage."""
        parallel = self.shape.parallel
        return tensor_expert(parallel.tensor, parallel.expert, parallel.expert_tensor)


def from_launcher(words: Sequence[str], environ: Mapping[str, str]) -> Description:
    """Resolve MODEL, TP, PP, … and Megatron arguments as the launcher does. Raises UsageError."""
    launched = subprocess.run(
        ["bash", str(ROOT / "sbatch_benchmarking.sh"), *words],
        env={**environ, "LAUNCHER_COMMAND": "argv"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if launched.returncode:
        lines = launched.stderr.strip().splitlines() or ["the launcher failed without a word"]
        raise UsageError(lines[-1].removeprefix("error: "))
    found = json.loads(launched.stdout)
    return from_arguments(
        parse(found["argv"], "the launcher"), found["world_size"], found["release"]
    )


def from_arguments(arguments: Arguments, world_size: int, release: str) -> Description:
    """Return the job that arguments describe. Raises UsageError for an impossible split."""
    try:
        described = shape.read(arguments, world_size)
        split = stages.split(described)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _check(described, arguments, release)
    return Description(
        described,
        split,
        names.naming(arguments, release),
        torch.bfloat16
        if "--bf16" in arguments
        else torch.float16
        if "--fp16" in arguments
        else torch.float32,
        arguments,
        release,
    )


_UNSUPPORTED = ("--moe-latent-size", "--mtp-use-repeated-layer", "--mla-down-proj-fusion")


def _check(described: Shape, arguments: Arguments, release: str) -> None:
    """Raise UsageError for an uneven split, and for parts that no table describes."""
    model, parallel = described.model, described.parallel
    for flag in _UNSUPPORTED:
        if flag in arguments:
            raise UsageError(f"{flag} is not supported by the conversion")
    if not model.gated or model.norm_bias or model.positions:
        raise UsageError(
            "the conversion knows models with a gated feed-forward network (--swiglu), "
            "--normalization RMSNorm and rotary positions"
        )
    if model.linear_bias and parallel.expert_tensor > 1:
        raise UsageError(
            f"ETP={parallel.expert_tensor}: Megatron does not split experts that have biases; "
            "set --expert-tensor-parallel-size 1"
        )
    tensor = {
        "the padded vocabulary": model.vocabulary,
        "--num-attention-heads": model.attention.heads,
        "--hidden-size": model.hidden,
    }
    if not model.attention.latent:
        tensor["--num-query-groups"] = model.attention.query_groups
    if not all(model.moe):
        tensor["--ffn-hidden-size"] = model.ffn
    if model.linear_attention:
        tensor["--linear-num-key-heads"] = model.linear_attention.key_heads
        tensor["--linear-num-value-heads"] = model.linear_attention.value_heads
    if model.experts and model.experts.shared_ffn:
        tensor["--moe-shared-expert-intermediate-size"] = model.experts.shared_ffn
    splits = [("TP", parallel.tensor, name, size) for name, size in tensor.items()]
    if model.experts:
        splits += [
            ("EP", parallel.expert, "--num-experts", model.experts.count),
            ("ETP", parallel.expert_tensor, "--moe-ffn-hidden-size", model.experts.ffn),
        ]
    for axis, ranks, name, size in splits:
        if size % ranks:
            raise UsageError(f"{axis}={ranks} does not divide {name} {size}")
    if model.indexer and release in ("0.15", "0.16", "0.17", "0.18"):
        raise UsageError(
            f"Megatron-Core {release} rotates the queries and keys of the sparse attention's "
            "indexer wrongly, so it would choose other keys than the published model. Convert "
            "for, and train with, MCORE_RELEASE_VERSION=0.19 or dev"
        )
    attention = model.attention
    if release == "0.19" and attention.latent and attention.q_rank is None and attention.qk_norm:
        raise UsageError(
            "Megatron-Core 0.19 normalises the input of uncompressed queries once more, which the "
            "published model does not: no copy of its weights is the same model. Convert for, and "
            "train with, MCORE_RELEASE_VERSION=0.18 or dev"
        )
