"""The training program: its script, its Python, and the environment that set-up makes for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from launcher import ROOT
from launcher.config.settings import Settings
from launcher.errors import UsageError

ENTRY = (
    ROOT / "launcher" / "megatron" / "pretrain.py"
)  # trains where a machine lacks GPUs or packages


def script(settings: Settings) -> str | None:
    """Return the script that trains; None where neither a script nor a checkout is set."""
    if settings.TRAINING_SCRIPT_PATH:
        return settings.TRAINING_SCRIPT_PATH
    return f"{settings.MEGATRON_PATH}/pretrain_gpt.py" if settings.MEGATRON_PATH else None


def entry_environment(settings: Settings) -> dict[str, tuple[str, str]]:
    """Return the environment that tells ENTRY which training script and which Megatron to run."""
    trains = script(settings)
    if trains is None:
        return {}
    found = {"TRAINING_SCRIPT_PATH": (trains, "setting")}
    if settings.MEGATRON_PATH:
        found["MEGATRON_PATH"] = (settings.MEGATRON_PATH, "setting")
    return found


def python(settings: Settings) -> tuple[Path, bool]:
    """Return the Python of the training processes, and whether it has what they need.

    This Python is taken where it can import torch and Megatron already, as in a container.
    Otherwise it is the Python that the set-up makes under .venv/training.
    """
    own = Path(settings.WORKSPACE) / ".venv" / "training"
    if (
        sys.version_info >= (3, 12)
        and (settings.MEGATRON_PATH or importlib.util.find_spec("megatron") is not None)
        and importlib.util.find_spec("torch") is not None
    ):
        return Path(sys.executable), True
    return own / "bin" / "python", (own / "installed").is_file()


def set_up(settings: Settings) -> bool:
    """Install what the training processes lack; say whether there was anything.

    Raises UsageError when that fails.
    """
    _, ready = python(settings)
    if not ready:
        import subprocess  # a preview starts nothing

        script = ROOT / "launcher" / "setup.sh"
        if subprocess.run(["bash", str(script), "training"], check=False).returncode != 0:
            raise UsageError(
                "the training environment could not be set up; the lines above say why"
            )
    return not ready


def has_package(python: Path, package: str) -> bool:
    """Say whether an interpreter has a package, without starting the interpreter."""
    return any(python.parent.parent.glob(f"lib*/python3*/*-packages/{package}"))


def installed(python: Path, package: str) -> str | None:
    """Return the version of an interpreter's package, from its dist-info; None without it."""
    pattern = f"lib*/python3*/site-packages/{package}-*.dist-info"
    found = sorted((python.parent.parent).glob(pattern))
    return found[0].name[len(package) + 1 : -len(".dist-info")] if found else None
