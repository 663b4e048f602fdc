"""The plan as a user reads it, before a preview and by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from launching import ROOT, launch, preview

DEEPSEEK = {"TP": "2", "PP": "8", "VPP": "4", "PR": "fp8"}
LAYOUT = ["--pipeline-model-parallel-layout", "Et|(tt|)*30mL", "--mtp-num-layers", "1"]


def test_every_stage_has_its_line():
    seen = preview(LAYOUT, **DEEPSEEK)
    assert "671.0B parameters, 37.6B active and 11.6B of MTP" in seen.stderr
    rows = re.findall(r"^  stage (\S+) .* ([\d.]+)B +(\d+) GiB", seen.stderr, re.MULTILINE)
    assert [row[0] for row in rows] == [str(rank) for rank in range(8)]
    assert [row[1] for row in rows] == ["2.6", "2.4", "2.4", "2.4", "2.4", "2.4", "2.4", "3.1"]
    assert re.search(r"memory, fullest rank \d: [\d.]+ GiB of 80 \(H100\) = weights", seen.stderr)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("Et|(tt|)*29ttL", "31 chunks, which do not divide by PP=8"),
        ("Et|(tt|)*30L", "layout"),  # the MTP layer is nowhere
        ("Et|(t|)*30mL", "layout"),  # 31 of 61 layers
    ],
)
def test_a_layout_that_loses_layers_is_an_error(layout: str, message: str):
    words = ["--pipeline-model-parallel-layout", layout, *LAYOUT[2:]]
    seen = launch(words, MODEL="DeepSeek-V3", LAUNCHER_COMMAND="plan", **DEEPSEEK)
    assert seen.status == 1
    (error,) = [line for line in seen.stdout.splitlines() if "  error: " in line]
    assert message in error


def test_an_unknown_flag_is_an_error_with_a_hint():
    seen = preview(["--recompute-module", "mlp"])
    assert (
        "error: --recompute-module is no argument of Megatron-Core 0.19. Did you mean --recompute-modules"
        in seen.stderr
    )
    planned = launch(["--recompute-module", "mlp"], MODEL="DeepSeek-V3", LAUNCHER_COMMAND="plan")
    assert planned.status == 1


def test_too_little_memory_is_a_warning():
    seen = preview(GPU="H100")
    assert re.search(r"warning: pipeline rank \d+ needs \d+ GiB and GPU=H100 has 80", seen.stderr)
    assert "warning: pipeline rank" not in preview(GPU="GB300").stderr


def test_plan_command_names_its_assumptions():
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "plan"],
        cwd=ROOT,
        env={**os.environ, "MODEL": "Mixtral-8x7B"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "46.7B parameters, 12.9B active" in done.stdout
    assert "assumed: activations are read off" in done.stdout
