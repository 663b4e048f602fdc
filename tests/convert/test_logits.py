"""Converted models give transformers' logits in the real Megatron GPTModel, over real ranks too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

import torch

from tests.support.conversion import convert
from tests.support.megatron_runs import Case, megatron_logits
from tests.support.tiny_models import (
    MODELS,
    VOCABULARY,
    Made,
    logits,
    make,
    mtp_logits,
    save,
    tokens,
    write_yaml,
    yaml_name,
)

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
MTP = ("--mtp-num-layers", "1")
MTP_ON_2 = (*MTP, "--pipeline-model-parallel-layout", "Et|tttmL")

Tensors = dict[str, torch.Tensor]

# Each kind of parallelism with the architectures whose conversion depends on it. All run on four
# ranks; what these leave over is data parallel.
PARALLEL = {
    "TP2 EP2": ("Mixtral", {"TP": "2", "EP": "2"}, ()),
    "TP2 ETP2": ("Mixtral", {"TP": "2"}, ("--expert-tensor-parallel-size", "2")),
    "TP2": ("Qwen2-MoE", {"TP": "2"}, ()),
    "EP4": ("Qwen2-MoE", {"EP": "4"}, ()),
    "PP2, one layer first": (
        "Qwen3-MoE",
        {"PP": "2"},
        ("--decoder-first-pipeline-num-layers", "1"),
    ),
    "PP2 VPP2": ("Qwen3-MoE", {"PP": "2", "VPP": "2"}, ()),
    "TP2 PP2 EP2": ("Qwen3-MoE", {"TP": "2", "PP": "2", "EP": "2"}, ()),
    "delta nets, TP2 EP2": ("Qwen3-Next", {"TP": "2", "EP": "2"}, MTP),
    "delta nets, PP2 layout": ("Qwen3-Next", {"PP": "2"}, MTP_ON_2),
    "latent, TP2 EP2 ETP2": (
        "DeepSeek-V2",
        {"TP": "2", "EP": "2"},
        ("--expert-tensor-parallel-size", "2"),
    ),
    "latent without q rank, TP2": ("DeepSeek-V2-Lite", {"TP": "2"}, ()),
    "MTP, TP2 PP2 EP2 layout": ("DeepSeek-V3", {"TP": "2", "PP": "2", "EP": "2"}, MTP_ON_2),
    "MTP, PP2 VPP2 layout": (
        "DeepSeek-V3",
        {"PP": "2"},
        (*MTP, "--pipeline-model-parallel-layout", "Et|t|t|tmL"),
    ),
    "biases and norms, TP2": ("GLM-4.6", {"TP": "2"}, ()),
    "MTP and biases, TP2 PP2 EP2 layout": (
        "GLM-4.5-Air",
        {"TP": "2", "PP": "2", "EP": "2"},
        MTP_ON_2,
    ),
    "sparse, TP2 PP2 EP2 layout": (
        "DeepSeek-V3.2",
        {"TP": "2", "PP": "2", "EP": "2"},
        MTP_ON_2,
    ),
    "sinks and windows, TP2 EP2": ("gpt-oss", {"TP": "2", "EP": "2"}, ()),
    "sinks and windows, PP2 VPP2 EP2": ("gpt-oss", {"PP": "2", "VPP": "2", "EP": "2"}, ()),
    "PP2 EP2, one layer last": (
        "Kimi-K2",
        {"PP": "2", "EP": "2"},
        ("--decoder-last-pipeline-num-layers", "1"),
    ),
}


def _swap(one: str, other: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return change


def _apply(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    def change(tensors: Tensors) -> None:
        tensors[name] = function(tensors[name])

    return change


def _halved_rotation(rows: torch.Tensor) -> torch.Tensor:
    """The rotated key's rows as other models have them: first halves of the pairs, then second."""
    return torch.cat((rows[:16], rows[16::2], rows[17::2]))


# What must not go unnoticed, in one tensor or two of a checkpoint that is otherwise in order.
LAYER = "model.layers.2."
DAMAGE = {
    "Mixtral": _swap(
        f"{LAYER}block_sparse_moe.experts.3.w1.weight",
        f"{LAYER}block_sparse_moe.experts.3.w3.weight",
    ),
    "Qwen2-MoE": _apply(f"{LAYER}self_attn.k_proj.bias", torch.zeros_like),
    "Qwen3-MoE": _swap(
        f"{LAYER}mlp.experts.2.down_proj.weight", f"{LAYER}mlp.experts.5.down_proj.weight"
    ),
    "Qwen3-Next": _apply(f"{LAYER}linear_attn.out_proj.weight", torch.t),
    "DeepSeek-V2": _apply(f"{LAYER}self_attn.o_proj.weight", torch.t),
    "DeepSeek-V2-Lite": _apply(f"{LAYER}self_attn.kv_a_layernorm.weight", torch.zeros_like),
    "DeepSeek-V3": _apply("model.layers.4.eh_proj.weight", lambda w: w.roll(64, dims=1)),
    "DeepSeek-V3 without YaRN": _apply(
        f"{LAYER}self_attn.kv_a_proj_with_mqa.weight", _halved_rotation
    ),
    "Qwen3.5": _swap(
        f"{LAYER}linear_attn.in_proj_a.weight", f"{LAYER}linear_attn.in_proj_b.weight"
    ),
    "Moonlight": _apply(f"{LAYER}self_attn.kv_a_proj_with_mqa.weight", _halved_rotation),
    "GLM-4.5-Air": _apply("model.layers.4.eh_proj.weight", lambda w: w.roll(64, dims=1)),
    "GLM-4.6": _apply("model.layers.3.mlp.gate.e_score_correction_bias", torch.zeros_like),
    # Each head of the indexer has its neighbour's weight.
    "DeepSeek-V3.2": _apply(
        f"{LAYER}self_attn.indexer.weights_proj.weight", lambda w: w.roll(1, 0)
    ),
    "GLM-5": _apply(f"{LAYER}self_attn.indexer.k_norm.bias", torch.ones_like),
    "Kimi-K2": _apply(f"{LAYER}mlp.gate.e_score_correction_bias", torch.zeros_like),
    # Gate and up projection one over the other, where they are in turn.
    "gpt-oss": _apply(
        f"{LAYER}mlp.experts.gate_up_proj", lambda w: torch.cat((w[..., 0::2], w[..., 1::2]), -1)
    ),
}


@cache
def expected(made: Made) -> dict[str, torch.Tensor]:
    """transformers' own logits, of the model and of MTP."""
    found = {"logits": logits(made)}
    return {**found, "MTP logits": mtp_logits(made)} if made.mtp else found


def differences(made: Made, found: dict) -> dict[str, float]:
    """Largest distance of any of Megatron's logits from transformers', of the model and of MTP."""
    ours = {"logits": found["logits"]}
    if made.mtp:
        # The last position predicts from a token that the sequence does not have.
        ours["MTP logits"] = found["mtp"][0][:, :-1]
    return {
        kind: (ours[kind][..., :VOCABULARY] - theirs).abs().max().item()
        for kind, theirs in expected(made).items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Made]:
    """Every tiny model; its checkpoint is in the folder of its name, its YAML beside."""
    found = {name: make(name) for name in MODELS}
    for name, one in found.items():
        save(one, folder / name)
        write_yaml(name, folder)
    return found


def _yaml(folder: Path, name: str) -> Path:
    return folder / yaml_name(name)


@pytest.fixture(scope="module")
def alone(made: dict[str, Made], folder: Path) -> dict[str, dict]:
    """Megatron's logits of every model on one rank; "damaged NAME" from a damaged checkpoint."""
    cases = []
    for name, one in made.items():
        save(one, folder / f"damaged {name}", change=DAMAGE[name])
        words = MTP if one.mtp else ()
        for source in (name, f"damaged {name}"):
            target = folder / f"{source} torch_dist"
            convert(folder / source, target, _yaml(folder, name), "torch_dist", words)
            cases.append(
                Case(source, _yaml(folder, name), target, words, release=MODELS[name].release)
            )
    return megatron_logits(cases, tokens(), folder / "alone", ranks=1)


@pytest.mark.parametrize("name", MODELS)
def test_one_rank(name: str, made: dict[str, Made], alone: dict[str, dict]) -> None:
    found = differences(made[name], alone[name])
    print(found)
    assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_damage_is_seen(name: str, made: dict[str, Made], alone: dict[str, dict]) -> None:
    found = differences(made[name], alone[f"damaged {name}"])
    print(found)
    assert max(found.values()) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def together(made: dict[str, Made], folder: Path) -> dict[str, dict]:
    """Megatron's logits of every case of PARALLEL from both formats, on four ranks."""
    cases = []
    for title, (name, sizes, words) in PARALLEL.items():
        for kind in ("torch_dist", "legacy"):
            target = folder / f"{title} {kind}"
            convert(folder / name, target, _yaml(folder, name), kind, words, **sizes)
            where = (_yaml(folder, name), target, words, tuple(sizes.items()))
            cases.append(Case(f"{title} {kind}", *where, MODELS[name].release))
    return megatron_logits(cases, tokens(), folder / "together", ranks=4)


@pytest.mark.parametrize("kind", ["torch_dist", "legacy"])
@pytest.mark.parametrize("title", PARALLEL)
def test_four_ranks(
    title: str, kind: str, made: dict[str, Made], together: dict[str, dict]
) -> None:
    found = differences(made[PARALLEL[title][0]], together[f"{title} {kind}"])
    print(found)
    assert max(found.values()) < TOLERANCE
