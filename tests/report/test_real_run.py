"""A real run of Megatron-Core: its report is there at its end, and its bare log gives the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.report import metrics, subject
from tests.support.launching import launch

pytestmark = pytest.mark.slow


def test_a_smoke_run_leaves_its_report(tmp_path: Path):
    seen = launch(MODEL="DeepSeek-V3", CLUSTER="local", SMOKE="1", OUTPUT_PATH=str(tmp_path))
    assert seen.status == 0, seen.stderr
    (run,) = (tmp_path / "runs").iterdir()
    (found,) = json.loads((run / "report.json").read_text())
    assert found["iteration"] == found["iterations"] == found["logged_iterations"]
    assert set(found["window"]["excluded"]) == {"warm-up"}
    assert found["tokens_per_second_per_gpu"] > 0
    assert 0 < found["goodput"] < 1
    assert "step time" in seen.stderr
    assert "step time" in (run / "report.txt").read_text()
    assert "Training report" in (run / "report.html").read_text()
    whole, bare = (metrics.measure(subject.read(path)) for path in (run, run / "log"))
    assert bare.flops_per_token == whole.flops_per_token
    assert bare.tokens == whole.tokens
