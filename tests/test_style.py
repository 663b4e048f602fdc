"""Every shell script and Python file passes its linters; nothing names a machine's own paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_python_of_the_launcher_is_old_enough():
    """What a login node runs must be read by Python 3.9, and never import torch."""
    for name in tracked("launcher/*.py"):
        if name.startswith(("launcher/megatron/", "launcher/convert/")):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        ast.parse(text, feature_version=(3, 9))
        assert not re.search(r"^\s*(import|from) (torch|megatron)\b", text, re.MULTILINE), name
