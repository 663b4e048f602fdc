"""Every shell script and Python file passes its linters; pre-commit calls the same ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.launching import ROOT

TOOLS = Path(sys.executable).parent


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def clean(tool: str, *words: str) -> None:
    done = subprocess.run(
        [str(TOOLS / tool), *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


SHELL = [
    name for name in tracked("*.sh", "*.conf", ".ci/run") if not name.startswith("tests/golden/")
]


def test_shell_files_are_found():
    assert {"sbatch_benchmarking.sh", "launcher/setup.sh", ".ci/run", "tests/run.sh"} <= set(SHELL)


@pytest.mark.parametrize("name", SHELL)
def test_shellcheck(name: str):
    clean("shellcheck", "--external-sources", name)


def test_shfmt():
    clean("shfmt", "-i", "2", "-d", *SHELL)


def test_ruff():
    clean("ruff", "check", ".")
    clean("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_pyright():
    clean("pyright", "--pythonpath", sys.executable)


def test_python_of_the_launcher_is_old_enough():
    """What a login node runs must be read by Python 3.9."""
    for name in tracked("launcher/*.py"):
        if not name.startswith(("launcher/megatron/", "launcher/convert/")):
            ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 9))


def test_pre_commit_calls_the_same_tools():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    called = {hook["entry"].split()[0] for hook in hooks}
    assert called == {
        f".venv/training/bin/{tool}" for tool in ("ruff", "shellcheck", "shfmt", "pyright")
    }
    assert all((ROOT / tool).is_file() for tool in called)
