"""The plan as a user reads it, before a preview and by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import model_file
from tests.support.launching import ROOT, launch, preview

DEEPSEEK = {"TP": "2", "PP": "8", "VPP": "4", "PR": "fp8"}
LAYOUT = ["--pipeline-model-parallel-layout", "Et|(tt|)*30mL", "--mtp-num-layers", "1"]


def test_every_stage_has_its_line():
    seen = preview(LAYOUT, **DEEPSEEK)
    assert "671.0B parameters, 37.6B active and 11.6B of MTP" in seen.stderr
    rows = re.findall(r"^  stage (\S+) .* ([\d.]+)B +(\d+) GiB", seen.stderr, re.MULTILINE)
    assert [row[:2] for row in rows] == [("0", "2.6"), ("1", "2.4"), ("2-6", "2.4"), ("7", "3.1")]
    assert re.search(r"memory     stage \d is fullest: [\d.]+ GiB of 79 \(H100\) = w", seen.stderr)


def test_where_ranks_are_and_the_batch():
    seen = preview(LAYOUT, **DEEPSEEK).stderr
    assert "128 nodes × 8 H100 = 1024 ranks; fp8; Megatron-Core 0.19" in seen
    assert "TP2 CP1 DP64 PP8 VPP4; experts ETP1 EP64 EDP2; TP within a node; EP over 8" in seen
    # (8 - 1) / (4 · 128) of the ideal step
    assert "DP64 × 128 micro-batches of 1; pipeline bubble 1.4% of the ideal step" in seen


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
    words = ["--recompute-granularity", "selective", "--recompute-modules", "core_attn"]
    seen = preview(words, GPU="H100")
    assert re.search(r"warning: pipeline rank \d+ needs \d+ GiB and GPU=H100 has 79", seen.stderr)
    assert "warning: pipeline rank" not in preview(GPU="GB300").stderr


def plan(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python3 -m launcher plan`."""
    return subprocess.run(
        [sys.executable, "-m", "launcher", "plan", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_names_every_stage_and_the_assumptions():
    done = plan("--all", *LAYOUT, MODEL="DeepSeek-V3", **DEEPSEEK)
    assert done.returncode == 0, done.stderr
    assert "assumed    activations are read off" in done.stdout
    stages = re.findall(r"^  stage (\d+) .*; [\d.]+B dense and [\d.]+B expert", done.stdout, re.M)
    assert [int(number) for number in stages] == list(range(8))
    assert "assumed" not in plan(*LAYOUT, MODEL="DeepSeek-V3", **DEEPSEEK).stdout


def test_plan_as_json_says_what_the_sheet_says():
    done = plan(*LAYOUT, MODEL="DeepSeek-V3", PLAN_FORMAT="json", **DEEPSEEK)
    data = json.loads(done.stdout)
    assert data["accepted"] is True
    assert data["parallelism"]["expert"] == 64
    assert data["batch"]["micro_batches"] == 128
    assert [stage["parameters"] for stage in data["stages"]][:2] == [2569584640, 2405564416]
    assert data["stages"][7]["chunks"][3] == {
        "virtual_stage": 3,
        "layers": [{"number": 0, "kind": "MTP MoE"}],
        "embedding": False,
        "loss": True,
    }
    memory = data["stages"][2]["memory"]
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    refused = plan(MODEL="DeepSeek-V3", TP="3", PLAN_FORMAT="json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["accepted"] is False
    assert "multiple of TP" in json.loads(refused.stdout)["errors"][0]


def test_published_result_of_the_recipe_itself():
    """The zoo's own measurement of this very configuration, and what it means for a step."""
    done = subprocess.run(
        ["bash", str(ROOT / "best_practice/Qwen3/run_qwen3_235b_h100.sh")],
        env={**os.environ, "LAUNCHER_COMMAND": "plan", "PLAN_FORMAT": "json"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)["published"]
    assert (found["tflops"], found["differences"]) == ("320", [])
    assert "run_h100_235b.sh" in found["source"]


def test_published_result_of_another_job_names_the_differences():
    seen = preview(MODEL="Qwen3-235B-A22B", GBS="4096", CP="2", GPU="H100").stderr
    assert re.search(r"published  \d+ TFLOPS/GPU on 256 H100, bf16, TP2 PP8", seen)
    assert "CP 2 instead of 1" in seen
    assert "GBS 4096 instead of 2048" in seen
    assert (
        "published  nothing for DeepSeek-V2 on H200"
        in preview(MODEL="DeepSeek-V2", GPU="H200").stderr
    )


def checkout(folder: Path, release: str) -> Path:
    """What tells the release of a Megatron-LM checkout."""
    for name in ("core", "training"):
        (folder / "megatron" / name).mkdir(parents=True)
    minor = release.split(".")[1]
    (folder / "megatron/core/package_info.py").write_text(f"MAJOR = 0\nMINOR = {minor}\n")
    (folder / "megatron/training/arguments.py").write_text("")
    return folder


def test_the_checkout_decides_the_release(tmp_path: Path):
    path = str(checkout(tmp_path, "0.16"))
    seen = preview(MODEL="Qwen3-30B-A3B", MEGATRON_PATH=path, DISPATCHER="hybridep").stderr
    assert "Megatron-Core 0.16" in seen
    assert "note: MEGATRON_PATH holds Megatron-Core 0.16; MCORE_RELEASE_VERSION was 0.19" in seen
    said = preview(MODEL="Qwen3-30B-A3B", MEGATRON_PATH=path, MCORE_RELEASE_VERSION="0.18").stderr
    assert "MCORE_RELEASE_VERSION=0.18 (environment), although MEGATRON_PATH holds 0.16" in said


@pytest.mark.parametrize("name", model_file.names(ROOT))
def test_a_plan_is_one_screen(name: str):
    seen = preview(MODEL=name)
    assert len(seen.stderr.splitlines()) <= 24
    assert max(map(len, seen.stderr.splitlines())) <= 200
