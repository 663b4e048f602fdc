"""Models of 2026: exact numbers of parameters, or the line that says what is not modelled.

Totals are the sums over the shapes of transformers 5.24.0's own classes, built on the meta device
(Llama-4-Maverick: summed by hand from its published dimensions); MTP is not among them. tests/plan/models/ states each model in Megatron's arguments.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import model_file
from launcher.config.settings import Settings
from launcher.plan import influence, parameters
from launcher.plan.shape import read
from tests.support.launching import ROOT

MODELS = Path(__file__).parent / "models"
# Total, and active ones as published, in units of 10^9.
EXACT = {
    "GLM-4.5-Air": (106852245504, 13.42),
    "GLM-4.6": (352797814784, 33.63),
    "gpt-oss-120b": (116829156672, 5.71),
    "gpt-oss-20b": (20914757184, 4.19),
    "Qwen3-Coder-480B-A35B": (480154875392, 35.47),
    "Qwen3.6-35B-A3B": (34660610688, 3.45),
    "Qwen3.5-397B-A17B": (396346350336, 17.35),
    "DeepSeek-V3.2": (671877929216, 38.4),
    "GLM-5": (743911199232, 41.78),
    "MiniMax-M2": (228689748992, 11.03),
    "Moonlight-16B-A3B": (15960108544, 2.91),
    "Llama-4-Maverick": (400711848960, 17.2),
}
BEYOND_MEGATRON = {
    # Its norms of queries and keys span all heads; Megatron's --qk-layernorm has one for each head.
    "MiniMax-M2": 62 * ((48 * 128 + 8 * 128) - 2 * 128),
    # Without compression, Megatron norms the hidden state once more for the query.
    "Moonlight-16B-A3B": -27 * 2048,
}
UNMODELLED = {
    "Nemotron-3-Nano-30B-A3B": "--hybrid-layer-pattern",
    "DeepSeek-V4-Flash": "--experimental-attention-variant dsv4_hybrid",
    "DeepSeek-V4-Pro": "--experimental-attention-variant dsv4_hybrid",
}


def arguments_of(name: str):
    model = model_file.load(MODELS / f"{name}.yaml", ROOT)
    return model_file.arguments(model, Settings(MODEL=name, WORKSPACE=str(ROOT)), {})


def test_every_model_is_tried():
    bases = {"glm-base", "gptoss-base"}
    assert {path.stem for path in MODELS.glob("*.yaml")} - bases == {*EXACT, *UNMODELLED}


@pytest.mark.parametrize("name", EXACT)
def test_total_and_active(name):
    arguments = arguments_of(name)
    spoiled, _ = influence.unknown(arguments)
    assert "parameters" not in spoiled
    whole = parameters.whole(read(arguments, 1).model)
    total, active = EXACT[name]
    assert whole.total == total - BEYOND_MEGATRON.get(name, 0)
    assert whole.active / 1e9 == pytest.approx(active, rel=0.002)


@pytest.mark.parametrize("name", UNMODELLED)
def test_or_the_line(name):
    spoiled, found = influence.unknown(arguments_of(name))
    assert spoiled == {"parameters", "memory", "FLOPs"}
    assert any(line.message.startswith(UNMODELLED[name]) for line in found)
