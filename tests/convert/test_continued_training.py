"""A training that loads a converted checkpoint goes on with the converted model's loss."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from tests.support.conversion import convert
from tests.support.launching import launch
from tests.support.loss_data import losses, text, write
from tests.support.tiny_models import make, save, write_yaml

pytestmark = pytest.mark.slow
MTP = ("--mtp-num-layers", "1", "--mtp-loss-scaling-factor", "0.1")
# (model, precision, sizes, arguments, how far a loss may be from transformers' own)
RUNS = {
    "fp32": ("Qwen3-MoE", torch.float32, {"EP": "2"}, (), 1e-4),
    "bf16": (
        "DeepSeek-V3",
        torch.bfloat16,
        {"TP": "2", "PP": "2", "EP": "2"},
        (*MTP, "--pipeline-model-parallel-layout", "Et|tttmL"),
        3e-2,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_loss_is_the_converted_models(name: str, tmp_path: Path) -> None:
    model, dtype, sizes, words, tolerance = RUNS[name]
    made = make(model)
    made.model.to(dtype).to(torch.float32)  # what the checkpoint of that precision holds
    ids = text(made)
    expected = losses(made, ids)
    write(ids, tmp_path / "data")
    half = dtype is torch.bfloat16
    changes = {"--bf16": half, "--data-cache-path": tmp_path / "cache"}
    yaml = write_yaml(model, tmp_path, **changes)
    save(made, tmp_path / "source", dtype)
    convert(tmp_path / "source", tmp_path / "checkpoint", yaml, "torch_dist", words, **sizes)

    # A learning rate that in three iterations barely moves the weights.
    rate = ("--lr", "1e-8", "--min-lr", "0", "--lr-warmup-init", "0")
    run = ("--train-iters", "3", "--eval-iters", "0", "--split", "100,0,0")
    command = (*words, *run, *rate)
    given = {
        "CLUSTER": "local",
        "MODEL": str(yaml),
        "LOAD_PATH": str(tmp_path / "checkpoint"),
        "OUTPUT_PATH": str(tmp_path / "output"),
        "DATA_PATH": str(tmp_path / "data"),
        "MBS": "1",
        "GBS": "8",
        "SEQ_LEN": "32",
        **sizes,
    }
    launched = launch(command, **given)
    assert launched.status == 0, launched.stderr
    (log,) = (tmp_path / "output").glob("runs/*/log")
    for title, loss in expected.items():
        logged = [float(found) for found in re.findall(rf"{title}: (\S+)", log.read_text())]
        print(title, "transformers", loss, "Megatron", logged)
        # The later ones show that the optimizer's own copy of the weights is the loaded one.
        assert len(logged) == 3
        assert logged == pytest.approx([loss] * 3, abs=tolerance)
    # ln 250 = 5.5 is the loss of random weights.
    assert expected["lm loss"] < 4

    if name != "bf16":
        return
    for add, said in ((True, "4,096 more"), (False, "4,096 fewer")):
        spoilt = {**given, "LOAD_PATH": str(spoil(tmp_path / "checkpoint", add))}
        refused = launch(command, **spoilt)
        assert (refused.status, refused.stdout) == (1, "")
        (line,) = refused.stderr.splitlines()
        assert f"its weights are not the model's: decoder.layers.3 has {said} (" in line
    # Megatron itself, should the launcher be overruled: the weight is of one stage of the two.
    forced = launch(command, FORCE="1", TIMESTAMP="260102_120000", **spoilt)
    assert forced.status != 0
    assert "CheckpointingException: Unexpected keys" in forced.stderr


def spoil(checkpoint: Path, add: bool) -> Path:
    """Copy a checkpoint with a weight more, or without one, in its index and its data."""
    key = "decoder.layers.3.self_attention.linear_proj.weight"
    copy = checkpoint.with_name("more" if add else "less")
    shutil.copytree(checkpoint, copy)
    index = copy / "release" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    places = {each: at for each, at in metadata.storage_data.items() if each.fqn == key}
    if add:
        metadata.state_dict_metadata[f"{key}2"] = metadata.state_dict_metadata[key]
        for each, at in places.items():
            metadata.storage_data[MetadataIndex(f"{key}2", each.offset)] = at
    else:
        del metadata.state_dict_metadata[key]
        for each in places:
            del metadata.storage_data[each]
    index.write_bytes(pickle.dumps(metadata))
    return copy
