"""`moe-zoo version`: what is here, for a report of a fault."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Sequence

import jinja2
import yaml

from launcher import ROOT
from launcher.config import releases
from launcher.errors import UsageError
from launcher.job import training
from launcher.run import directory, slurm


def version(words: Sequence[str]) -> int:
    """Print the versions of the launcher and of what it uses."""
    if words:
        raise UsageError(f"version takes no words; given: {' '.join(words)}")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    number = re.search(r'^version = "(.*)"', project, re.MULTILINE)
    git = directory.git(ROOT)
    state = f"commit {git['commit']}{', changed' if git.get('dirty') else ''}"
    print(f"megatron-moe-model-zoo {number[1] if number else '?'}, {state}")
    print(f"  folder         {ROOT}")
    print(
        f"  python         {platform.python_version()}, "
        f"PyYAML {yaml.__version__}, Jinja2 {jinja2.__version__}"
    )
    print(f"  megatron-core  arguments of {', '.join(releases.SUPPORTED)}")
    python = ROOT / ".venv" / "training" / "bin" / "python"
    packages = (training.installed(python, name) for name in ("megatron_core", "torch"))
    here = ", ".join(
        f"{name} {found}" for name, found in zip(("megatron-core", "torch"), packages) if found
    )
    print(f"  installed      {here or 'nothing for CLUSTER=local yet'}")
    print(f"  slurm          {_slurm()}")
    return 0


def _slurm() -> str:
    if not shutil.which("sinfo"):
        return "not on this machine"
    try:
        return slurm.run(["sbatch", "--version"], slurm.ASK_SECONDS).strip()
    except (slurm.Refused, slurm.NoAnswer) as error:
        return f"does not answer: {error}"
