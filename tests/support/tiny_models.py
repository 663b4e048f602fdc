"""Tiny models of every family, made with transformers' own classes, and their Megatron twins.

Each has a few layers with everything that its family has, and random values in every tensor, so
that none is 0 or 1 by accident and each is seen in the logits.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
FURTHER = "../../tests/convert/models"  # of models that model_configs does not describe
ZERO_CENTRED = ("qwen3_next", "qwen3_5_moe_text")
VOCABULARY = 250
PADDED_VOCABULARY = 256  # by Megatron, to a multiple of 64 or of 128 at TP2
LENGTH = 32

SHARED_CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SHARED_ARGUMENTS = {
    "--num-layers": 4,
    "--hidden-size": 64,
    "--ffn-hidden-size": 96,
    "--num-attention-heads": 4,
    "--num-experts": 8,
    "--moe-router-topk": 2,
    "--moe-ffn-hidden-size": 48,
    "--tokenizer-type": "NullTokenizer",
    "--tokenizer-model": False,
    "--vocab-size": VOCABULARY,
    "--make-vocab-size-divisible-by": 64,
    "--bf16": False,
    "--save": False,
    "--tensorboard-dir": False,
}
GROUPED_QUERY = {"num_key_value_heads": 2, "head_dim": 16}
GROUPED_QUERY_ARGUMENTS = {"--num-query-groups": 2, "--kv-channels": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
}
LATENT_ARGUMENTS = {
    "--q-lora-rank": 32,
    "--kv-lora-rank": 16,
    "--qk-head-dim": 16,
    "--qk-pos-emb-head-dim": 8,
    "--v-head-dim": 16,
    "--kv-channels": 16,
    "--moe-layer-freq": "([0]*1+[1]*3)",
}
GLM = {
    "num_key_value_heads": 2,
    "head_dim": 24,  # wider than hidden size / heads
    "attention_bias": True,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "num_nextn_predict_layers": 1,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
    },
}
GLM_ARGUMENTS = {
    "--num-query-groups": 2,
    "--kv-channels": 24,
    "--add-qkv-bias": True,
    "--rotary-percent": 0.5,
    "--max-position-embeddings": 256,
    "--norm-epsilon": 1e-5,
    "--moe-layer-freq": "([0]*1+[1]*3)",
    "--moe-router-topk": 3,
    "--moe-router-score-function": "sigmoid",
    "--moe-router-enable-expert-bias": True,
    "--moe-router-dtype": "fp32",
    "--moe-shared-expert-intermediate-size": 48,
}


# So many heads that no two tokens have the same score, which is 0 where no head likes them.
INDEXER = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 6}
INDEXER_ARGUMENTS = {
    "--dsa-indexer-n-heads": 16,
    "--dsa-indexer-head-dim": 16,
    "--dsa-indexer-topk": 6,
}
GPT_OSS = {
    "num_key_value_heads": 2,
    "head_dim": 24,  # times 4 heads: another width than the hidden size
    "intermediate_size": 96,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "sliding_window": 6,  # within the sequence
    "swiglu_limit": 0.9,  # in the range of the tiny experts' inputs
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
GPT_OSS_ARGUMENTS = {
    "--num-query-groups": 2,
    "--kv-channels": 24,
    "--moe-ffn-hidden-size": 96,
    "--moe-router-topk": 3,
    "--window-size": "5,0",
    "--activation-func-clamp-value": 0.9,
}


def yarn(theta: float, factor: float, mscale: float) -> dict[str, Any]:
    """DeepSeek's stretched positions, from 4096."""
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }


def plain(theta: float, **others: Any) -> dict[str, Any]:
    """Rotary positions as they are."""
    return {"rope_type": "default", "rope_theta": theta, **others}


@dataclass(frozen=True)
class Tiny:
    """A tiny model: transformers' class by its model_type, and the zoo's model that it is one of.

    `zoo` may be a path too, of a base model's YAML.
    """

    model_type: str
    zoo: str
    table: str  # the conversion's name for the architecture
    config: Mapping[str, Any]
    arguments: Mapping[str, Any]
    mtp: str = ""  # how the published checkpoints name the MTP layer: "" is none
    release: str = "0.19"  # of Megatron-Core that is converted for


MODELS = {
    "Mixtral": Tiny(
        "mixtral",
        "Mixtral-8x7B",
        "mixtral",
        {
            **GROUPED_QUERY,
            "intermediate_size": 48,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_parameters": plain(1e6),
            "sliding_window": None,
        },
        {**GROUPED_QUERY_ARGUMENTS, "--moe-ffn-hidden-size": False, "--ffn-hidden-size": 48},
    ),
    "Qwen2-MoE": Tiny(
        "qwen2_moe",
        "Qwen2-57B-A14B",
        "qwen2-moe",
        {
            "num_key_value_heads": 2,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "norm_topk_prob": False,
            "rms_norm_eps": 1e-6,
            "rope_parameters": plain(1e6),
        },
        {**GROUPED_QUERY_ARGUMENTS, "--moe-shared-expert-intermediate-size": 80},
    ),
    "Qwen3-MoE": Tiny(
        "qwen3_moe",
        "Qwen3-30B-A3B",
        "qwen3-moe",
        {
            "num_key_value_heads": 2,
            "head_dim": 24,  # Qwen3's heads are wider than hidden size / heads
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-6,
            "rope_parameters": plain(1e6),
        },
        {"--num-query-groups": 2, "--kv-channels": 24},
    ),
    "Qwen3-Next": Tiny(
        "qwen3_next",
        "Qwen3-Next-80B-A3B",
        "qwen3-next",
        {
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 40,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": plain(1e7, partial_rotary_factor=0.25),
        },
        {
            "--num-query-groups": 2,
            "--kv-channels": 32,
            "--linear-key-head-dim": 12,
            "--linear-value-head-dim": 16,
            "--linear-num-key-heads": 2,
            "--linear-num-value-heads": 4,
            "--moe-shared-expert-intermediate-size": 40,
        },
        mtp="mtp.",
    ),
    "DeepSeek-V2": Tiny(
        "deepseek_v2",
        "DeepSeek-V2",
        "deepseek-v2",
        {
            **LATENT,
            "n_shared_experts": 2,
            # Megatron scores a group by the sum of its best experts, of which there are
            # top-k / groups; here that is one, as in the published model whatever its top-k.
            "num_experts_per_tok": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 16.0,
            "rope_parameters": yarn(10000, 40, 0.707),
            "max_position_embeddings": 163840,
        },
        {
            **LATENT_ARGUMENTS,
            "--moe-shared-expert-intermediate-size": 96,
            "--moe-router-num-groups": 4,
            "--moe-router-group-topk": 2,
        },
    ),
    "DeepSeek-V2-Lite": Tiny(
        "deepseek_v2",
        "DeepSeek-V2-Lite",
        "deepseek-v2",
        {
            **LATENT,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "rope_parameters": yarn(10000, 40, 0.707),
            "max_position_embeddings": 163840,
        },
        {
            **LATENT_ARGUMENTS,
            "--q-lora-rank": False,
            "--moe-shared-expert-intermediate-size": 96,
        },
        release="0.18",  # 0.19 normalises the input of uncompressed queries once more
    ),
    "DeepSeek-V3": Tiny(
        "deepseek_v3",
        "DeepSeek-V3",
        "deepseek-v3",
        {
            **LATENT,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "rope_parameters": yarn(10000, 40, 1.0),
            "max_position_embeddings": 163840,
        },
        {
            **LATENT_ARGUMENTS,
            "--moe-router-topk": 4,
            "--moe-router-num-groups": 4,
            "--moe-router-group-topk": 2,
            "--moe-shared-expert-intermediate-size": 48,
        },
        mtp="model.layers.4.",
    ),
    "DeepSeek-V3 without YaRN": Tiny(
        "deepseek_v3",
        "DeepSeek-V3",
        "deepseek-v3",
        {
            **LATENT,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 0,
            "rope_parameters": plain(10000),
        },
        {
            **LATENT_ARGUMENTS,
            "--rope-type": "rope",
            "--rotary-scaling-factor": 1.0,  # Megatron sharpens attention by it in either case
            "--moe-router-topk": 4,
            "--moe-router-num-groups": 4,
            "--moe-router-group-topk": 2,
            "--moe-shared-expert-intermediate-size": 48,
        },
    ),
    "Kimi-K2": Tiny(
        "deepseek_v3",
        "Kimi-K2",
        "deepseek-v3",
        {
            **LATENT,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.827,
            "num_nextn_predict_layers": 0,
            # beta_fast 32 as Megatron has it; the published 1 is out of its flags' reach.
            "rope_parameters": yarn(50000, 32, 1.0),
            "max_position_embeddings": 131072,
        },
        {
            **LATENT_ARGUMENTS,
            "--moe-router-topk": 4,
            "--moe-shared-expert-intermediate-size": 48,
        },
    ),
    "Qwen3.5": Tiny(
        "qwen3_5_moe_text",
        "Qwen3-Next-80B-A3B",
        "qwen3-5-moe",
        {
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 40,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": plain(1e7, partial_rotary_factor=0.25),
        },
        {
            "--num-query-groups": 2,
            "--kv-channels": 32,
            "--linear-key-head-dim": 12,
            "--linear-value-head-dim": 16,
            "--linear-num-key-heads": 2,
            "--linear-num-value-heads": 4,
            "--moe-shared-expert-intermediate-size": 40,
        },
        mtp="mtp.",
    ),
    # DeepSeek-V3's architecture without query compression and without YaRN.
    "Moonlight": Tiny(
        "deepseek_v3",
        "base/deepseek-v3",
        "deepseek-v3",
        {
            # The published epsilon is 1e-5, but that of the norm of compressed keys and values is
            # 1e-6 in transformers' code, and Megatron has one for all. Here it is 1e-6.
            **LATENT,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.446,
            "num_nextn_predict_layers": 0,
            "rope_parameters": plain(50000),
        },
        {
            **LATENT_ARGUMENTS,
            "--q-lora-rank": False,
            "--rope-type": "rope",
            "--rotary-base": 50000,
            "--rotary-scaling-factor": 1.0,
            "--max-position-embeddings": 256,
            "--moe-router-topk": 3,
            "--moe-router-topk-scaling-factor": 2.446,
            "--moe-shared-expert-intermediate-size": 96,
        },
        release="0.18",  # as DeepSeek-V2-Lite
    ),
    "DeepSeek-V3.2": Tiny(
        "deepseek_v32",
        f"{FURTHER}/DeepSeek-V3.2",
        "deepseek-v3.2",
        {
            **LATENT,
            **INDEXER,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "rope_parameters": yarn(10000, 40, 1.0),
            "max_position_embeddings": 163840,
        },
        {
            **LATENT_ARGUMENTS,
            **INDEXER_ARGUMENTS,
            "--moe-router-topk": 4,
            "--moe-router-num-groups": 4,
            "--moe-router-group-topk": 2,
            "--moe-shared-expert-intermediate-size": 48,
        },
        mtp="model.layers.4.",
    ),
    "GLM-5": Tiny(
        "glm_moe_dsa",
        f"{FURTHER}/GLM-5",
        "glm-moe-dsa",
        {
            # The published epsilon is 1e-5; as for Moonlight.
            **LATENT,
            **INDEXER,
            "rms_norm_eps": 1e-6,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "rope_parameters": plain(1e6),
            "max_position_embeddings": 202752,
        },
        {
            **LATENT_ARGUMENTS,
            **INDEXER_ARGUMENTS,
            "--norm-epsilon": 1e-6,
            "--moe-router-topk": 4,
            "--moe-shared-expert-intermediate-size": 48,
        },
        mtp="model.layers.4.",
    ),
    # Air has no norms of queries and keys, the larger GLM-4.5 and GLM-4.6 have.
    "GLM-4.5-Air": Tiny("glm4_moe", "base/qwen", "glm4-moe", GLM, GLM_ARGUMENTS, "model.layers.4."),
    "GLM-4.6": Tiny(
        "glm4_moe",
        "base/qwen",
        "glm4-moe",
        {
            **GLM,
            "use_qk_norm": True,
            "first_k_dense_replace": 3,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 0,
        },
        {
            **GLM_ARGUMENTS,
            "--qk-layernorm": True,
            "--moe-layer-freq": "([0]*3+[1]*1)",
            "--moe-router-topk-scaling-factor": 2.5,
        },
    ),
    "gpt-oss": Tiny("gpt_oss", f"{FURTHER}/gpt-oss-20b", "gpt-oss", GPT_OSS, GPT_OSS_ARGUMENTS),
}


def yaml_name(name: str) -> str:
    """The file name of a tiny model's YAML; runtime.conf has no row for it."""
    return f"Tiny-{name.replace(' ', '-')}.yaml"


def write_yaml(name: str, folder: Path, **changes: Any) -> Path:
    """Write the launcher's YAML of a tiny model: the real model's, made small."""
    tiny = MODELS[name]
    arguments = {**SHARED_ARGUMENTS, **tiny.arguments, **changes}
    text = {
        "EXTENDS": str(ROOT / "model_configs" / "benchmarking" / f"{tiny.zoo}.yaml"),
        "MODEL_ARGS": {
            flag: value if isinstance(value, (bool, list)) else str(value)
            for flag, value in arguments.items()
        },
    }
    path = folder / yaml_name(name)
    path.write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
    return path


@torch.no_grad()
def fill(tensors: Mapping[str, torch.Tensor], seed: int, zero_centred: bool = False) -> None:
    """Give every tensor random values of a size that suits what it is.

    `zero_centred`: the weights of norms are distances from 1 (Qwen3-Next's, but for the one that is
    part of the gated delta net).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    for name, tensor in sorted(tensors.items()):
        if name.endswith("A_log"):
            # Slow decay. Where little is remembered, outputs nearly cancel before they are
            # normalised, and even transformers' fp32 is off its own fp64 by 7e-4.
            tensor.copy_(3 * torch.rand(tensor.shape, generator=generator) - 3)
        elif name.endswith("linear_attn.norm.weight"):  # not zero-centred, and Megatron's is
            tensor.copy_(2 * torch.rand(tensor.shape, generator=generator) + 0.2)
        elif tensor.dim() == 1 and "norm" in name.rsplit(".", 2)[-2]:
            tensor.copy_(0.6 * torch.rand(tensor.shape, generator=generator) + 0.7)
            if zero_centred:
                tensor.sub_(1)
        elif tensor.dim() == 1:  # biases, dt_bias, the router's e_score_correction_bias
            tensor.copy_(normal(tensor, 0.1))
        elif name.endswith("embed_tokens.weight"):
            tensor.copy_(normal(tensor, 0.5))
        else:
            inputs = tensor.shape[-1]
            tensor.copy_(normal(tensor, 1.2 * inputs**-0.5))


@dataclass(frozen=True, eq=False)
class Made:
    """A tiny model in transformers' own class, in fp32, and what its MTP layer has beyond a layer.

    transformers' classes leave MTP out. Here the model has one layer more than its configuration
    says, so that its own forward stops before the layer that is MTP's.
    """

    name: str
    model: Any
    mtp: dict[str, torch.Tensor]  # by Megatron's names: enorm, hnorm, eh_proj, final_layernorm

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers


def make(name: str) -> Made:
    """Make the tiny model with random values everywhere."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = MODELS[name]
    values = {**SHARED_CONFIG, **tiny.config}
    layers = values["num_hidden_layers"]
    if tiny.mtp:
        values["num_hidden_layers"] = layers + 1
    config = AutoConfig.for_model(tiny.model_type, **values)
    if tiny.model_type in ZERO_CENTRED:  # MTP's layer has full attention, like the last
        config.layer_types[layers:] = [config.layer_types[layers - 1]]
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    hidden = config.hidden_size
    mtp = {}
    if tiny.mtp:
        config.num_hidden_layers = layers
        for key in ("layer_types", "mlp_layer_types", "indexer_types"):
            if getattr(config, key, None):
                setattr(config, key, getattr(config, key)[:layers])
        mtp = {name: torch.empty(hidden) for name in ("enorm", "hnorm", "final_layernorm")}
        mtp["eh_proj"] = torch.empty(hidden, 2 * hidden)
    kept = model.state_dict()
    tensors = dict(model.named_parameters())
    tensors.update((key, value) for key, value in model.named_buffers() if key in kept)
    tensors.update((f"mtp.{key}.weight", value) for key, value in mtp.items())
    fill(tensors, seed=5, zero_centred=tiny.model_type in ZERO_CENTRED)
    return Made(name, model, mtp)


def published(made: Made, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All tensors by the names of the published checkpoints; biases of routers stay fp32."""
    with TemporaryDirectory() as folder:
        made.model.save_pretrained(folder)  # transformers writes experts one by one, as published
        tensors = load_file(Path(folder) / "model.safetensors")
    prefix = MODELS[made.name].mtp
    if prefix == "mtp.":
        own = f"model.layers.{made.layers}."
        tensors = {key.replace(own, "mtp.layers.0."): value for key, value in tensors.items()}
        names = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")
    else:
        names = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    if prefix:
        for theirs, ours in zip(names, ("enorm", "hnorm", "eh_proj", "final_layernorm")):
            tensors[f"{prefix}{theirs}.weight"] = made.mtp[ours]
    if prefix.startswith("model."):  # DeepSeek-V3's checkpoint repeats what MTP shares
        tensors[f"{prefix}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{prefix}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return {
        key: value if key.endswith("e_score_correction_bias") else value.to(dtype)
        for key, value in tensors.items()
    }


def save(
    made: Made,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None,
    shards: int = 3,
) -> Path:
    """Write a checkpoint as they are published: shards, their index and the configuration.

    `change` may alter the tensors before they are written.
    """
    tensors = published(made, dtype)
    change(tensors)
    config = copy.deepcopy(made.model.config)
    config.dtype = dtype
    folder.mkdir(parents=True)
    config.architectures = [type(made.model).__name__]
    config.save_pretrained(folder)
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        shard = {name: tensors[name].contiguous() for name in names[number::shards]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def tokens(sequences: int = 4) -> torch.Tensor:
    """The tokens that all logits are of: [sequences, LENGTH]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(VOCABULARY, (sequences, LENGTH), generator=generator)


@torch.no_grad()
def logits(made: Made) -> torch.Tensor:
    """transformers' logits: [sequences, LENGTH, VOCABULARY]."""
    return made.model(tokens()).logits


@torch.no_grad()
def mtp_logits(made: Made, ids: torch.Tensor | None = None) -> torch.Tensor:
    """The MTP layer's logits, from transformers' own modules; the last position has no next token.

    DeepSeek-V3 (arXiv:2412.19437, section 2.2): the embedding of the next token and the hidden state,
    each normalised, are joined and projected; a layer follows, then a norm of its own and the
    model's output layer. The hidden state is the one that the model's own output layer sees.
    """
    model, ids = made.model.model, tokens() if ids is None else ids
    norm = type(model.norm)

    def normalise(name: str, x: torch.Tensor) -> torch.Tensor:
        module = norm(x.shape[-1], eps=made.model.config.rms_norm_eps)
        module.weight.copy_(made.mtp[name])
        return module(x)

    hidden = model(ids).last_hidden_state[:, :-1]
    embedded = model.embed_tokens(ids[:, 1:])
    joined = torch.cat((normalise("enorm", embedded), normalise("hnorm", hidden)), dim=-1)
    x = joined @ made.mtp["eh_proj"].T
    length = x.shape[1]
    positions = torch.arange(length)[None]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    x = model.layers[made.layers](
        x,
        position_embeddings=model.rotary_emb(x, positions),
        attention_mask=mask,
        position_ids=positions,
    )
    x = x[0] if isinstance(x, tuple) else x
    return made.model.lm_head(normalise("final_layernorm", x))
