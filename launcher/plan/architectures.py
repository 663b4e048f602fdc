"""Known models, recognized by their dimensions, because a file may have any name."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.shape import Model


class Architecture(NamedTuple):
    """The dimensions that identify a model among those with published results."""

    layers: int
    hidden: int
    heads: int
    latent: bool  # multi-latent attention
    experts: int
    top_k: int
    expert_ffn: int
    shared_ffn: int


# By the name that published.csv has. Sources: model_configs/, and the published configurations.
KNOWN = {
    "DeepSeek-V2": Architecture(60, 5120, 128, True, 160, 6, 1536, 3072),
    "DeepSeek-V2-Lite": Architecture(27, 2048, 16, True, 64, 6, 1408, 2816),
    "DeepSeek-V3": Architecture(61, 7168, 128, True, 256, 8, 2048, 2048),
    "DeepSeek-V4-Flash": Architecture(43, 4096, 64, True, 256, 6, 2048, 2048),
    "DeepSeek-V4-Pro": Architecture(61, 7168, 128, True, 384, 6, 3072, 3072),
    "GLM-5.2": Architecture(78, 6144, 64, True, 256, 8, 2048, 2048),
    "GPT-OSS-120B": Architecture(36, 2880, 64, False, 128, 4, 2880, 0),
    "GPT-OSS-20B": Architecture(24, 2880, 64, False, 32, 4, 2880, 0),
    "Kimi-K2": Architecture(61, 7168, 64, True, 384, 8, 2048, 2048),
    "Mixtral-8x22B": Architecture(56, 6144, 48, False, 8, 2, 16384, 0),
    "Mixtral-8x7B": Architecture(32, 4096, 32, False, 8, 2, 14336, 0),
    "Moonlight-16B-A3B": Architecture(27, 2048, 16, True, 64, 6, 1408, 2816),
    "Qwen2-57B-A14B": Architecture(28, 3584, 28, False, 64, 8, 2560, 20480),
    "Qwen3-235B-A22B": Architecture(94, 4096, 64, False, 128, 8, 1536, 0),
    "Qwen3-30B-A3B": Architecture(48, 2048, 32, False, 128, 8, 768, 0),
    "Qwen3-Next-80B-A3B": Architecture(48, 2048, 16, False, 512, 10, 512, 512),
}
# Two models have the same dimensions and differ in their vocabulary, before padding.
WORDS = {"DeepSeek-V2-Lite": 102_400, "Moonlight-16B-A3B": 163_840}


def name(model: Model) -> str | None:
    """Return the known model that has these dimensions; None where none has."""
    experts = model.experts
    if experts is None:
        return None
    found = Architecture(
        model.layers,
        model.hidden,
        model.attention.heads,
        model.attention.latent,
        experts.count,
        experts.top_k,
        experts.ffn,
        experts.shared_ffn,
    )
    for known, architecture in KNOWN.items():
        words = WORDS.get(known, model.vocabulary)
        if architecture == found and words <= model.vocabulary < 1.2 * words:
            return known
    return None
