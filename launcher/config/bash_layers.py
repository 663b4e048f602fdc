"""The Bash layers: the entry point sources them, and this module reads the result as settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import ROOT
from launcher.config import model_file
from launcher.config.settings import Settings, from_environment
from launcher.errors import UsageError, did_you_mean

ENTRY = ROOT / "sbatch_benchmarking.sh"


def source(
    script: Path, words: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the environment and the words with which a script would launch.

    The script is the entry point or a recipe. Raises UsageError when a layer fails.
    """
    import subprocess  # a launch through the entry point has its layers already

    done = subprocess.run(
        ["bash", str(script), *words],
        env={**environ, "LAUNCHER_COMMAND": "layers"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        told = os.fsdecode(done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        reason = "; ".join(line.removeprefix("error: ") for line in told[-2:])
        raise UsageError(f"{script} failed while Bash read its layers: {reason}")
    # Before the first NUL stands what the files of BASH_ENV may have printed.
    _, count, *entries = os.fsdecode(done.stdout).split("\0")[:-1]
    pairs = (entry.partition("=") for entry in entries[int(count) :])
    left = {name: text for name, _, text in pairs}
    del left["LAUNCHER_COMMAND"]
    return left, entries[: int(count)]


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Return the settings that the layers left behind. Raises UsageError."""
    cluster = environ["CLUSTER"]
    known = sorted(path.stem for path in (ROOT / "cluster_configs" / "benchmarking").glob("*.conf"))
    if cluster not in known and not (cluster.endswith(".conf") and os.path.isfile(cluster)):
        hint = did_you_mean(cluster, known)
        raise UsageError(
            f"CLUSTER={cluster!r} is unknown.{hint} "
            f"Known: {', '.join(known)}; or the path of a .conf"
        )
    if not environ.get("MODEL") and not environ.get("TRAINING_PARAMS_PATH"):
        raise UsageError(
            f"MODEL is not set. Known: {', '.join(model_file.names(ROOT))}; or the path of a .yaml"
        )
    return from_environment(environ)
