"""Launching as a user does: the entry point, with a clean environment."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from launcher import ROOT, cli
from launcher.config import bash_layers
from launcher.job import request
from launcher.job.build import build
from launcher.job.draft import Job

__all__ = ["ROOT", "STAMP", "Launched", "job", "launch", "preview"]

STAMP = "260101_120000"
_ONE_AT_A_TIME = threading.Lock()  # os.environ and the streams belong to all threads


@dataclass(frozen=True)
class Launched:
    """A finished launch."""

    status: int
    stdout: str
    stderr: str

    @property
    def script(self) -> str:
        """The job script of a preview."""
        return _between(self.stdout, "DRY RUN - SLURM Job Script", "End of DRY RUN")

    @property
    def command(self) -> list[str]:
        """The training command of a preview, split as a POSIX shell would."""
        return shlex.split(
            _between(self.stdout, "Full Training Command", "End of Full Training Command")
        )

    def flag(self, name: str) -> list[str] | None:
        """The values that a flag has in the training command; None where it is not there."""
        words = self.command
        if name not in words:
            return None
        assert words.count(name) == 1, f"{name} is there twice"
        rest = words[words.index(name) + 1 :]
        end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
        return rest[:end]


def _between(text: str, start: str, end: str) -> str:
    return text.split(f"=== {start} ===\n", 1)[1].split(f"=== {end} ===\n", 1)[0]


def _login() -> dict[str, str]:
    """Return what a login's environment has of this process's, and what measures coverage."""
    names = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_CONFIG")
    return {name: os.environ[name] for name in names if name in os.environ}


def launch(
    words: Sequence[str] = (), cwd: Path = ROOT, script: Path | None = None, **variables: str
) -> Launched:
    """Run the entry point with nothing of this shell's environment but what a login has."""
    done = subprocess.run(
        ["bash", str(script or ROOT / "sbatch_benchmarking.sh"), *words],
        cwd=cwd,
        # Megatron would check each submission for 10 s; tests/megatron/test_verification.py lets it.
        env={**_login(), "TIMESTAMP": STAMP, "VERIFY": "0", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return Launched(done.returncode, done.stdout, done.stderr)


def job(words: Sequence[str] = (), script: Path | None = None, **variables: str) -> Job:
    """Return the job of a launch: Bash sources the layers, this process builds it.

    A tenth of what a preview costs, for tests over many jobs.
    """
    environ = {**_login(), "TIMESTAMP": STAMP, **variables}
    environ, all_words = bash_layers.source(script or bash_layers.ENTRY, words, environ)
    return build(request.read(bash_layers.settings_of(environ), all_words, environ))


def preview(words: Sequence[str] = (), script: Path | None = None, **variables: str) -> Launched:
    """Make a dry run that must succeed; DeepSeek-V3 unless MODEL says otherwise.

    Bash sources the layers in a process, as always; the launcher itself runs in this one, which
    saves most of the time. `launch` with DRY_RUN=1 is the whole of it.
    """
    environ = {
        **_login(),
        "TIMESTAMP": STAMP,
        "MODEL": "DeepSeek-V3",
        "DRY_RUN": "1",
        **variables,
    }
    environ, all_words = bash_layers.source(script or bash_layers.ENTRY, words, environ)
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _ONE_AT_A_TIME,
        mock.patch.dict(os.environ, environ, clear=True),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        status = cli.main(["submit", *all_words])
    launched = Launched(status, stdout.getvalue(), stderr.getvalue())
    assert launched.status == 0, launched.stderr
    return launched
