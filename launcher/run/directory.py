"""The directory of one run: what was launched, with what, and what became of it.

job.sh              the script, as submitted
plan.txt, plan.json  what was known of the job before it started
arguments.yaml      every Megatron argument with the place that set it
environment.yaml    the settings and the training processes' environment, without secrets
versions.yaml       git commits (and whether dirty), megatron-core, torch
submission.yaml     what was done with the script and how it ended
log                 the output; on Slurm a link to the newest log.N
log.1, log.2 …      on Slurm the logs of the run's jobs, links into OUTPUT_PATH/slurm_logs
started, failure    when the first job started, and how the last one failed (RESUBMIT)
"""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from launcher.config import releases
from launcher.config.settings import FIELDS
from launcher.errors import UsageError
from launcher.job import training
from launcher.job.draft import Job
from launcher.job.summary import as_json, summary
from launcher.secrets import SECRETS


def create(path: Path) -> int:
    """Make a new run directory and its parents; where the name is taken, `path`.1, `path`.2, ….

    Returns the number that was appended, 0 for none. Raises UsageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent.parent / "slurm_logs").mkdir(exist_ok=True)
        for number in itertools.count():
            free = path.with_name(f"{path.name}.{number}") if number else path
            try:
                free.mkdir()
                return number
            except FileExistsError:
                if not free.is_dir():
                    raise UsageError(f"OUTPUT_PATH cannot be used: {free} is in the way") from None
    except OSError as error:
        raise UsageError(
            f"OUTPUT_PATH cannot be written: {error.strerror}: {error.filename}"
        ) from None
    raise AssertionError("numbers do not end")


def fill(job: Job, script: str) -> None:
    """Write everything that is known before the start."""
    write(job.run_dir / "job.sh", script)
    write(job.run_dir / "plan.txt", summary(job, everything=True) + "\n")
    write(job.run_dir / "plan.json", as_json(job) + "\n")
    (job.run_dir / "job.sh").chmod(0o777 & ~_umask())
    arguments = {
        argument.flag: {"values": list(argument.values), "origin": argument.origin}
        for argument in job.arguments.values()
    }
    _write_yaml(
        job.run_dir / "arguments.yaml", {"program": list(job.program), "arguments": arguments}
    )
    settings = {
        name: {"value": given, "origin": job.settings.origin(name)}
        for name in FIELDS
        if name not in SECRETS and (given := getattr(job.settings, name)) is not None
    }
    environment = {
        name: {"value": text, "origin": origin} for name, (text, origin) in job.environment.items()
    }
    _write_yaml(
        job.run_dir / "environment.yaml", {"settings": settings, "environment": environment}
    )
    note_versions(job)


def note_versions(job: Job) -> None:
    """Write the versions; once more after a set-up, which brings some."""
    _write_yaml(job.run_dir / "versions.yaml", versions(job))


def record(job: Job, **facts: Any) -> None:
    """Note what was done with the script, and later how it ended."""
    note(job.run_dir, **facts)


def note(run_dir: Path, **facts: Any) -> None:
    """Add facts to a run's submission.yaml."""
    path = run_dir / "submission.yaml"
    known = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    _write_yaml(path, {**known, **facts})


def versions(job: Job) -> dict[str, Any]:
    """Return what can be read here of the versions that the job uses."""
    found: dict[str, Any] = {"launcher": git(Path(job.settings.WORKSPACE))}
    if job.settings.MEGATRON_PATH:
        path = Path(job.settings.MEGATRON_PATH)
        found["megatron-lm"] = git(path) if os.path.isdir(path) else "inside the container"
        found["megatron-core"] = releases.version_of(path)
    python = next(
        (Path(word) for word in job.program if Path(word).name.startswith("python")), None
    )
    if python is not None and python.is_absolute():
        for package in ("megatron_core", "torch", "transformer_engine"):
            version = training.installed(python, package)
            if version:
                found.setdefault(package.replace("_", "-"), version)
    if job.settings.CONTAINER_IMAGE and not python:
        found["container"] = job.settings.CONTAINER_IMAGE
    return found


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(handle, 0o666 & ~_umask())
    os.replace(temporary, path)


def _umask() -> int:
    """Return the process's umask, which decides who may read a run; no file of it has a secret."""
    os.umask(mask := os.umask(0o077))
    return mask


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    write(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000))


def git(path: Path) -> dict[str, Any]:
    """Return the commit of a checkout, and whether it has changes that are in none."""

    def run(*words: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(path), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = run("rev-parse", "HEAD")
    except FileNotFoundError:
        return {"commit": "unknown: git is not installed"}
    return (
        {"commit": commit, "dirty": bool(run("status", "--porcelain"))}
        if commit
        else {"commit": "not a git checkout"}
    )
