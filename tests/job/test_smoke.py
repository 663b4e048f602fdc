"""SMOKE=1: the shrunken recipe keeps its structure, and it trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from launcher.config import layout, model_file
from tests.support.launching import ROOT, launch, preview

DEEPSEEK = {"MODEL": "DeepSeek-V3", "TP": "2", "PP": "8", "VPP": "4", "EP": "64"}
LAYOUT = ["--pipeline-model-parallel-layout", "Et|(tt|)*30mL", "--mtp-num-layers", "1"]


def smoke(words=(), **variables: str):
    return preview(words, CLUSTER="local", SMOKE="1", **variables)


def ranks(seen) -> int:
    return int(seen.flag("--nproc-per-node")[0])


@pytest.mark.parametrize("name", model_file.names(ROOT))
def test_sizes_fit_together(name: str):
    seen = smoke(MODEL=name)

    def size(flag: str) -> int:
        return int((seen.flag(flag) or ["1"])[0])

    tp, pp, cp = (
        size(f"--{kind}-parallel-size") for kind in ("tensor-model", "pipeline-model", "context")
    )
    world = ranks(seen)
    assert world <= 4
    assert world % (tp * pp * cp) == 0
    assert world % (size("--expert-model-parallel-size") * pp) == 0
    assert size("--num-experts") % size("--expert-model-parallel-size") == 0
    assert size("--num-attention-heads") % size("--num-query-groups") == 0
    assert size("--global-batch-size") % (size("--micro-batch-size") * world // (tp * pp * cp)) == 0
    assert size("--moe-router-topk") <= size("--num-experts")
    pattern = seen.flag("--moe-layer-freq")
    if pattern:
        assert len(layout.layer_pattern(pattern[0], size("--num-layers"))) == size("--num-layers")
        assert sorted(set(layout.layer_pattern(pattern[0], 0))) == [0, 1]


def test_every_kind_of_parallelism_stays():
    seen = smoke(LAYOUT, **DEEPSEEK)
    assert ranks(seen) == 4
    for kind in ("tensor-model", "pipeline-model", "expert-model"):
        assert seen.flag(f"--{kind}-parallel-size") == ["2"], kind
    assert seen.flag("--pipeline-model-parallel-layout") == ["Et|t|t|mL"]
    assert seen.flag("--mtp-num-layers") == ["1"]
    assert seen.flag("--num-layers") == ["3"]


def test_uneven_stages_and_virtual_stages_stay():
    assert smoke().flag("--decoder-first-pipeline-num-layers") == ["2"]
    assert smoke(MODEL="Mixtral-8x7B").flag("--num-virtual-stages-per-pipeline-rank") == ["2"]


def test_context_parallelism_comes_before_tensor_parallelism_where_ranks_are_few():
    seen = smoke(MODEL="Qwen3-235B-A22B", TP="4", PP="8", CP="2", EP="8")
    assert seen.flag("--context-parallel-size") == ["2"]
    assert seen.flag("--tensor-model-parallel-size") == ["1"]
    assert "smoke: TP4 → 1: no ranks are left for it" in seen.stderr


def test_each_replacement_is_said():
    seen = smoke(PR="fp8", DISPATCHER="deepep", OPTIMIZER_OFFLOAD="1", A2A_OVERLAP="1", **DEEPSEEK)
    said = [line for line in seen.stderr.splitlines() if "note: replaced: " in line]
    for word in (
        "--transformer-impl",
        "--fp8-recipe",
        "--moe-token-dispatcher-type",
        "--optimizer-cpu-offload",
    ):
        assert sum(word in line for line in said) >= 1, word
    assert seen.flag("--fp8-recipe") is None
    assert seen.flag("--transformer-impl") == ["local"]


def test_nothing_is_loaded_or_saved_unless_asked():
    assert smoke(LOAD_PATH="/ckpt").flag("--load") is None
    assert smoke().flag("--save") is None
    assert smoke(["--save", "/tmp/x", "--train-iters", "3"]).flag("--save") == ["/tmp/x"]
    assert smoke(["--train-iters", "3"]).flag("--train-iters") == ["3"]


def run(tmp_path: Path, words=(), **variables: str):
    seen = launch(
        words, CLUSTER="local", SMOKE="1", OUTPUT_PATH=str(tmp_path / "out put"), **variables
    )
    assert seen.status == 0, seen.stderr
    run_dir = Path(re.search(r"results (.*)", seen.stderr)[1])
    return seen, run_dir


@pytest.mark.slow
def test_deepseek_v3_trains_with_all_its_parallelism(tmp_path: Path):
    key = "wandb-key-0123456789abcdef0123456789abcdef"
    seen, run_dir = run(tmp_path, LAYOUT, WANDB_API_KEY=key, WANDB_MODE="offline", **DEEPSEEK)
    losses = [float(text) for text in re.findall(r"iteration \d+/20  loss ([\d.]+)", seen.stderr)]
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]
    assert "passed: loss " in seen.stderr
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {
        "job.sh",
        "arguments.yaml",
        "environment.yaml",
        "versions.yaml",
        "submission.yaml",
        "log",
    }
    arguments = yaml.safe_load((run_dir / "arguments.yaml").read_text())["arguments"]
    assert arguments["--num-experts"] == {"values": ["8"], "origin": "SMOKE=1"}
    assert arguments["--swiglu"]["origin"].startswith(
        "model_configs/benchmarking/base/common.yaml:"
    )
    versions = yaml.safe_load((run_dir / "versions.yaml").read_text())
    assert versions["megatron-core"] == "0.19.2"
    assert versions["torch"].startswith("2.13.0")
    assert yaml.safe_load((run_dir / "submission.yaml").read_text())["status"] == 0
    # MTP trained beside the model, on the virtual stages of both pipeline ranks.
    assert "mtp_1 loss" in (run_dir / "log").read_text()
    assert key not in seen.stdout + seen.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Mixtral-8x7B"])
def test_other_families_train(name: str, tmp_path: Path):
    seen, _ = run(tmp_path, MODEL=name)
    assert "passed: loss " in seen.stderr


@pytest.mark.slow
def test_a_failing_run_says_why(tmp_path: Path):
    seen = launch(
        ["--attention-dropout", "2.0"],
        MODEL="Mixtral-8x7B", CLUSTER="local", SMOKE="1", OUTPUT_PATH=str(tmp_path), FORCE="1",
    )  # fmt: skip
    assert seen.status not in (0, None)
    assert "FAILED with exit status" in seen.stderr
    assert "dropout probability has to be between 0 and 1" in seen.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline-model-parallel-layout", "Et|(tt|L"], "unbalanced ( in layout"),
        (["--num-layers", "many"], "invalid literal"),
    ],
)
def test_what_cannot_be_shrunk_is_one_line(words, message):
    seen = launch(words, MODEL="DeepSeek-V3", CLUSTER="local", SMOKE="1", DRY_RUN="1")
    assert seen.status == 1
    assert len(seen.stderr.splitlines()) == 1
    assert message in seen.stderr


def test_a_full_size_job_does_not_start_a_thousand_processes_on_a_laptop():
    seen = launch(MODEL="DeepSeek-V3", CLUSTER="local", DRY_RUN="1", CUDA_VISIBLE_DEVICES="")
    assert seen.status == 1
    assert "needs 1024 ranks as it is, and this machine has no GPU: SMOKE=1" in seen.stderr
