"""RESUME=1 at other parallel sizes: Megatron reads its checkpoint anew, and the losses go on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("megatron.training", reason="the training extra is not installed")

from launcher.job.checkpoints import TRACKER
from tests.support.launching import Launched, launch
from tests.support.tiny_models import write_yaml

MODEL = "Qwen3-MoE"
WORDS = [
    "--train-iters",
    "4",
    "--eval-iters",
    "0",
    "--save-interval",
    "2",
    "--lr",
    "1e-2",
    "--lr-warmup-init",
    "5e-3",
]


def start(folder: Path, *words: str, **variables: str) -> Launched:
    """Launch the run on this machine, with checkpoints in the folder."""
    return launch(
        ["--save", str(folder / "checkpoints"), *WORDS, *words],
        CLUSTER="local",
        MODEL=str(write_yaml(MODEL, folder)),
        OUTPUT_PATH=str(folder / "output"),
        MBS="1",
        GBS="4",
        SEQ_LEN="32",
        **variables,
    )


def losses(folder: Path) -> list[float]:
    """Return the losses of a folder's newest run; the second one is undone of its averaging."""
    log = max((folder / "output" / "runs").glob("*/log"), key=lambda path: path.stat().st_mtime)
    first, average, *rest = map(float, re.findall(r"lm loss: (\S+)", log.read_text()))
    return [first, 2 * average - first, *rest]


@pytest.mark.slow
def test_a_run_goes_on_at_other_sizes(tmp_path: Path):
    began = start(tmp_path, "--dist-ckpt-optim-fully-reshardable", TP="1", EP="2")
    assert began.status == 0, began.stderr
    whole = losses(tmp_path)
    save = tmp_path / "checkpoints"
    shutil.rmtree(save / "iter_0000004")
    (save / TRACKER).write_text("2")
    resumed = start(tmp_path, RESUME="1", TP="2", EP="1", TIMESTAMP="260102_120000")
    assert resumed.status == 0, resumed.stderr
    assert losses(tmp_path) == pytest.approx(whole[2:], abs=1e-4)
    # What it saved itself belongs to its sizes.
    refused = start(tmp_path, RESUME="1", TP="1", EP="2", TIMESTAMP="260103_120000")
    assert (refused.status, refused.stdout) == (1, "")
    (line,) = refused.stderr.splitlines()
    assert "its optimizer was saved for TP2 PP1 EP1, and this is TP1 PP1 EP2" in line
