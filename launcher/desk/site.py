"""What this Slurm cluster is, asked of Slurm: partitions and GPUs, accounts, containers, MPI."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Sequence

from launcher.config.gpus import GPUS
from launcher.records import dataclass
from launcher.run import slurm


@dataclass(frozen=True)
class Partition(slurm.Partition):
    """One partition, with what its nodes have."""

    up: bool
    gpu: str | None  # a name of gpus.GPUS, where Slurm's words for the nodes tell it
    gpus: int | None  # of a node
    words: str  # generic resources and features, as Slurm has them


@dataclass(frozen=True)
class Site:
    """A cluster."""

    name: str
    version: str  # of Slurm
    partitions: tuple[Partition, ...]
    accounts: tuple[str, ...] | None  # the user's; None where there is no accounting
    pyxis: bool
    apptainer: bool
    mpi: tuple[str, ...]  # what `srun --mpi` can start


def look() -> Site:
    """Ask Slurm what there is. Raises slurm.Refused or slurm.NoAnswer."""
    told = dict(
        re.findall(r"^(\w+) += (.*)$", slurm.run(["scontrol", "show", "config"], 15), re.MULTILINE)
    )
    return Site(
        name=told.get("ClusterName", "cluster"),
        version=told.get("SLURM_VERSION", "").strip(),
        partitions=tuple(partitions()),
        accounts=accounts(),
        pyxis="--container-image" in _said(["srun", "--help"]),
        apptainer=shutil.which("apptainer") is not None,
        mpi=mpi(),
    )


def partitions() -> list[Partition]:
    """Return the partitions. Raises slurm.Refused or slurm.NoAnswer."""
    form = "%P|%a|%D|%l|%G|%f"
    found: dict[str, Partition] = {}
    for line in slurm.run(["sinfo", "--noheader", f"--format={form}"], 15).splitlines():
        cells = [cell.strip() for cell in line.split("|", 5)]
        if len(cells) < 6 or not cells[2].isdigit():
            continue
        name, up, nodes, limit, gres, features = cells
        words = f"{gres} {features}"
        before = found.get(name)
        found[name] = Partition(
            name.rstrip("*"), name.endswith("*"), int(nodes) + (before.nodes if before else 0),
            limit, up == "up", kind(words) or (before.gpu if before else None),
            count(gres) or (before.gpus if before else None), words,
        )  # fmt: skip
    return list(found.values())


def kind(words: str) -> str | None:
    """Return the GPU that a node's generic resources or features name, as in gpu:h100:8."""
    parts = re.split(r"[^a-z0-9]+", words.lower())
    return next((gpu for gpu in GPUS if gpu.lower() in parts), None)


def count(gres: str) -> int | None:
    """Return how many GPUs gpu:h100:8(S:0-1) or gpu:8 stands for."""
    found = re.search(r"\bgpu(?::[\w.-]+)??:(\d+)", gres)
    return int(found[1]) if found else None


def accounts() -> tuple[str, ...] | None:
    """Return the accounts that this user may charge; None where there is no accounting."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations"]
    try:
        output = slurm.run([*command, f"user={getpass.getuser()}", "format=account"], 15)
    except (slurm.Refused, slurm.NoAnswer):
        return None
    return tuple(dict.fromkeys(output.split())) or None


def mpi() -> tuple[str, ...]:
    """Return the kinds of MPI that srun can start."""
    listed = _said(["srun", "--mpi=list"])
    return tuple(dict.fromkeys(re.findall(r"^\s+(\w+)\s*$", listed, re.MULTILINE)))


def _said(command: Sequence[str]) -> str:
    """Return what a command prints, on either stream; '' where it fails."""
    try:
        return slurm.run(["sh", "-c", 'exec "$@" 2>&1', "sh", *command], 15)
    except (slurm.Refused, slurm.NoAnswer):
        return ""
