"""Tiny published models of random weights, and conversions of them in this process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from launcher.convert import audit, description, encodings, hugging_face, tables
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
# config.json's names for the same.
_CONFIG = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}
_GROUPED_CONFIG = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 1e6,
    "num_experts": 8,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
_DELTA_NET_CONFIG = {
    "rope_theta": 1e7,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 32,
}
_LATENT_CONFIG = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def _yarn(mscale: float) -> dict:
    scale = {"mscale": mscale, "mscale_all_dim": mscale}
    return {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        **scale,
    }


_V2_CONFIG = {
    **_LATENT_CONFIG,
    "rope_scaling": _yarn(0.707),
    "topk_method": "group_limited_greedy",
    "n_group": 8,
    "topk_group": 3,
    "routed_scaling_factor": 16.0,
}


@dataclass(frozen=True)
class Family:
    """An architecture's tiny model: its table, the model it is shrunk from, and its sizes."""

    table: str
    model: str
    sizes: dict
    release: str = "0.19"
    mtp: int = 0
    config: dict = field(default_factory=dict)  # of config.json, beside what all have


FAMILIES = {
    "mixtral": Family(
        "mixtral",
        "Mixtral-8x7B",
        {**_GROUPED, "--moe-router-topk": 2},
        config={
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen2": Family(
        "qwen2-moe",
        "Qwen2-57B-A14B",
        {**_GROUPED, "--moe-shared-expert-intermediate-size": 48},
        config={
            **_GROUPED_CONFIG,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
        },
    ),
    "qwen3": Family("qwen3-moe", "Qwen3-30B-A3B", _GROUPED, config=_GROUPED_CONFIG),
    "qwen3-next": Family(
        "qwen3-next",
        "Qwen3-Next-80B-A3B",
        {**_GROUPED, **_DELTA_NET, "--moe-shared-expert-intermediate-size": 32},
        mtp=1,
        config={**_GROUPED_CONFIG, **_DELTA_NET_CONFIG},
    ),
    "deepseek-v2": Family(
        "deepseek-v2", "DeepSeek-V2", {**_LATENT, "--q-lora-rank": 32}, config=_V2_CONFIG
    ),
    "deepseek-v2-lite": Family(
        "deepseek-v2",
        "DeepSeek-V2-Lite",
        _LATENT,
        release="0.18",
        config={
            **_V2_CONFIG,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "routed_scaling_factor": 1.0,
        },
    ),
    "deepseek-v3": Family(
        "deepseek-v3",
        "DeepSeek-V3",
        {**_LATENT, "--q-lora-rank": 32},
        mtp=1,
        config={
            **_LATENT_CONFIG,
            "rope_scaling": _yarn(1.0),
            "num_nextn_predict_layers": 1,
            "quantization_config": {},
        },
    ),
    "gpt-oss": Family(
        "gpt-oss",
        "../../tests/convert/models/gpt-oss-20b",
        {**_GROUPED, "--moe-ffn-hidden-size": 96, "--window-size": "15,0"},
        config={
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-5,
            "sliding_window": 16,
        },
    ),
}


def yaml(folder: Path, family: Family) -> Path:
    """Write a family's tiny model as the launcher reads it."""
    path = folder / f"tiny-{Path(family.model).name}.yaml"
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
    if table.alternating:
        tensors = _stacked(tensors, table)
    listed = list(tensors)
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = listed[number::shards]
        write_shard(folder / file, {name: tensors[name] for name in part})
        index.update(dict.fromkeys(part, file))
    (folder / hugging_face.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "tokenizer.json").write_text("{}")
    config = {"model_type": table.model_types[0], **_CONFIG, **family.config}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def _stacked(tensors: dict[str, torch.Tensor], table: tables.Table) -> dict[str, torch.Tensor]:
    """Put the experts' parts into the stacks in which their architecture is published."""
    made: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        stack = encodings.Experts(table).stack_of(name, ())
        made.setdefault(stack or name, []).append(tensor.t() if stack else tensor)
    return {name: torch.stack(each) if each[1:] else each[0] for name, each in made.items()}


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
    table = next(
        one for one in tables.TABLES.values() if source.config["model_type"] in one.model_types
    )
    plain = encodings.decoded(source, table)
    return {name: plain.read(name) for name in plain.tensors}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Say whether two models have the same tensors, dtypes and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and torch.equal(tensor.contiguous().view(torch.uint8), other[name].view(torch.uint8))
        for name, tensor in one.items()
    )
