"""A job while it is being put together, and the finished one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config.arguments import Arguments, argv
from launcher.config.settings import Settings
from launcher.plan import Finding
from launcher.plan.plan import Plan, Site
from launcher.plan.projection import calibration
from launcher.records import dataclass

Environment = Mapping[str, tuple[str, str]]  # name → (value, origin)


@dataclass(frozen=True)
class Draft:
    """What is decided so far. Each step of build.py returns a new draft."""

    settings: Settings
    written: Arguments  # by the model's YAML and TRAINING_PARAMS
    command_line: Arguments
    arguments: Arguments  # all of Megatron's, resolved
    environment: Environment  # of the training processes
    program: tuple[str, ...]  # the words before Megatron's arguments
    nodes: int
    tasks_per_node: int
    name: str
    run_dir: Path
    search_path: str  # PATH of the launching shell
    sbatch: tuple[str, ...]  # options of the job script
    secrets: tuple[str, ...]  # names of the variables that the job inherits and no file holds
    doubts: tuple[str, ...]  # variables that may be misspelt
    notes: tuple[str, ...]  # what the user should know
    findings: tuple[Finding, ...]  # what is wrong with it, beside what its plan finds

    @property
    def world_size(self) -> int:
        """Number of training processes; each has one GPU."""
        return self.nodes * self.tasks_per_node

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, without Slurm."""
        return Path(self.settings.CLUSTER).name in ("local", "local.conf")

    @property
    def gpu(self) -> str | None:
        """The kind of GPU; None without GPUs, and on this machine, whose GPUs are unknown."""
        return None if self.is_local or self.settings.GPU == "none" else self.settings.GPU

    def change(self, *notes: str, **fields: Any) -> Draft:
        """Return a draft with other values in these fields, and further notes."""
        return dataclasses.replace(self, **fields, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Job(Draft):
    """The finished job, from which the script, the preview and the run directory are made."""

    plan: Plan

    @property
    def objections(self) -> tuple[str, ...]:
        """Why it cannot work."""
        return tuple(each.message for each in self.found if each.severity == "error")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why it surely does not work as it was meant."""
        return tuple(each.message for each in self.found if each.severity == "warning")

    @property
    def found(self) -> tuple[Finding, ...]:
        """Everything that is wrong with it."""
        return (*self.findings, *self.plan.findings)

    @property
    def site(self) -> Site:
        """Where it runs, as the plan sees it."""
        return Site(
            self.settings.MODEL_NAME,
            self.nodes,
            self.tasks_per_node,
            self.gpu,
            bound=bool(self.settings.BINDPCIE_PATH),
            calibration=Path(self.settings.OUTPUT_PATH) / calibration.FILE,
        )

    @property
    def command(self) -> list[str]:
        """The words that each training process (or torchrun, locally) is started with."""
        return [*self.program, *argv(self.arguments)]
