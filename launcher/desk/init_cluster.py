"""`moe-zoo init-cluster NAME`: a cluster config, filled in with what Slurm tells."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import ROOT, terminal
from launcher.config.gpus import GPUS
from launcher.config.settings import FIELDS
from launcher.desk import site
from launcher.desk.site import Site
from launcher.errors import UsageError
from launcher.run import slurm

FOLDER = ROOT / "cluster_configs" / "benchmarking"
TEMPLATE = FOLDER / "template.conf"
# What the environment of this command may decide, and the template asks for.
ASKED = (
    *("ACCOUNT", "PARTITION", "GPU", "CONTAINER_RUNTIME", "CONTAINER_IMAGE", "CONTAINER_MOUNTS"),
    *("MEGATRON_PATH", "OUTPUT_PATH", "SBATCH_OPTIONS", "NODE_SETUP_PATH", "TASKS_PER_NODE"),
)
_LINE = r'(?m)^( *): "\$\{NAME:=[^}]*\}"'
_CONTAINER = (
    r'# A \.sqsh file.*\n# source:target.*\n: "\$\{CONTAINER_IMAGE.*\n: "\$\{CONTAINER_MOUNTS.*\n'
)
_GPU = r"if \[\[ \$GB200_CLUSTER == 1 \]\]; then : .*; fi\n"


def init_cluster(words: Sequence[str]) -> int:
    """Write a config; never over another."""
    if len(words) != 1 or words[0].startswith("-"):
        raise UsageError(
            "moe-zoo init-cluster NAME: name the config, such as mine or path/mine.conf"
        )
    path = _path(words[0])
    if path.exists():
        raise UsageError(f"{path} is there already: remove it, or choose another name")
    try:
        found = site.look()
    except (slurm.Refused, slurm.NoAnswer) as error:
        raise UsageError(
            f"Slurm cannot be asked: {error}. On a machine without Slurm, copy {TEMPLATE}"
        ) from None
    chosen, reasons = choose(found, os.environ)
    text = filled(TEMPLATE.read_text(encoding="utf-8"), found, chosen)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    _tell(path, found, chosen, reasons, text)
    return 0


def _path(word: str) -> Path:
    if word.endswith(".conf") or "/" in word:
        return Path(word).absolute()
    if not re.fullmatch(r"[\w.-]+", word):
        raise UsageError(f"{word!r} is no name for a config: letters, digits, '.', '_' and '-'")
    return FOLDER / f"{word}.conf"


def choose(found: Site, environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the value of each variable that is known, and where it comes from."""
    chosen: dict[str, str] = {}
    reasons: dict[str, str] = {}

    def take(name: str, value: str | None, reason: str) -> None:
        if value is not None and name not in chosen:
            chosen[name], reasons[name] = value, reason

    for name in ASKED:
        take(name, environ.get(name) or None, "environment")
    usable = [one for one in found.partitions if one.up]
    with_gpus = [one for one in usable if one.gpus]
    default = next((one for one in with_gpus or usable if one.default), None)
    partition = default or (max(with_gpus or usable, key=lambda one: one.nodes, default=None))
    if partition:
        take("PARTITION", partition.name, "sinfo")
    used = next((one for one in usable if one.name == chosen.get("PARTITION")), None)
    if used:
        take("GPU", used.gpu, f"sinfo: {used.words.strip()}")
        if not used.gpus and "GPU" not in chosen:
            take("GPU", "none", "sinfo: no generic resource named gpu")
    if found.accounts is None:
        take("ACCOUNT", "", "this Slurm has no accounts")
    elif len(found.accounts) == 1:
        take("ACCOUNT", found.accounts[0], "sacctmgr")
    runtime = "pyxis" if found.pyxis else "apptainer" if found.apptainer else "none"
    take("CONTAINER_RUNTIME", runtime, "srun --help, PATH")
    gpu = GPUS.get(chosen.get("GPU", ""))
    if used and used.gpus and gpu and used.gpus != gpu.tasks_per_node:
        take("TASKS_PER_NODE", str(used.gpus), "sinfo")
    if chosen.get("GPU") == "none":
        take("MEGATRON_PATH", "", "nodes without GPUs run this repository's megatron-core")
    if gpu and gpu.nvlink_domain == 72:
        take("GB200_CLUSTER", "1", f"GPU={chosen['GPU']}")
    return chosen, reasons


def filled(template: str, found: Site, chosen: Mapping[str, str]) -> str:
    """Return the template with values in the place of its placeholders."""
    head = f"# {found.name}, Slurm {found.version}. Third layer: one cluster.\n"
    text = re.sub(r"(?m)^# Third layer: one cluster\. .*\n", lambda _: head, template, count=1)
    if chosen.get("CONTAINER_RUNTIME") == "none":
        text = re.sub(_CONTAINER, "", text, count=1)
    if "GPU" in chosen:
        lines = f': "${{GPU:={_inside(chosen["GPU"])}}}"\n'
        if chosen["GPU"] == "none":
            lines += ': "${SMOKE:=1}" # without GPUs, every job is a small one\n'
        text = re.sub(_GPU, lambda _: lines, text, count=1)
    for name, value in chosen.items():
        if name == "OUTPUT_PATH":
            text = text.replace("YOUR_OUTPUT_DIR", _inside(value.rstrip("/") or "/"), 1)
        elif name != "GPU":
            pattern = _LINE.replace("NAME", name)
            line = f': "${{{name}:={_inside(value)}}}"'
            text = re.sub(pattern, lambda match, line=line: match[1] + line, text, count=1)
    return text


def _inside(value: str) -> str:
    """Return a value as it has to stand in "${NAME:=…}"."""
    if "\n" in value or "\0" in value:
        raise UsageError(f"{value!r} cannot be a value of a config: it has more than one line")
    return re.sub(r"([\\\"$`}])", r"\\\1", value)


def _tell(
    path: Path, found: Site, chosen: Mapping[str, str], reasons: Mapping[str, str], text: str
) -> None:
    """Print what was written, and what is left to do."""
    width = terminal.width(sys.stdout)
    print(f"{path}: {found.name}, Slurm {found.version}")
    rows = [("variable", "value", "from")]
    rows += [(name, value or "(none)", reasons[name]) for name, value in chosen.items()]
    print(terminal.table(rows, width))
    left = re.findall(r"\b(\w+):=[^}\n]*YOUR_", text)
    if "GPU" not in chosen:
        left.append("GPU")
    for name in left:
        print(terminal.fold(f"  to fill in: {name}, {FIELDS[name].metadata['meaning']}", width, 4))
    if len(found.accounts or ()) > 1 and "ACCOUNT" in left:
        print(f"  your accounts: {', '.join(found.accounts or ())}")
    shown = path.stem if path.parent == FOLDER else path
    print(f"then: moe-zoo check-cluster CLUSTER={shown}")
