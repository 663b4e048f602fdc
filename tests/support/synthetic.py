"""Tiny published models of random weights, and conversions of them in this process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from launcher.convert import audit, description, hugging_face, tables
from launcher.convert.__main__ import main
from tests.support.launching import ROOT

_SIZES = {
    "--num-layers": 4,
    "--hidden-size": 64,
    "--ffn-hidden-size": 128,
    "--num-attention-heads": 4,
    "--num-experts": 8,
    "--moe-router-topk": 4,
    "--moe-ffn-hidden-size": 32,
    "--vocab-size": 500,
    "--make-vocab-size-divisible-by": 64,
    "--max-position-embeddings": 64,
}
_GROUPED = {"--num-query-groups": 2, "--kv-channels": 16}
_LATENT = {
    "--kv-lora-rank": 16,
    "--qk-head-dim": 16,
    "--qk-pos-emb-head-dim": 8,
    "--v-head-dim": 16,
    "--moe-layer-freq": "([0]+[1]*3)",
    "--moe-shared-expert-intermediate-size": 32,
}
_DELTA_NET = {
    "--linear-key-head-dim": 16,
    "--linear-value-head-dim": 16,
    "--linear-num-key-heads": 2,
    "--linear-num-value-heads": 4,
}


@dataclass(frozen=True)
class Family:
    """An architecture's tiny model: its table, the model it is shrunk from, and its sizes."""

    table: str
    model: str
    sizes: dict
    release: str = "0.19"
    mtp: int = 0


FAMILIES = {
    "mixtral": Family("mixtral", "Mixtral-8x7B", {**_GROUPED, "--moe-router-topk": 2}),
    "qwen2": Family(
        "qwen2-moe",
        "Qwen2-57B-A14B",
        {**_GROUPED, "--moe-shared-expert-intermediate-size": 48},
    ),
    "qwen3": Family("qwen3-moe", "Qwen3-30B-A3B", _GROUPED),
    "qwen3-next": Family(
        "qwen3-next",
        "Qwen3-Next-80B-A3B",
        {**_GROUPED, **_DELTA_NET, "--moe-shared-expert-intermediate-size": 32},
        mtp=1,
    ),
    "deepseek-v2": Family("deepseek-v2", "DeepSeek-V2", {**_LATENT, "--q-lora-rank": 32}),
    "deepseek-v2-lite": Family("deepseek-v2", "DeepSeek-V2-Lite", _LATENT, release="0.18"),
    "deepseek-v3": Family("deepseek-v3", "DeepSeek-V3", {**_LATENT, "--q-lora-rank": 32}, mtp=1),
}


def yaml(folder: Path, family: Family) -> Path:
    """Write a family's tiny model as the launcher reads it."""
    path = folder / f"tiny-{family.model}.yaml"
    sizes = "".join(f"  {flag}: {size}\n" for flag, size in {**_SIZES, **family.sizes}.items())
    parent = ROOT / "model_configs" / "benchmarking" / f"{family.model}.yaml"
    path.write_text(f"EXTENDS: {parent}\nMODEL_ARGS:\n{sizes}")
    return path


def environment(model: Path, family: Family, **variables: object) -> dict[str, str]:
    """The environment of a conversion, with nothing of this shell's but what a login has."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    sizes = dict.fromkeys(("TP", "PP", "EP", "VPP"), "1")
    given = {name: str(value) for name, value in variables.items()}
    release = {"MCORE_RELEASE_VERSION": family.release}
    return {**kept, **sizes, **release, "MODEL": str(model), "WORKERS": "2", **given}


def publish(folder: Path, family: Family, fp8: bool = False, shards: int = 2) -> Path:
    """Write random weights of a family's tiny model as they would be published; return where."""
    folder.mkdir()
    model = yaml(folder.parent, family)
    mtp = ["--mtp-num-layers", str(family.mtp)] if family.mtp else []
    described = description.from_launcher(mtp, environment(model, family))
    table = tables.TABLES[family.table]
    filled = audit.pair(table, described.shape.model, 500)
    twins = tables.twins(table, described.shape.model)
    names = audit.sources(filled, twins)
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in names.items():
        if name in twins:
            tensors[name] = tensors[twins[name]]
        elif fp8 and len(shape) == 2 and "proj" in name:
            tensors[name] = torch.randn(shape).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.rand([-(-size // 128) for size in shape]) / 100
        elif name.endswith("e_score_correction_bias"):
            tensors[name] = torch.randn(shape)
        else:
            tensors[name] = torch.randn(shape).to(torch.bfloat16)
    listed = list(tensors)
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = listed[number::shards]
        write_shard(folder / file, {name: tensors[name] for name in part})
        index.update(dict.fromkeys(part, file))
    (folder / hugging_face.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "tokenizer.json").write_text("{}")
    config = {
        "model_type": table.model_types[0],
        "vocab_size": 500,
        "hidden_size": 64,
        "num_hidden_layers": 4,
    }
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    return model


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file."""
    header = hugging_face.header([(n, t.dtype, t.shape) for n, t in tensors.items()])
    data = [t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors.values()]
    path.write_bytes(header + b"".join(data))


def convert(family: Family, environ: dict[str, str], *words: str) -> int:
    """Run a conversion in this process; return its exit status."""
    return main([family.table, *words], environ)


@cache
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read a published model, FP8 as bfloat16."""
    source = hugging_face.open_source(folder)
    return {
        name: source.read(name) for name in source.tensors if not name.endswith(hugging_face.SCALE)
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Say whether two models have the same tensors, dtypes and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and torch.equal(tensor.contiguous().view(torch.uint8), other[name].view(torch.uint8))
        for name, tensor in one.items()
    )
