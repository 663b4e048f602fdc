"""The commands of `python -m launcher`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence

from launcher.config import bash_layers, settings
from launcher.config.arguments import argv
from launcher.config.settings import LAYER_ORIGINS
from launcher.errors import UsageError, did_you_mean
from launcher.job import build
from launcher.job.summary import explain, report
from launcher.plan import flags
from launcher.run import start
from launcher.sweep import sweep


def main(words: Sequence[str]) -> int:
    """Run one command, return its exit status; a UsageError is one line on stderr and status 1."""
    command, *rest = words or ["help"]
    try:
        if command not in COMMANDS:
            hint = did_you_mean(command, COMMANDS)
            raise UsageError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}.{hint}")
        return COMMANDS[command](rest)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has gone (… | head); that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _help(_words: Sequence[str]) -> int:
    for name, function in COMMANDS.items():
        print(f"python -m launcher {name:10} {(function.__doc__ or '').splitlines()[0]}")
    return 0


def _settings(_words: Sequence[str]) -> int:
    """Print the table of all variables, in Markdown."""
    print(settings.table())
    return 0


def _arguments(words: Sequence[str]) -> int:
    """Print the job's Megatron arguments, resolved, one a line, with the place that set each."""
    described = build.build(_read("arguments", words), words, os.environ)
    print(explain(described))
    return 0


def _argv(words: Sequence[str]) -> int:
    """Print the job for other programs: a JSON object of argv, world_size and release.

    Raises UsageError where the release's parser would refuse an argument.
    """
    described = build.build(_read("argv", words), words, os.environ)
    release = described.settings.MCORE_RELEASE_VERSION
    for finding in flags.check(described.arguments, release):
        if finding.severity == "error":
            raise UsageError(finding.message)
    found = {
        "argv": argv(described.arguments),
        "world_size": described.world_size,
        "release": release,
    }
    print(json.dumps(found))
    return 0


def _plan(words: Sequence[str]) -> int:
    """Print what the job is and whether it can work (status 1: no); --all: every stage."""
    given = [word for word in words if word != "--all"]
    described = build.build(_read("plan", words), given, os.environ)
    opinion = start.opinion(described)
    print(report(described, opinion, everything=len(given) < len(words)))
    refused = opinion is not None and not opinion.agrees
    return 1 if described.objections or refused else 0


def _submit(words: Sequence[str]) -> int:
    """Submit the job, or preview it with DRY_RUN=1."""
    read = _read("submit", words)
    if not read.DRY_RUN:
        return start.submit(read, words, os.environ)
    described = build.build(read, words, os.environ)
    script = build.render(described)
    build.check_secrets(script, os.environ)
    start.tell(described, start.opinion(described))
    print(f"=== DRY RUN - SLURM Job Script ===\n{script}=== End of DRY RUN ===")
    print(
        "=== Full Training Command ===",
        shlex.join(described.command),
        "=== End of Full Training Command ===",
        sep="\n",
    )
    return 0


def _sweep(words: Sequence[str]) -> int:
    """Submit every point of a YAML grid once, or plan them with DRY_RUN=1."""
    return sweep.sweep(words, os.environ)


COMMANDS = {
    "submit": _submit,
    "sweep": _sweep,
    "plan": _plan,
    "arguments": _arguments,
    "argv": _argv,
    "settings": _settings,
    "help": _help,
}


def _read(command: str, words: Sequence[str]) -> settings.Settings:
    """Return the settings; where the layers have not been sourced yet, start over through them."""
    if LAYER_ORIGINS not in os.environ:
        os.environ["LAUNCHER_COMMAND"] = command
        os.execvp("bash", ["bash", str(bash_layers.ENTRY), *words])
    return bash_layers.read(os.environ)
