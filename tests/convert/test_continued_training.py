"""A training that loads a converted checkpoint goes on with the converted model's loss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

import torch

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
    launched = launch(
        (*words, *run, *rate),
        CLUSTER="local",
        MODEL=str(yaml),
        LOAD_PATH=str(tmp_path / "checkpoint"),
        OUTPUT_PATH=str(tmp_path / "output"),
        DATA_PATH=str(tmp_path / "data"),
        MBS="1",
        GBS="8",
        SEQ_LEN="32",
        **sizes,
    )
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
