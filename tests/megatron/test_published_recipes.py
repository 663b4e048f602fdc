"""Megatron itself accepts every published recipe, at its true world size."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

ROOT = Path(__file__).resolve().parents[2]
VERIFY = ROOT / "launcher" / "megatron" / "verify.py"
GOLDEN = {path.stem: path for path in sorted((ROOT / "tests" / "golden").glob("*.sh"))}


def job(name: str, text: str) -> dict[str, Any]:
    """The verifier's job from a rendered script."""
    nodes, tasks = (
        int(re.search(rf"--{key}=(\d+)", text)[1]) for key in ("nodes", "ntasks-per-node")
    )
    command = shlex.split(re.search(r"training_command=\((.*?)\n\)", text, re.DOTALL)[1])
    script = next(i for i, word in enumerate(command) if word.endswith("pretrain_gpt.py"))
    exports = (
        shlex.split(line)[0] for line in re.findall(r"^export (\w+=.*)$", text, re.MULTILINE)
    )
    return {
        "name": name,
        "argv": command[script + 1 :],
        "world_size": nodes * tasks,
        "environment": dict(entry.split("=", 1) for entry in exports),
        "compute_capability": [9, 0] if "h100" in name else [10, 0],
        "build": "ends",
    }


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, Any]]:
    """All recipes judged by one process, so that Megatron is imported once."""
    jobs = [job(name, path.read_text(encoding="utf-8")) for name, path in GOLDEN.items()]
    done = subprocess.run(
        [sys.executable, str(VERIFY)],
        input="".join(json.dumps(each) + "\n" for each in jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {verdict["name"]: verdict for verdict in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_recipe_is_accepted(name: str, verdicts: dict) -> None:
    assert verdicts[name]["accepted"], verdicts[name]["message"]
