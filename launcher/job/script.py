"""The text of a job's script: one pure function, the same for the preview and the submission."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from launcher.config.arguments import Arguments, quote, value
from launcher.config.parallelism import FLAG_OF
from launcher.config.settings import SECRETS
from launcher.errors import UsageError
from launcher.job import container, sbatch
from launcher.job.draft import Job


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
        save=value(job.arguments, "--save"),
        srun_options=container.srun_options(settings),
        prefix=container.prefix(settings),
        run_dir=str(job.run_dir),
        **shared,
    )


def check_secrets(text: str, environ: Mapping[str, str]) -> None:
    """Raise UsageError when the text of a script holds the value of a secret."""
    for name in SECRETS:
        secret = environ.get(name, "")
        if len(secret) >= 8 and secret in text:
            raise UsageError(
                f"the value of {name} would become part of the job script; "
                "keep it in the environment only"
            )


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


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Bash; every value passes through `quote`
    )
    environment.filters["quote"] = quote
    return environment.get_template(name)
