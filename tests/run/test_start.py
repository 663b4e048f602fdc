"""From a checked job to its run directory."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from launcher.report import training_log
from launcher.run import directory
from tests.support.launching import launch

READY = {
    "MODEL": "DeepSeek-V3",
    "ACCOUNT": "me",
    "PARTITION": "batch",
    "CONTAINER_IMAGE": "image.sqsh",
    "CONTAINER_MOUNTS": "/data:/data,/tmp",
    "MEGATRON_PATH": "/opt/megatron-lm",
}


def test_placeholders_stop_a_submission(tmp_path: Path):
    seen = launch(MODEL="DeepSeek-V3", OUTPUT_PATH=str(tmp_path / "out"))
    assert seen.status == 1
    assert len(seen.stderr.splitlines()) == 1
    assert (
        "template.conf still has placeholders for MEGATRON_PATH, CONTAINER_IMAGE, ACCOUNT"
        in seen.stderr
    )
    assert not (tmp_path / "out").exists()


def test_without_sbatch_nothing_is_written(tmp_path: Path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "realpath"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    (tools / "python3").chmod(0o755)
    seen = launch(**READY, OUTPUT_PATH=str(tmp_path / "out"), PATH=str(tools))
    assert seen.status == 1
    assert (
        seen.stderr == "error: sbatch is not on PATH: submit from a Slurm login node, "
        "or preview with DRY_RUN=1\n"
    )
    assert not (tmp_path / "out").exists()


def test_objections_stop_a_submission(tmp_path: Path):
    seen = launch(**READY, TP="3", OUTPUT_PATH=str(tmp_path / "out"))
    assert seen.status == 1
    assert "is not a multiple of TP*PP*CP" in seen.stderr
    assert "FORCE=1" in seen.stderr
    assert not (tmp_path / "out").exists()


def test_output_path_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    seen = launch(
        MODEL="DeepSeek-V3", CLUSTER="local", SMOKE="1", OUTPUT_PATH=str(tmp_path / "file" / "out")
    )
    assert seen.status == 1
    assert seen.stderr.startswith("error: OUTPUT_PATH cannot be written: Not a directory: ")
    assert len(seen.stderr.splitlines()) == 1


def test_missing_training_script(tmp_path: Path):
    seen = launch(
        MODEL="DeepSeek-V3",
        CLUSTER="local",
        SMOKE="1",
        MEGATRON_PATH=str(tmp_path),
        OUTPUT_PATH=str(tmp_path / "out"),
    )
    assert seen.status == 1
    assert "pretrain_gpt.py' (default: in MEGATRON_PATH) is not here" in seen.stderr
    assert not (tmp_path / "out").exists()


def test_iteration_lines():
    line = (
        " [2026-01-01 12:00:00.1] iteration        3/      20 | consumed samples:           24 | "
        "elapsed time per iteration (ms): 261.9 | throughput per GPU (TFLOP/s/GPU): 0.5 | learning rate: 3.0E-03 | "
        "global batch size:     8 | lm loss: 5.742400E+00 | loss scale: 1.0 | grad norm: 1.230 | "
    )
    found = training_log.iteration(line)
    assert (found.number, found.total, found.loss, found.tflops) == (3, 20, 5.7424, 0.5)
    assert found.seconds == pytest.approx(0.2619)
    assert training_log.iteration(" > building train, validation, and test datasets ...") is None
    assert training_log.iteration(line.replace("5.742400E+00", "nan")).loss != found.loss


def test_run_directories_are_never_shared(tmp_path: Path):
    path = tmp_path / "out" / "runs" / "a"
    assert directory.create(path) == 0
    assert directory.create(path) == 1
    assert path.with_name(f"{path.name}.1").is_dir()


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    path = tmp_path / "file"
    directory.write(path, "old")
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        directory.write(path, "new")
    assert path.read_text() == "old"
