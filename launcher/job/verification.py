"""VERIFY=1: let Megatron itself check the job, on this machine and without GPUs.

launcher/megatron/verify.py is the judge. It runs Megatron's parser, validation, configuration and
process groups at the true world size, and on the meta device what one rank of every pipeline stage
starts with: the model, its gradients' buffers, the optimizer and the learning rate's schedule.
This module compares the verdict with the plan.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import field
from typing import Any

from launcher import ROOT
from launcher.config import releases
from launcher.config.arguments import argv
from launcher.config.gpus import GPUS
from launcher.errors import UsageError
from launcher.job import training
from launcher.job.draft import Job
from launcher.records import dataclass

JUDGE = ROOT / "launcher" / "megatron" / "verify.py"
# The judge follows the arguments and builders of these releases; older ones differ.
JUDGED = ("0.19", "dev")


@dataclass(frozen=True)
class Opinion:
    """Megatron's verdict on a job, and where the plan differs from it."""

    megatron: str  # which Megatron was asked
    accepted: bool
    refused_by: str | None  # parser, validate_args, configuration, groups or model
    message: str  # Megatron's own message where it refuses
    stages: int  # pipeline stages whose parameters were counted
    left_out: tuple[str, ...]  # flags that the model was built without, or with another value
    not_built: tuple[str, ...]  # parts of the start that were not built
    differences: tuple[str, ...]
    seconds: float = field(compare=False)

    @property
    def agrees(self) -> bool:
        """Whether Megatron accepts the job, and the plan agrees with Megatron."""
        return self.accepted and not self.differences

    @property
    def refuses(self) -> bool:
        """Whether Megatron refuses the job, or the plan differs from Megatron.

        A check that could not finish is no refusal.
        """
        return self.refused_by is not None or bool(self.differences)

    def lines(self) -> list[str]:
        """Return the opinion for a reader."""
        verdict = (
            f"accepts the job and has the plan's parameters on all {self.stages} stages"
            if self.agrees
            else "accepts the job"
            if self.accepted
            else f"refuses the job ({self.refused_by}): {self.message}"
            if self.refused_by
            else f"could not finish its check: {self.message}"
        )
        built = (
            f"it parsed, validated and grouped the whole job, and built {self.stages} stages with "
            "gradient buffers, optimizer and learning rate schedule"
        )
        left_out = (*self.left_out, *self.not_built)
        without = f", without {', '.join(left_out)}" if left_out else ""
        return [
            f"{self.megatron} itself {verdict} ({self.seconds:.0f} s)",
            *([f"{built}{without}; nothing was run"] if self.accepted else []),
            *(f"error: the plan differs: {line}" for line in self.differences),
        ]


def wanted(job: Job) -> Opinion | None:
    """Return Megatron's opinion where VERIFY=1 asks for it. Raises UsageError as `ask` does."""
    if not job.settings.VERIFY:
        return None
    print("VERIFY=1: Megatron-Core itself reads the job (imports, then stages) …", file=sys.stderr)
    return ask(job)


def before_submission(job: Job) -> Opinion | None:
    """Return Megatron's opinion of a job that is about to be submitted.

    Where VERIFY is not set, Megatron is asked about a job of full size, if it is installed here.
    VERIFY=0 turns that off. Raises UsageError as `ask` does, but only with VERIFY=1.
    """
    settings = job.settings
    if settings.VERIFY:
        return wanted(job)
    decided = settings.origin("VERIFY") != "unset"
    small = job.is_local or settings.SMOKE or settings.GPU == "none"
    if decided or small or job.objections or not _is_here(job):
        return None
    print("Megatron-Core itself reads the job first (VERIFY=0 leaves that out) …", file=sys.stderr)
    try:
        return ask(job)
    except UsageError as error:
        print(f"note: {error}", file=sys.stderr)
        return None


def _is_here(job: Job) -> bool:
    """Say whether the release's Megatron can be asked here without installing anything."""
    settings = job.settings
    release = releases.SUPPORTED[releases.index(settings.MCORE_RELEASE_VERSION)]
    python, ready = training.python(settings)
    if release not in JUDGED or not ready:
        return False
    has = training.installed(python, "megatron_core") or ""
    return os.path.isdir(settings.MEGATRON_PATH or "") or has.startswith(f"{release}.")


def ask(job: Job) -> Opinion:
    """Let Megatron judge a job. Raises UsageError where it cannot be asked here."""
    settings = job.settings
    release = releases.SUPPORTED[releases.index(settings.MCORE_RELEASE_VERSION)]
    if release not in JUDGED:
        raise UsageError(
            f"VERIFY=1 asks Megatron-Core {' or '.join(JUDGED)}; this job is for "
            f"MCORE_RELEASE_VERSION={settings.MCORE_RELEASE_VERSION}"
        )
    training.set_up(settings)
    python, _ = training.python(settings)
    checkout = settings.MEGATRON_PATH or ""
    here = os.path.isdir(checkout) and bool(checkout)
    has = training.installed(python, "megatron_core") or "of this Python"
    if not here and release not in (".".join(has.split(".")[:2]), "of this Python"):
        raise UsageError(
            f"VERIFY=1 has Megatron-Core {has} to ask; for {release} set MEGATRON_PATH to a "
            "checkout that this machine can read"
        )
    request = {
        "name": job.name,
        "argv": argv(job.arguments),
        "world_size": job.world_size,
        "environment": {name: text for name, (text, _) in job.environment.items()},
        "compute_capability": GPUS.get(settings.GPU or "", GPUS["H100"]).capability,
        "build": "all",
    }
    import subprocess  # a preview starts nothing

    done = subprocess.run(
        [str(python), str(JUDGE)],
        input=json.dumps(request) + "\n",
        env={**os.environ, "PYTHONPATH": checkout} if here else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise UsageError(f"VERIFY=1: Megatron could not be asked: {_last_line(done.stderr)}")
    verdict = json.loads(done.stdout.splitlines()[-1])
    return Opinion(
        megatron=f"Megatron in {checkout}" if here else f"Megatron-Core {has}",
        accepted=verdict["accepted"],
        refused_by=verdict["refused_by"],
        message=verdict["message"],
        stages=len(verdict["stages"]),
        left_out=tuple(verdict["left_out"]),
        not_built=tuple(verdict["not_built"]),
        differences=tuple(_differences(job, verdict)),
        seconds=verdict["seconds"],
    )


def _differences(job: Job, verdict: dict[str, Any]) -> list[str]:
    """Return where plan and Megatron disagree: on the job, or on a stage's parameters."""
    if not verdict["accepted"] and verdict["refused_by"] is None:
        return []  # a package or a GPU is missing here, which says nothing of the job
    if verdict["accepted"] != (not job.objections):
        return ["it finds no error" if not verdict["accepted"] else "it refuses the job"]
    if not verdict["accepted"]:
        return []
    if job.plan.shaped is None or "parameters" in job.plan.shaped.unknown:
        return []
    found = []
    for stage, count in zip(verdict["stages"], job.plan.shaped.counts):
        if stage["parameters"] != count.total:
            found.append(
                f"stage {stage['pipeline_rank']} has {stage['parameters']} parameters in "
                f"Megatron, {count.total} in the plan"
            )
    return found


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
