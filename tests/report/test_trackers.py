"""The report's numbers in real TensorBoard and offline W&B files."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.report import subject, summary, trackers
from tests.report.runs import make, steady_log

pytestmark = pytest.mark.slow


def test_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    run = make(tmp_path / "run", steady_log(30.29), {"--tensorboard-dir": folder})
    (said,) = trackers.record(summary.report(subject.read(run)))
    assert "TensorBoard" in said
    read = EventAccumulator(str(folder / "report"))
    read.Reload()
    (event,) = read.Scalars("report/tokens_per_second_per_gpu")
    assert (event.step, event.value) == (30, pytest.approx(8654.5, rel=1e-4))


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = {"--wandb-project": "p", "--wandb-exp-name": "e", "--wandb-save-dir": tmp_path}
    run = make(tmp_path / "run", steady_log(30.29), flags)
    (said,) = trackers.record(summary.report(subject.read(run)))
    assert "W&B" in said
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"report/tokens_per_second_per_gpu" in file.read_bytes()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert trackers.record(summary.report(subject.read(run))) == []
