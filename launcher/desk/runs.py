"""The runs there are: found by their folders and by Slurm's queue, named by folder, name or job."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from launcher import ROOT
from launcher.config import bash_layers
from launcher.errors import UsageError, did_you_mean
from launcher.records import dataclass
from launcher.run import slurm

DEPTH = 4  # of folders between a search's start and `runs`
# Folders of a run's output that hold no other runs.
_NO_RUNS = {"checkpoints", "tensorboard", "slurm_logs", "wandb", "cache", "data_cache"}


@dataclass(frozen=True)
class Run:
    """A run directory, with what it notes of its submission and of its plan."""

    path: Path
    notes: Mapping[str, Any]  # submission.yaml
    plan: Mapping[str, Any]  # plan.json

    @property
    def script(self) -> str:
        """What was submitted."""
        return str(self.path / "job.sh")

    @property
    def is_local(self) -> bool:
        """Whether it ran on this or another machine without Slurm."""
        return "command" in self.notes

    @property
    def jobs(self) -> list[str]:
        """Its Slurm jobs, the first one's id first."""
        links = (one for one in self.path.glob("log.[0-9]*") if one.is_symlink())
        ran = {Path(os.readlink(one)).stem for one in links}
        ids = {job_id for job_id in {*ran, str(self.notes.get("job_id", ""))} if job_id.isdigit()}
        return sorted(ids, key=int)

    @property
    def since(self) -> datetime:
        """When it was submitted or started."""
        for name in ("submitting", "started"):
            try:
                return datetime.strptime(str(self.notes[name]), "%Y-%m-%d %H:%M:%S")
            except (KeyError, ValueError):
                continue
        return datetime.fromtimestamp((self.path / "job.sh").stat().st_mtime)


def read(path: Path) -> Run:
    """Read a run directory. Raises UsageError where the path is none."""
    if not (path / "job.sh").is_file():
        raise UsageError(f"{path} is no run directory: it has no job.sh")
    try:
        notes = path / "submission.yaml"
        known = yaml.safe_load(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
        plan = path / "plan.json"
        planned = json.loads(plan.read_text(encoding="utf-8")) if plan.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return Run(path, known if isinstance(known, dict) else {}, planned)


def all_of(folders: Sequence[Path], queue: Sequence[slurm.Queued]) -> list[Run]:
    """Return the runs below folders and those in Slurm's queue, the newest first."""
    paths = {path for folder in folders for path in _below(folder, DEPTH)}
    paths |= {Path(job.script).parent for job in queue if _is_ours(job)}
    found = [read(path) for path in paths if (path / "job.sh").is_file()]
    return sorted(found, key=lambda run: run.since, reverse=True)


def named(word: str, environ: Mapping[str, str]) -> Run:
    """Return the run that a word names: a run directory, its name, or the id of one of its jobs.

    Raises UsageError.
    """
    path = Path(word)
    if path.is_dir():
        return read(path.resolve())
    queue = asked()
    if word.isdigit():
        for job in queue:
            if job.job_id == word and _is_ours(job):
                return read(Path(job.script).parent)
    known = all_of(places(environ), queue)
    for run in known:
        if word == run.path.name or word in run.jobs:
            return run
    hint = did_you_mean(word, [run.path.name for run in known])
    raise UsageError(
        f"{word!r} is no run: name a run directory, its name, or the id of a job.{hint} "
        "`moe-zoo list runs` shows them (OUTPUT_PATH or CLUSTER says where to look)"
    )


def newest(environ: Mapping[str, str]) -> Run:
    """Return the run that was started last. Raises UsageError where there is none."""
    known = all_of(places(environ), asked())
    if not known:
        raise UsageError(f"no run was found below {', '.join(map(str, places(environ)))}")
    return known[0]


def places(environ: Mapping[str, str]) -> list[Path]:
    """Return where runs are looked for: below OUTPUT_PATH, or the cluster's and our own."""
    if environ.get("OUTPUT_PATH"):
        return [Path(environ["OUTPUT_PATH"]).absolute()]
    found = [ROOT / "output"]
    if environ.get("CLUSTER"):
        found.append(output_root(environ))
    return list(dict.fromkeys(found))


def output_root(environ: Mapping[str, str]) -> Path:
    """Return what the OUTPUT_PATHs of a cluster config have in common, for all models and sizes."""
    model = "Mixtral-8x7B"
    layers, _ = bash_layers.source(bash_layers.ENTRY, [], {**environ, "MODEL": model})
    path = Path(layers.get("OUTPUT_PATH") or ROOT / "output")
    parts = [part for part in (path, *path.parents) if model in part.name]
    return (parts[-1].parent if parts else path).absolute()


def asked() -> list[slurm.Queued]:
    """Return the user's jobs; none where there is no Slurm. Raises UsageError without an answer."""
    if not shutil.which("squeue"):
        return []
    try:
        return slurm.queue()
    except slurm.NoAnswer as error:
        if slurm.unconfigured(str(error)):
            return []
        raise UsageError(f"Slurm does not answer: {error}") from None


def _is_ours(job: slurm.Queued) -> bool:
    script = Path(job.script)
    return script.name == "job.sh" and script.parent.parent.name == "runs"


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the run directories below a folder, down to DEPTH folders."""
    if (folder / "job.sh").is_file():
        yield folder
        return
    entries = list(_folders(folder))
    for entry in entries:
        if entry.name == "runs":
            yield from (run for run in _folders(entry) if (run / "job.sh").is_file())
        elif depth and entry.name not in _NO_RUNS and not entry.name.startswith("."):
            yield from _below(entry, depth - 1)


def _folders(folder: Path) -> Iterable[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(one.path) for one in entries if one.is_dir(follow_symlinks=False))
    except OSError:
        return []
