"""CLUSTER=local: what this machine has, and the job made to fit it.

Without a GPU the training processes run on the CPU with gloo; what the CPU cannot run is replaced,
and each replacement is one line for the user. Nothing here changes a job for a cluster.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.config.arguments import Argument, Arguments, integer
from launcher.config.settings import Settings
from launcher.errors import UsageError
from launcher.megatron.replacements import ON_THE_CPU, WITHOUT_TRANSFORMER_ENGINE, Replacement

SMOKE_RANKS = 4
ENTRY = Path(__file__).parents[1] / "megatron" / "pretrain.py"
Environment = Mapping[str, tuple[str, str]]  # name → (value, origin)


CPU_FLAGS: Mapping[str, tuple[str, ...]] = {
    "--distributed-backend": ("gloo",),
    "--no-gradient-accumulation-fusion": (),  # Apex's CUDA extension
    "--no-rope-fusion": (),  # Transformer Engine's, and for MLA a Triton kernel
}
# Ranks share the cores; one hardware queue is what Megatron asks for without A2A overlap.
CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


@dataclass(frozen=True)
class Fitted:
    """A job as this machine runs it."""

    arguments: Arguments
    environment: Environment
    program: tuple[str, ...]
    ranks: int
    notes: tuple[str, ...]


def is_local(settings: Settings) -> bool:
    """Say whether the job runs on this machine."""
    return Path(settings.CLUSTER).name in ("local", "local.conf")


def gpus(environ: Mapping[str, str] = os.environ) -> int:
    """Count the NVIDIA GPUs that processes started here would see."""
    devices = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return devices if visible is None else min(devices, sum(map(bool, visible.split(","))))


def ranks_at_most(settings: Settings) -> int:
    """Return how many ranks a smoke run may have."""
    return min(SMOKE_RANKS, gpus() or SMOKE_RANKS) if is_local(settings) else SMOKE_RANKS


def training_python(settings: Settings) -> tuple[Path, bool]:
    """Return the Python of the training processes, and whether it has what they need.

    This Python is taken where it can import torch and Megatron already (in a container, say);
    else the one that set-up makes under .venv/training.
    """
    own = Path(settings.WORKSPACE) / ".venv" / "training"
    has_megatron = settings.MEGATRON_PATH or importlib.util.find_spec("megatron") is not None
    if (
        sys.version_info >= (3, 12)
        and has_megatron
        and importlib.util.find_spec("torch") is not None
    ):
        return Path(sys.executable), True
    return own / "bin" / "python", (own / "installed").is_file()


def set_up(settings: Settings) -> None:
    """Install what the training processes lack. Raises UsageError when that fails."""
    _, ready = training_python(settings)
    if not ready:
        script = Path(settings.WORKSPACE) / "launcher" / "setup.sh"
        if subprocess.run(["bash", str(script), "training"], check=False).returncode != 0:
            raise UsageError(
                "the training environment could not be set up; the lines above say why"
            )


def fit(settings: Settings, arguments: Arguments, environment: Environment) -> Fitted:
    """Return the job for this machine: on its GPUs, or on the CPU with as few ranks as can be."""
    python, _ = training_python(settings)
    devices = gpus()
    ranks = devices or _least_ranks(arguments)
    if settings.SMOKE:
        ranks = _least_ranks(arguments)
    if not devices and ranks > max(SMOKE_RANKS, os.cpu_count() or 1):
        raise UsageError(
            f"{settings.MODEL_NAME} needs {ranks} ranks as it is, and this machine has no GPU: "
            "SMOKE=1 shrinks it, smaller TP, PP, EP and CP make it less"
        )
    fitted = dict(arguments)
    notes: list[str] = []
    if devices and not _has_package(python, "transformer_engine"):
        notes += _replace(fitted, WITHOUT_TRANSFORMER_ENGINE)
    if not devices:
        fitted, environment, notes = on_the_cpu(settings, arguments, environment)
    for name in ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        # Their defaults lie in the home directory or /tmp.
        environment = {
            **environment,
            name: (f"{settings.OUTPUT_PATH}/cache/{name.lower()}", "local"),
        }
    entry = entry_environment(settings)
    if entry and not Path(script := entry["TRAINING_SCRIPT_PATH"][0]).is_file():
        raise UsageError(f"TRAINING_SCRIPT_PATH={script!r} (default: in MEGATRON_PATH) is not here")
    environment = {**environment, **entry}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    return Fitted(
        fitted, environment, (str(python), "-u", *torchrun, str(ENTRY)), ranks, tuple(notes)
    )


def on_the_cpu(
    settings: Settings, arguments: Arguments, environment: Environment
) -> tuple[dict[str, Argument], Environment, list[str]]:
    """Return arguments and environment for processes without GPUs, and what was replaced."""
    fitted = dict(arguments)
    notes = [*_replace(fitted, WITHOUT_TRANSFORMER_ENGINE), *_replace(fitted, ON_THE_CPU)]
    _add(fitted, CPU_FLAGS)
    if settings.WANDB_MODE == "disabled":
        # Importing wandb takes seconds in every process, to record nothing.
        for flag in ("--wandb-project", "--wandb-exp-name", "--wandb-save-dir"):
            fitted.pop(flag, None)
    return (
        fitted,
        {**environment, **{name: (text, "CPU") for name, text in CPU_ENVIRONMENT.items()}},
        notes,
    )


def training_script(settings: Settings) -> str | None:
    """Return the script that trains; None where neither it nor a checkout is named."""
    if settings.TRAINING_SCRIPT_PATH:
        return settings.TRAINING_SCRIPT_PATH
    return f"{settings.MEGATRON_PATH}/pretrain_gpt.py" if settings.MEGATRON_PATH else None


def entry_environment(settings: Settings) -> Environment:
    """Return what tells ENTRY which training script and which Megatron to run."""
    script = training_script(settings)
    if script is None:
        return {}
    found = {"TRAINING_SCRIPT_PATH": (script, "setting")}
    if settings.MEGATRON_PATH:
        found["MEGATRON_PATH"] = (settings.MEGATRON_PATH, "setting")
    return found


def _least_ranks(arguments: Arguments) -> int:
    size = partial(integer, arguments)
    tp, pp = size("--tensor-model-parallel-size"), size("--pipeline-model-parallel-size")
    etp, ep = size("--expert-tensor-parallel-size", tp), size("--expert-model-parallel-size")
    return math.lcm(tp * pp * size("--context-parallel-size"), etp * ep * pp)


def _has_package(python: Path, package: str) -> bool:
    return any(python.parent.parent.glob(f"lib*/python3*/*-packages/{package}"))


def installed(python: Path, package: str) -> str | None:
    """Read a package's version from its dist-info beside the interpreter, without starting it."""
    pattern = f"lib*/python3*/site-packages/{package}-*.dist-info"
    found = sorted((python.parent.parent).glob(pattern))
    return found[0].name[len(package) + 1 : -len(".dist-info")] if found else None


def _replace(arguments: dict[str, Argument], replacements: tuple[Replacement, ...]) -> list[str]:
    """Apply replacements to arguments in place; return a line for each that changed something."""
    notes = []
    for replacement in replacements:
        found = [flag for flag in replacement.flags if flag in arguments]
        if not found or (replacement.instead and arguments[found[0]].values == replacement.instead):
            continue
        before = " ".join(" ".join(arguments[flag].words()) for flag in found)
        for flag in found:
            if replacement.instead is None:
                del arguments[flag]
            else:
                arguments[flag] = Argument(flag, replacement.instead, "CLUSTER=local")
        after = f"{found[0]} {' '.join(replacement.instead)}" if replacement.instead else "nothing"
        notes.append(f"replaced: {before} → {after} ({replacement.reason})")
    return notes


def _add(arguments: dict[str, Argument], flags: Mapping[str, tuple[str, ...]]) -> None:
    for flag, values in flags.items():
        arguments[flag] = Argument(flag, values, "CLUSTER=local")
