"""The meaning of each key of a published config.json for a conversion, by model type.

Every key of a model type is in one of three lists:

compared    held against the job's arguments by a rule of configuration.py. The value here is the
            default of transformers' configuration class, which counts where the key is absent.
            A key that no such class has stands for what the class computes in any case.
only        not supported, but for these values; the first is the default.
ignored     no influence on what the model computes from its weights.

Sources: transformers 5.24.0, models/*/configuration_*.py and modeling_*.py, for every class; the
config.json of the published models, for the keys of their own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Only = Mapping[str, tuple[object, ...]]


@dataclass(frozen=True)
class Keys:
    """The three lists of a model type."""

    compared: Mapping[str, object]
    only: Only
    ignored: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names of compared keys
    positions: frozenset[str] = frozenset()  # keys of rope_parameters without influence on text


# Of transformers' PretrainedConfig, its earlier versions' included: files, outputs, generation.
# fmt: off
_GENERAL = frozenset(
    {
        "_name_or_path", "_attn_implementation", "_experts_implementation", "architectures",
        "attn_implementation", "auto_map", "chunk_size_feed_forward", "dtype", "torch_dtype",
        "id2label", "label2id", "model_type", "output_attentions", "output_hidden_states",
        "problem_type", "return_dict", "torchscript", "transformers_version", "use_bfloat16",
        "use_cache", "finetuning_task", "task_specific_params", "tokenizer_class", "bos_token_id",
        "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix",
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample",
        "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
        "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length",
        "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
        "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
        "return_dict_in_generate", "suppress_tokens", "temperature", "tf_legacy_loss", "top_k",
        "top_p", "typical_p", "cross_attention_hidden_size", "unsloth_fixed", "unsloth_version",
        "quantization_config", "compression_config",
    }
)
# Of training, or of the context that was tried.
_TRAINING = frozenset(
    {
        "attention_dropout", "aux_loss_alpha", "ep_size", "hidden_dropout", "initializer_range",
        "max_position_embeddings", "num_nextn_predict_layers", "num_mtp_layers",
        "output_router_logits", "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise",
        "seq_aux",
    }
)
# fmt: on
_IGNORED = _GENERAL | _TRAINING
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "mlp_bias": (False,),
}
_COMPARED: dict[str, object] = {
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scoring_func": "softmax",
    "routed_scaling_factor": 1.0,
    "n_group": 1,
}
_ROUTER_ALIASES = {"num_local_experts": "num_experts", "n_routed_experts": "num_experts"}


def _qwen(**others: object) -> dict[str, object]:
    return {
        **_COMPARED,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "rms_norm_eps": 1e-6,
        "partial_rotary_factor": 1.0,
        "decoder_sparse_step": 1,
        "mlp_only_layers": (),
        **others,
    }


_NO_BIAS: Only = {**_ONLY, "attention_bias": (False,), "qkv_bias": (False,)}
_DEEPSEEK: Only = {**_ONLY, "attention_bias": (False,), "rope_interleave": (True,)}
_DERIVED = frozenset({"head_dim", "qk_head_dim"})  # transformers sets them from others
_LATENT: dict[str, object] = {
    **_COMPARED,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
}
_LATENT_ALIASES = {"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"}

_DEEPSEEK_V3 = Keys(
    {
        **_LATENT,
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "first_k_dense_replace": 3,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
    },
    {**_DEEPSEEK, "topk_method": ("noaux_tc",)},
    _IGNORED | _DERIVED,
    _LATENT_ALIASES,
)


def _sparse(interleaved: bool, **others: object) -> Keys:
    """Return the keys of DeepSeek-V3's architecture with sparse attention.

    `interleaved` is the order in which the indexer rotates its queries and keys.
    """
    more = {
        "index_topk": 2048,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_k_norm_eps": 1e-6,
        "layer_types": None,
        "mlp_layer_types": None,
        **others,
    }
    # Its layers may share the choice of keys, which is not converted: then some have no indexer.
    shared = {"index_topk_freq": (1,), "index_topk_pattern": (None,)}
    order = {"indexer_rope_interleave": (interleaved,)}
    return Keys(
        {**_DEEPSEEK_V3.compared, **more},
        {**_DEEPSEEK_V3.only, **shared, **order},
        _DEEPSEEK_V3.ignored | {"index_skip_topk_offset", "index_share_for_mtp_iteration"},
        _LATENT_ALIASES,
    )


KEYS: dict[str, Keys] = {
    "mixtral": Keys(
        {
            **_COMPARED,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 1.0,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        {**_NO_BIAS, "sliding_window": (None,)},
        _IGNORED,
        {"num_experts": "num_local_experts"},
    ),
    "qwen2_moe": Keys(
        _qwen(
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=None,
            intermediate_size=5632,
            num_experts=60,
            num_experts_per_tok=4,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            norm_topk_prob=False,
            qkv_bias=True,
            layer_types=None,
        ),
        {**_ONLY, "use_sliding_window": (False,)},
        _IGNORED | {"sliding_window", "max_window_layers"},
        _ROUTER_ALIASES,
    ),
    "qwen3_moe": Keys(
        _qwen(
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=None,
            intermediate_size=6144,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            shared_expert_intermediate_size=0,
            norm_topk_prob=False,
            layer_types=None,
        ),
        {**_NO_BIAS, "use_sliding_window": (False,), "use_qk_norm": (True,)},
        _IGNORED | {"sliding_window", "max_window_layers"},
        _ROUTER_ALIASES,
    ),
    "qwen3_next": Keys(
        _qwen(
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=256,
            intermediate_size=5632,
            partial_rotary_factor=0.25,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            norm_topk_prob=True,
            layer_types=None,
            full_attention_interval=4,
            linear_conv_kernel_dim=4,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
        ),
        {**_NO_BIAS, "use_sliding_window": (False,)},
        _IGNORED | {"sliding_window", "max_window_layers"},
        _ROUTER_ALIASES,
    ),
    "qwen3_5_moe_text": Keys(
        {
            **{
                k: v
                for k, v in _qwen().items()
                if k not in ("decoder_sparse_step", "mlp_only_layers")
            },
            "vocab_size": 248320,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "partial_rotary_factor": 0.25,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "norm_topk_prob": True,
            "layer_types": None,
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
        },
        {
            **_NO_BIAS,
            "attn_output_gate": (True,),
            "mamba_ssm_dtype": ("float32",),
            "mlp_only_layers": ([], ()),
        },
        _IGNORED | {"intermediate_size", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"},
        _ROUTER_ALIASES,
        frozenset({"mrope_section", "mrope_interleaved"}),
    ),
    "deepseek_v2": Keys(
        {
            **_LATENT,
            "vocab_size": 102400,
            "n_group": None,
            "topk_group": None,
            "topk_method": "greedy",
            "norm_topk_prob": False,
        },
        _DEEPSEEK,
        _IGNORED | _DERIVED,
        _LATENT_ALIASES,
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _sparse(False),
    "glm_moe_dsa": _sparse(
        True,
        vocab_size=154880,
        hidden_size=6144,
        intermediate_size=12288,
        num_hidden_layers=78,
        num_attention_heads=64,
        num_key_value_heads=64,
        q_lora_rank=2048,
        v_head_dim=256,
        qk_nope_head_dim=192,
        n_group=1,
        topk_group=1,
        rms_norm_eps=1e-5,
        index_n_heads=32,
        indexer_types=None,
    ),
    "glm4_moe": Keys(
        {
            **_COMPARED,
            "vocab_size": 151552,
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": None,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "attention_bias": False,
            "use_qk_norm": False,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1408,
            "topk_group": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
        },
        {**_ONLY, "topk_method": ("noaux_tc",)},
        _IGNORED,
        _LATENT_ALIASES,
    ),
    "kimi_k2": _DEEPSEEK_V3,  # its own code is DeepSeek-V3's
    "gpt_oss": Keys(
        {
            **_COMPARED,
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 1.0,
            "rope_theta": 150000.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "layer_types": None,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
        },
        {**_ONLY, "attention_bias": (True,), "swiglu_alpha": (1.702,)},
        # initial_context_length is for its own code; original_max_position_embeddings counts.
        _IGNORED | {"initial_context_length"},
        {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
    ),
}
