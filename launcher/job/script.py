"""The text of a job's script: one pure function, the same for the preview and the submission."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

from launcher import secrets
from launcher.config.arguments import Arguments, quote, value
from launcher.config.parallelism import FLAG_OF
from launcher.job import checkpoints, container, loading, sbatch, shell, weights
from launcher.job.draft import Job

TEMPLATES = Path(__file__).parent / "templates"


def render(job: Job) -> str:
    """Return the job script. Raises UsageError when a value cannot be part of it."""
    settings = job.settings
    shared = {
        "title": _title(job),
        "environment": [(name, text) for name, (text, _) in sorted(job.environment.items())],
    }
    if job.is_local:
        lines = _lines(job.program, job.arguments)
        return _template("local.sh.j2").render(command_lines=lines, **shared)
    starts = sbatch.starts(job.arguments)
    return _template("slurm.sh.j2").render(
        settings=settings,
        sbatch=job.sbatch,
        command_lines=_lines(job.program, starts.common),
        first_lines=_lines((), starts.first),
        later_lines=_lines((), starts.later),
        **_checkpoints(job),
        kept=[*shell.PERSON, *job.secrets, *shell.OF_THE_JOB],
        # Every job has variables of Slurm's own, which say nothing of the shell.
        heeded=[name for name in shell.HEEDED if name != "SLURM*"],
        secret_words=secrets.WORDS,
        masks=[f"s,{secrets.IN_URL},\\1***@,g", f"s,{secrets.IN_PROXY},\\1***@,"],
        # In a container the image has its own.
        path=None if settings.CONTAINER_RUNTIME == "pyxis" else job.search_path,
        nodes=job.nodes,
        tasks_per_node=job.tasks_per_node,
        distribution=sbatch.chosen(job, "distribution") or "block",
        srun_options=[*sbatch.for_srun(job), *container.srun_options(settings, str(job.run_dir))],
        prefix=container.prefix(settings),
        setup=settings.NODE_SETUP_PATH,
        trains=not any(flag in job.arguments for flag in ("--ckpt-convert-save", "--skip-train")),
        run_dir=str(job.run_dir),
        **shared,
    )


def _checkpoints(job: Job) -> dict[str, object]:
    """Return what the script is told of the folders that the job loads from and saves to."""
    settings = job.settings
    load, save = loading.folder(job, "--load"), loading.folder(job, "--save")
    sizes = loading.sizes(job)
    unseen = load is not None and container.on_no_mount(settings, str(load))
    needs = loading.needed(job, job.plan) if load not in (None, save) else {}
    return {
        "needs": json.dumps(needs, separators=(",", ":")) if needs else None,
        "weights": Path(weights.__file__).read_text(encoding="utf-8") if needs else None,
        "tolerant": loading.TOLERANT,
        "load": str(load) if load is not None and not unseen else None,
        "save": str(save) if save is not None else None,
        "step": value(job.arguments, "--ckpt-step"),
        "sizes": sizes,
        "legacy": f"{checkpoints.last_legacy_folder(sizes)}/{checkpoints.LEGACY_FILE}",
        "fsdp": value(job.arguments, "--ckpt-format") in ("torch_dcp", "fsdp_dtensor"),
        "takes_over": settings.RESUME or settings.FORCE or (load is not None and load == save),
    }


def _title(job: Job) -> str:
    sizes = ("TP", "PP", "EP", "CP")
    words = " ".join(f"{name}{value(job.arguments, FLAG_OF[name]) or 1}" for name in sizes)
    kind = " (smoke)" if job.settings.SMOKE else ""
    title = f"{job.settings.MODEL_NAME}{kind}: {job.world_size} ranks, {words}"
    return re.sub(r"[^\x20-\x7e]", "?", title)


def _lines(program: Sequence[str], arguments: Arguments) -> list[str]:
    """Return a command as lines of a Bash array, with one flag on each line."""
    lines = [list(program), *(argument.words() for argument in arguments.values())]
    return [" ".join(quote(word) for word in line) for line in lines if line]


class _Bytecode(jinja2.BytecodeCache):
    """The templates' bytecode, kept where Python keeps that of a module; optional, as there."""

    def load_bytecode(self, bucket: Bucket) -> None:
        unusable = contextlib.suppress(OSError, EOFError, ValueError, pickle.UnpicklingError)
        with unusable, open(_place(bucket), "rb") as file:
            bucket.load_bytecode(file)  # of another Python or another text, it loads nothing

    def dump_bytecode(self, bucket: Bucket) -> None:
        if sys.dont_write_bytecode:
            return
        place = _place(bucket)
        temporary = f"{place}.{os.getpid()}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(temporary, "wb") as file:
                bucket.write_bytecode(file)
            os.replace(temporary, place)


def _place(bucket: Bucket) -> str:
    return importlib.util.cache_from_source(str(TEMPLATES / f"{bucket.key}.j2"))


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        bytecode_cache=_Bytecode(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Bash; every value passes through `quote`
    )
    environment.filters["quote"] = quote
    return environment.get_template(name)
