"""The weights that a checkpoint has, held against the model's; the names are the converter's."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from launcher.convert import description, parameters, torch_dist
from launcher.convert.description import Description
from launcher.job import loading, weights
from tests.job.test_loading import distributed, legacy, objection, track
from tests.support.launching import job, preview

# Grouped and latent attention, a delta net, MTP, shared experts, an expert bias, stacked layers.
MODELS = ("DeepSeek-V3", "Mixtral-8x7B", "Qwen2-57B-A14B", "Qwen3-30B-A3B", "Qwen3-Next-80B-A3B")
MIXTRAL = {"MODEL": "Mixtral-8x7B", "TP": "1", "PP": "1", "VPP": "1", "EP": "2"}


def metadata(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return the bytes of an index of such tensors and no data, as torch writes it."""
    state = {
        name: TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(shape), [])
        for name, shape in shapes.items()
    }
    return pickle.dumps(Metadata({**state, "decoder.x._extra_state": BytesStorageMetadata()}))


def described(model: str, **variables: str) -> tuple[Description, weights.Needs]:
    """Return a job as the converter sees it, and what its checkpoint needs."""
    made = job(["--load", "/absent/load"], MODEL=model, FORCE="1", **variables)
    release = made.settings.MCORE_RELEASE_VERSION
    return description.from_arguments(made.arguments, made.world_size, release), loading.needed(
        made, made.plan
    )


def held(made: Description) -> dict[str, tuple[int, ...]]:
    """Return name → shape of a model's tensors in a torch_dist checkpoint."""
    layers = torch_dist.layers(made)
    return {
        key: shape
        for one in parameters.every(made.shape.model)
        for key, shape, _, _ in torch_dist.chunks(one, torch_dist.place(made, layers, one))
    }


@pytest.mark.parametrize("model", MODELS)
def test_a_converted_checkpoint_has_the_models_weights(model: str, tmp_path: Path):
    made, needs = described(model)
    path = distributed(tmp_path / "release")
    shapes = held(made)
    (path / ".metadata").write_bytes(metadata(shapes))
    assert weights.unlike(path, needs) == ""
    optimizer = {"chained_0.optimizer.state.exp_avg": (7,), "optimizer.state.step": (1,)}
    (path / ".metadata").write_bytes(metadata({**shapes, **optimizer}))
    assert weights.unlike(path, needs) == ""
    name = next(name for name in shapes if name.endswith("router.weight"))
    for change, said in (({name: None}, "fewer"), ({f"{name}2": (5,)}, " has 5 more")):
        spoilt = {key: shape for key, shape in {**shapes, **change}.items() if shape}
        (path / ".metadata").write_bytes(metadata(spoilt))
        assert said in weights.unlike(path, needs)


def test_a_stacked_checkpoint_is_one_part(tmp_path: Path):
    """Mixtral's layers are alike, and Megatron stacks them."""
    made, needs = described("Mixtral-8x7B")
    path = distributed(tmp_path / "release")
    shapes = held(made)
    assert not any(key.startswith("decoder.layers.0.") for key in shapes)
    name = "decoder.layers.self_attention.linear_proj.weight"
    (path / ".metadata").write_bytes(metadata({**shapes, name: (31, *shapes[name][1:])}))
    assert weights.unlike(path, needs) == (
        "its weights are not the model's: decoder has 16,777,216 fewer"
    )
    # Padding for other tensor-parallel ranks is no difference, another output layer is one.
    word = "embedding.word_embeddings.weight"
    padded = {**shapes, word: (shapes[word][0] + 128, shapes[word][1])}
    (path / ".metadata").write_bytes(metadata(padded))
    assert weights.unlike(path, needs) == ""
    tied = {key: shape for key, shape in shapes.items() if key != "output_layer.weight"}
    (path / ".metadata").write_bytes(metadata(tied))
    assert weights.unlike(path, needs).endswith(": the checkpoint has no output")


def test_a_rank_of_a_legacy_checkpoint(tmp_path: Path):
    made = job(["--load", "/absent/load"], FORCE="1", **MIXTRAL)
    needs, sizes = loading.needed(made, made.plan), loading.sizes(made)
    path = legacy(tmp_path / "release", sizes)
    first, second = needs["ranks"]
    for name, more in ((first, 0), (second, 3)):
        whole = torch.empty(needs["ranks"][name] + more, device="meta")
        model = {"all": torch.empty(1).expand(whole.shape), "x._extra_state": torch.empty(9)}
        torch.save({"args": MIXTRAL, "model": model}, path / name / weights.LEGACY_FILE)
    assert f"{second} holds" in weights.unlike(path, needs)
    needs["ranks"][second] += 3
    assert weights.unlike(path, needs) == ""


def test_other_weights_stop_the_submission(tmp_path: Path):
    made, _ = described("Mixtral-8x7B")
    load = tmp_path / "load"
    track(load, "release")
    path = distributed(load / "release")
    shapes = held(made)
    (path / ".metadata").write_bytes(metadata(shapes))
    given = {"LOAD_PATH": str(load), **MIXTRAL}
    assert "error:" not in preview(**given).stderr
    (path / ".metadata").write_bytes(metadata({**shapes, "decoder.more.weight": (3, 4)}))
    line = objection(**given)
    assert f"--load {load} (" in line
    assert "its weights are not the model's: decoder has 12 more (--dist-ckpt-strictness" in line
    tolerant = preview(["--dist-ckpt-strictness", "log_all"], **given)
    assert "error:" not in tolerant.stderr
    assert "python3 - " not in tolerant.script


def test_the_script_counts_as_the_launcher_does(tmp_path: Path):
    """It runs the module's own text, on a node that may have nothing but Python."""
    made, needs = described("Mixtral-8x7B")
    path = distributed(tmp_path / "release")
    (path / ".metadata").write_bytes(metadata({**held(made), "more.weight": (2,)}))
    script = preview(LOAD_PATH="/only-there/load", **MIXTRAL).script
    program = script.split("<<'PYTHON'\n", 1)[1].split("\nPYTHON\n", 1)[0]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-", str(path), json.dumps(needs)],
        input=program, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "its weights are not the model's: the model has no more\n"
