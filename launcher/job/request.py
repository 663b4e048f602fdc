"""A launch request: everything is read before the first step, so that the steps are pure."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.config import misspelt, model_file
from launcher.config.model_file import Model
from launcher.config.releases import release_of
from launcher.config.settings import Settings
from launcher.job import training
from launcher.records import dataclass


@dataclass(frozen=True)
class Machine:
    """What this machine has for training processes."""

    gpus: int  # NVIDIA GPUs that processes started here would see
    cpus: int
    python: Path  # the Python that they run in
    transformer_engine: bool  # whether that Python has Transformer Engine


@dataclass(frozen=True)
class Request:
    """One launch: the user's settings and words, and what was found on this machine."""

    settings: Settings
    words: tuple[str, ...]  # the command line
    environ: Mapping[str, str]
    model: Model
    machine: Machine
    folder: str  # the working directory
    release: str | None  # of Megatron-Core in MEGATRON_PATH; None where it is unknown
    script_is_here: bool  # whether this machine sees the training script
    doubts: tuple[str, ...]  # variables that may be misspelt
    stamp: str  # the time in the job's name, YYMMDD_HHMMSS
    number: int = 0  # above 0 where another launch of the same second has the name


def read(settings: Settings, words: Sequence[str], environ: Mapping[str, str]) -> Request:
    """Read what a job is made from: the model's YAML, this machine, the clock.

    Raises UsageError for an unknown model, an unreadable YAML, and a misspelt variable.
    """
    script = training.script(settings)
    checkout = settings.MEGATRON_PATH
    return Request(
        settings=settings,
        words=tuple(words),
        environ=environ,
        model=model_file.load(model_file.find(settings), Path(settings.WORKSPACE)),
        machine=look(settings, environ),
        folder=os.getcwd(),
        release=release_of(Path(checkout)) if checkout else None,
        script_is_here=script is not None and os.path.isfile(script),
        doubts=tuple(misspelt.notes(environ)),
        stamp=_stamp(settings),
    )


def renew(request: Request) -> Request:
    """Return the same launch with the present time, because a sweep submits long after planning."""
    return dataclasses.replace(request, stamp=_stamp(request.settings))


def look(settings: Settings, environ: Mapping[str, str]) -> Machine:
    """Look at what this machine has."""
    devices = sum(name[:6] == "nvidia" and name[6:].isdigit() for name in os.listdir("/dev"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = min(devices, sum(map(bool, visible.split(","))))
    python, _ = training.python(settings)
    return Machine(
        gpus=devices,
        cpus=os.cpu_count() or 1,
        python=python,
        transformer_engine=training.has_package(python, "transformer_engine"),
    )


def _stamp(settings: Settings) -> str:
    return settings.TIMESTAMP or time.strftime("%y%m%d_%H%M%S")
