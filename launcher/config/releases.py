"""Flags that changed their name between Megatron-Core releases.

Configs and knobs use the newest names; a job gets the names of MCORE_RELEASE_VERSION. Read off
Megatron-LM's branches core_r0.15.0 to core_r0.19.0 and dev (megatron/training/arguments.py and
megatron/core/transformer/transformer_config.py).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from launcher.config.arguments import Arguments
from launcher.errors import UsageError
from launcher.records import dataclass

SUPPORTED = ("0.15", "0.16", "0.17", "0.18", "0.19", "dev")
LATEST = SUPPORTED[-2]  # the latest release; dev is a branch


@dataclass(frozen=True)
class Rename:
    """`old` became `new` in `release`; later releases refuse or deprecate the old name."""

    old: str
    new: str
    release: str


RENAMES = (
    Rename("--moe-router-padding-for-fp8", "--moe-router-padding-for-quantization", "0.16"),
    Rename("--cuda-graph-scope", "--cuda-graph-modules", "0.18"),
    Rename("--moe-hybridep-num-sms", "--moe-flex-dispatcher-num-sms", "0.19"),
    Rename("--moe-deepep-num-sms", "--moe-flex-dispatcher-num-sms", "0.19"),
)


def index(release: str) -> int:
    """Return the release's place in SUPPORTED; a patch number is ignored. Raises UsageError."""
    text = release.removeprefix("core_").removeprefix("v").removeprefix("r")
    minor = text if text == "dev" else ".".join(text.split(".")[:2])
    if minor not in SUPPORTED:
        raise UsageError(
            f"MCORE_RELEASE_VERSION={release!r} is not supported. Allowed: {', '.join(SUPPORTED)}"
        )
    return SUPPORTED.index(minor)


def version_of(megatron_path: Path) -> str | None:
    """Return the full version of a Megatron-LM checkout, such as 0.19.2rc0; None without one."""
    try:
        text = (megatron_path / "megatron/core/package_info.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = dict(re.findall(r"^(MAJOR|MINOR|PATCH|PRE_RELEASE) = (.+)$", text, re.MULTILINE))
    numbers = ".".join(found.get(name, "?") for name in ("MAJOR", "MINOR", "PATCH"))
    return numbers + found.get("PRE_RELEASE", "").strip("'\"")


def release_of(megatron_path: Path) -> str | None:
    """Return the supported release of a Megatron-LM checkout; None where it is unknown.

    The dev branch carries the number of the release before it, but has flags of its own.
    """
    version = version_of(megatron_path)
    try:
        source = (megatron_path / "megatron/training/arguments.py").read_text(encoding="utf-8")
    except OSError:
        return None
    if version is None:
        return None
    if "_add_varlen_dataset_args" in source:
        return "dev"
    release = ".".join(version.split(".")[:2])
    return release if release in SUPPORTED else None


def rename(arguments: Arguments, release: str) -> Arguments:
    """Return the arguments under the names that `release` knows, each in its place."""
    at = index(release)
    names = {}
    for entry in RENAMES:
        if at >= index(entry.release):
            names[entry.old] = entry.new
        elif (
            sum(other.new == entry.new for other in RENAMES) == 1
        ):  # else the old name is ambiguous
            names[entry.new] = entry.old
    return {
        names.get(flag, flag): replace(
            argument, flag=names[flag], origin=f"{argument.origin} (as {flag})"
        )
        if flag in names
        else argument
        for flag, argument in arguments.items()
    }
