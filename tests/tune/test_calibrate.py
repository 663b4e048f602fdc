"""What a cluster measured of itself: its GPU, and the steps of its runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher import calibrate
from launcher.errors import UsageError
from launcher.plan.projection import calibration
from launcher.plan.projection.constants import GPUS, fitted
from tests.support.launching import ROOT, launch, preview

JOB = {"MODEL": "Qwen3-235B-A22B", "GPU": "H100"}
LINE = "iteration {}/ 20 | elapsed time per iteration (ms): {:.1f} | lm loss: 7.0E+00 |"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="the training extra is not installed")
def test_measuring_runs_through_on_a_cpu():
    """The dry path: the same program with small sizes; its figures mean nothing."""
    done = subprocess.run(
        [sys.executable, str(calibrate.PROGRAM), "--seconds", "0.1"],
        capture_output=True, text=True, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["device"] == "cpu"
    assert all(found[name] > 0 for name in ("bf16", "attention", "memory", "operation"))
    assert calibrate.named(found["device"]) is None
    assert len(calibrate.told(found)) == 4  # no FP8, no all-to-all


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nothere"], "calibrate: 'nothere' is no folder of a run"),
        (["--seconds", "x"], "calibrate --seconds 'x': a number of seconds is needed"),
        (["--seconds"], "calibrate --seconds '': a number of seconds is needed"),
        (["--second", "3"], "calibrate has no option '--second': it takes --seconds SECONDS, or runs"),
    ],
)  # fmt: skip
def test_words_that_calibrate_does_not_take(words, reason, tmp_path):
    seen = launch(words, LAUNCHER_COMMAND="calibrate", OUTPUT_PATH=str(tmp_path), **JOB)
    assert (seen.status, seen.stdout, seen.stderr) == (1, "", f"error: {reason}\n")


def test_nothing_is_written_to_the_template_s_placeholder(tmp_path):
    seen = launch(LAUNCHER_COMMAND="calibrate", OUTPUT_PATH="YOUR_OUTPUT_DIR", **JOB)
    assert seen.status == 1
    assert "OUTPUT_PATH='YOUR_OUTPUT_DIR' (environment) still has a placeholder" in seen.stderr


def test_a_gpus_name_is_recognised():
    assert calibrate.named("NVIDIA H100 80GB HBM3") == "H100"
    assert calibrate.named("NVIDIA GB200") == "GB200"
    assert calibrate.named("NVIDIA B200") == "B200"
    assert calibrate.named("NVIDIA A100-SXM4-80GB") is None


@pytest.mark.parametrize("name", ["H100", "B200", "GB300"])
def test_rates_as_fitted_give_the_fitted_constants(name):
    gpu, known = GPUS[name], fitted()
    kind = "blackwell" if gpu.blackwell else "hopper"
    clock = (gpu.watts / 1200) ** known.power if gpu.blackwell else 1.0
    share = getattr(known, f"e_bf16_{kind}")
    measured = {"bf16": gpu.bf16 * share * clock, "fp8": None, "attention": 1.0}
    assert calibrate.constants(measured, gpu) == {
        f"e_bf16_{kind}": pytest.approx(share, abs=1e-4)  # attention is implausible
    }


def run(folder: Path, seconds: float, steps: int = 20) -> Path:
    """The folder of a run that took so long a step."""
    folder.mkdir()
    plan = preview(**JOB, PLAN_FORMAT="json").stderr
    (folder / "plan.json").write_text(plan)
    lines = [LINE.format(step, 90_000 if step < 5 else seconds * 1000) for step in range(steps)]
    (folder / "log").write_text("\n".join(lines))
    return folder


def test_a_run_becomes_the_anchor_of_the_same_job(tmp_path):
    """The next plan of this job is what the run reached; without it, it is what was published."""
    before = json.loads(preview(**JOB, PLAN_FORMAT="json").stderr)["projection"]
    slow = round(before["seconds"] * 1.5, 2)
    row = calibrate.reached(run(tmp_path / "run", slow))
    assert float(row["seconds"]) == pytest.approx(slow)
    calibration.write(tmp_path / calibration.FILE, {"runs": [row]})
    after = json.loads(preview(**JOB, PLAN_FORMAT="json", OUTPUT_PATH=str(tmp_path)).stderr)
    assert after["projection"]["kind"] == "exact"
    assert after["projection"]["anchor"]["source"] == str(tmp_path / "run")
    assert after["projection"]["seconds"] == pytest.approx(slow, rel=0.02)


def test_a_run_without_steady_steps_is_refused(tmp_path):
    with pytest.raises(UsageError, match="are needed"):
        calibrate.reached(run(tmp_path / "run", 1.0, steps=3))


def test_what_is_no_run_is_refused(tmp_path):
    done = launch(
        [str(tmp_path), "nothing"], LAUNCHER_COMMAND="calibrate", MODEL="Mixtral-8x7B",
        OUTPUT_PATH=str(tmp_path),
    )  # fmt: skip
    assert done.status == 1
    assert "'nothing' is no folder of a run" in done.stderr
    assert (ROOT / "launcher" / "calibrate.py").is_file()
