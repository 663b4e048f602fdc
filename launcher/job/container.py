"""The training processes' container: pyxis, Apptainer, or none."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.config.settings import Settings
from launcher.errors import UsageError
from launcher.records import dataclass


@dataclass(frozen=True)
class Mount:
    """A folder of the node that the container sees."""

    source: str
    target: str


def has_container(settings: Settings) -> bool:
    """Say whether there is one at all."""
    return settings.CONTAINER_RUNTIME != "none"


def srun_options(settings: Settings, run_dir: str) -> list[tuple[str, str | None]]:
    """Return srun's options for the container, with their values."""
    if settings.CONTAINER_RUNTIME == "pyxis":
        options = [
            ("--no-container-mount-home", None),
            ("--container-image", settings.CONTAINER_IMAGE),
            ("--container-mounts", settings.CONTAINER_MOUNTS),
            ("--container-workdir", settings.MEGATRON_PATH),
        ]
    elif settings.CONTAINER_RUNTIME == "none":
        options = [("--chdir", settings.MEGATRON_PATH or run_dir)]
    else:
        options = [("--chdir", run_dir)]
    return [(name, given) for name, given in options if given or name.startswith("--no-")]


def prefix(settings: Settings) -> list[str]:
    """Return the words in front of the training command, in each task."""
    if settings.CONTAINER_RUNTIME != "apptainer":
        return []
    command = ["apptainer", "exec", "--no-home"]
    if settings.GPU != "none":
        command.append("--nv")
    if settings.CONTAINER_MOUNTS:
        command += ["--bind", settings.CONTAINER_MOUNTS]
    if settings.MEGATRON_PATH:
        command += ["--pwd", settings.MEGATRON_PATH]
    return [*command, str(settings.CONTAINER_IMAGE)]


def mounts(settings: Settings) -> list[Mount]:
    """Read CONTAINER_MOUNTS: `source:target[:options]`, separated by commas. Raises UsageError."""
    found = []
    for text in (settings.CONTAINER_MOUNTS or "").split(","):
        parts = text.split(":")
        if text and (not parts[0] or len(parts) > 3 or "" in parts[1:]):
            raise UsageError(
                f"CONTAINER_MOUNTS ({settings.origin('CONTAINER_MOUNTS')}): {text!r} is no mount; "
                "write source:target or source:target:options, separated by commas"
            )
        if text:
            found.append(Mount(parts[0], parts[1] if len(parts) > 1 else parts[0]))
    return found


def on_the_node(settings: Settings, path: str) -> str:
    """Return where a path of the training processes lies on the node, by CONTAINER_MOUNTS."""
    around = _around(settings, path)
    if not around:
        return path
    nearest = max(around, key=lambda mount: len(Path(mount.target).parts))
    inside = Path(os.path.normpath(path)).relative_to(os.path.normpath(nearest.target))
    return str(Path(nearest.source) / inside)


def on_no_mount(settings: Settings, path: str) -> bool:
    """Say whether the image alone, or mounts of the administrator's, may hold a path."""
    placeholder = "YOUR_" in (settings.CONTAINER_MOUNTS or "")
    return has_container(settings) and not placeholder and not _around(settings, path)


def _around(settings: Settings, path: str) -> list[Mount]:
    if not has_container(settings) or "YOUR_" in (settings.CONTAINER_MOUNTS or ""):
        return []
    return [mount for mount in mounts(settings) if _within(path, mount.target)]


def missing(settings: Settings) -> list[str]:
    """Return a line for each missing path of the job, as far as this machine can tell.

    Some file systems are on the nodes only. A path counts as missing only where its folder is
    here, and where this folder is not the root, in which a node may have disks of its own.
    """
    wanted = {"NODE_SETUP_PATH": [settings.NODE_SETUP_PATH or ""]}
    if has_container(settings):
        wanted["CONTAINER_IMAGE"] = [settings.CONTAINER_IMAGE or ""]
        wanted["CONTAINER_MOUNTS"] = [mount.source for mount in mounts(settings)]
    return [
        f"{name} ({settings.origin(name)}): {path} does not exist"
        for name, paths in wanted.items()
        for path in map(Path, paths)
        if path.is_absolute() and not os.path.exists(path)
        if os.path.isdir(path.parent) and path.parent != Path("/")
    ]


def unseen(settings: Settings) -> list[str]:
    """Return a line for an OUTPUT_PATH that no mount brings into the container."""
    targets = [mount.target for mount in mounts(settings)]
    if not has_container(settings) or "YOUR_" in (settings.CONTAINER_MOUNTS or ""):
        return []
    if any(_within(settings.OUTPUT_PATH, target) for target in targets):
        return []
    return [
        f"OUTPUT_PATH={settings.OUTPUT_PATH} is in none of CONTAINER_MOUNTS: "
        "checkpoints would be lost with the container; mount it"
    ]


def without_pyxis(settings: Settings) -> list[str]:
    """Return a line where this machine's srun knows no containers."""
    if settings.CONTAINER_RUNTIME != "pyxis":
        return []
    import subprocess  # a preview starts nothing

    try:
        told = subprocess.run(
            ["srun", "--help"], capture_output=True, text=True, timeout=15, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if told.returncode != 0 or "--container-image" in told.stdout:
        return []
    return ["srun has no --container-image here: without the pyxis plugin the job will fail"]


def _within(path: str, folder: str) -> bool:
    inner, outer = Path(os.path.normpath(path)), Path(os.path.normpath(folder))
    return outer == inner or outer in inner.parents
