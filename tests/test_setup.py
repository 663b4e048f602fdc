"""Set-up on a machine that lacks something."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import venv
from pathlib import Path

import pytest

from tests.support.launching import ROOT, launch


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository without anything that was set up."""
    copy = tmp_path / "zoo"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv", "output", "*_cache", "__pycache__"),
    )
    return copy


@pytest.mark.slow
def test_launcher_alone_installs_two_packages_and_writes_nothing_elsewhere(
    checkout: Path, tmp_path: Path
):
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        "MODEL": "DeepSeek-V3",
        "DRY_RUN": "1",
        "PATH": f"{bare}/bin:{os.environ['PATH']}",
        "HOME": str(home),
    }
    first = launch(script=checkout / "sbatch_benchmarking.sh", **variables)
    assert first.status == 0, first.stderr
    assert (
        "Set-up: python3 lacks PyYAML or Jinja2; installing into .venv/launcher (once)"
        in first.stderr
    )
    assert first.stdout.startswith("=== DRY RUN")
    packages = {
        path.name.lower() for path in (checkout / ".venv/launcher").glob("lib/*/site-packages/*")
    }
    assert {"yaml", "jinja2"} <= packages
    assert "torch" not in packages
    # pip asks rustc for its version, and rustup makes a note of its own where it is installed.
    written = [path for path in home.rglob("*") if path.is_file() and ".rustup" not in path.parts]
    assert not written
    second = launch(script=checkout / "sbatch_benchmarking.sh", **variables)
    assert "Set-up" not in second.stderr
    assert second.stdout == first.stdout


def test_nothing_is_installed_where_python_has_the_libraries(checkout: Path):
    seen = launch(script=checkout / "sbatch_benchmarking.sh", MODEL="DeepSeek-V3", DRY_RUN="1")
    assert seen.status == 0, seen.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all(tmp_path: Path):
    for name in ("bash", "dirname", "realpath"):
        (tmp_path / name).symlink_to(shutil.which(name))
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", PATH=str(tmp_path))
    if not (ROOT / ".venv/launcher/bin/python").exists():
        assert (seen.status, seen.stderr) == (
            1,
            "error: python3 is not on PATH; Python 3.9 or newer is needed\n",
        )


@pytest.mark.slow
def test_no_python_for_training_is_one_line(checkout: Path, tmp_path: Path):
    """Neither PATH nor pyenv has a wanted version, and the stand-in uv cannot fetch one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "realpath", "sed", "grep", "mkdir", "flock", "tr", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("python3", "uv"):
        (tools / name).write_text("#!/bin/bash\nexit 1\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(checkout / "launcher/setup.sh"), "training"],
        env={"PATH": str(tools), "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: Megatron-Core needs Python 3.12 or 3.13: install one" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process_behind(number: signal.Signals, tmp_path: Path):
    marker = f"{tmp_path}/out"
    process = subprocess.Popen(
        ["bash", str(ROOT / "sbatch_benchmarking.sh"), "--train-iters", "2000"],
        env={
            **os.environ,
            "MODEL": "Mixtral-8x2B",
            "CLUSTER": "local",
            "SMOKE": "1",
            "OUTPUT_PATH": marker,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = ""
    for line in process.stderr:
        seen += line
        if line.startswith("iteration 2/"):
            process.send_signal(number)
    assert process.wait() == 128 + number, seen
    assert "interrupted\n" in seen
    time.sleep(1)
    listed = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert not [line for line in listed.splitlines() if marker in line and "pretrain.py" in line]
