"""Every environment variable of the launcher: name, type, allowed values and meaning.

Defaults are not here: they live in the .conf layers, which Bash sources before Python starts.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import types
from collections.abc import Mapping
from typing import Any, Callable

from launcher.config.arguments import shortened
from launcher.config.gpus import GPUS
from launcher.errors import UsageError, did_you_mean
from launcher.records import dataclass

LAYER_ORIGINS = "LAYER_ORIGINS"  # lines of "<layer file>: NAME NAME …", written by the entry point
_PLACEHOLDER = re.compile(r"YOUR_[A-Z]+|your_own_[a-z]+")


@dataclass(frozen=True)
class Kind:
    """How one variable's text is checked and converted."""

    allowed: str  # what the documentation and the error message show
    convert: Callable[[str], Any]  # raises ValueError when the text is not allowed


def _integer(minimum: int, most: int | None = None) -> Kind:
    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < minimum:
            raise ValueError
        if most is not None and int(text) > most:
            raise ValueError
        return int(text)

    return Kind(f"integer ≥ {minimum}" + (f", at most {most:,}" if most else ""), convert)


def _choice(*choices: str) -> Kind:
    def convert(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return Kind(", ".join(choices), convert)


def _duration(text: str) -> str:
    part = "([0-5]?[0-9]|60)"  # 00:60:00 is common, and Slurm takes it
    known = re.fullmatch(rf"([0-9]{{1,4}}-)?[0-9]{{1,6}}(:{part}){{0,2}}", text)
    if not known or not re.search("[1-9]", text):
        raise ValueError
    return text


def _stamp(text: str) -> str:
    if not re.fullmatch(r"[0-9]{6}_[0-9]{6}", text):
        raise ValueError
    year, month, day, hour, minute, second = (int(text[at : at + 2]) for at in (0, 2, 4, 7, 9, 11))
    datetime.datetime(2000 + year, month, day, hour, minute, second)  # raises ValueError
    return text


TEXT = Kind("text", str)
PATH = Kind("path", str)
SWITCH = Kind("0, 1", {"0": False, "1": True, "false": False, "true": True}.__getitem__)
SIZE = _integer(1)
# The original zoo writes "false" for "no uneven stages"; it means the same as unset.
LAYERS = Kind("integer ≥ 1", lambda text: None if text == "false" else SIZE.convert(text))
NODES = _integer(1, 100_000)
DURATION = Kind("minutes, MM:SS, HH:MM:SS or D-HH:MM:SS", _duration)


def _setting(group: str, kind: Kind, meaning: str, default: Any = None) -> Any:
    return dataclasses.field(
        default=default, metadata={"group": group, "kind": kind, "meaning": meaning}
    )


@dataclass(frozen=True)
class Settings:
    """The typed values. An unset or empty variable is None, and an unset switch is False."""

    MODEL: str = _setting(
        "what", TEXT, "a name from `model_configs/benchmarking/`, or the path of your own .yaml"
    )
    CLUSTER: str = _setting(
        "what", TEXT, "a name from `cluster_configs/benchmarking/`; `local` runs on this machine"
    )
    TRAINING_PARAMS_PATH: str | None = _setting(
        "what", PATH, "the model's YAML, where MODEL is only a name"
    )
    TRAINING_SCRIPT_PATH: str | None = _setting(
        "what", PATH, "the script that trains; unset: `$MEGATRON_PATH/pretrain_gpt.py`"
    )
    TRAINING_PARAMS: str | None = _setting(
        "what", TEXT, "extra Megatron arguments, split by POSIX quoting rules; nothing is expanded"
    )

    MEGATRON_PATH: str | None = _setting(
        "software",
        PATH,
        "Megatron-LM checkout, as the training processes see it; `local` may leave it unset and uses the installed megatron-core",
    )
    CONTAINER_IMAGE: str | None = _setting("software", TEXT, ".sqsh file or image URL")
    MCORE_RELEASE_VERSION: str = _setting(
        "software",
        Kind("release such as 0.19, or dev", str),
        "Megatron-Core release that the arguments are written for",
    )

    TP: int = _setting("parallelism", SIZE, "tensor parallel size")
    PP: int = _setting("parallelism", SIZE, "pipeline parallel size")
    EP: int = _setting("parallelism", SIZE, "expert parallel size")
    CP: int = _setting("parallelism", SIZE, "context parallel size")
    VPP: int = _setting("parallelism", SIZE, "virtual pipeline stages per pipeline rank")
    PP_FIRST: int | None = _setting(
        "parallelism",
        LAYERS,
        "layers of the first pipeline stage, where NUM_LAYERS is not a multiple of PP",
    )
    PP_LAST: int | None = _setting(
        "parallelism", LAYERS, "layers of the last pipeline stage, where NUM_LAYERS is not a multiple of PP"
    )
    LAYERS_PER_VP: int | None = _setting(
        "parallelism", LAYERS, "layers per virtual stage, instead of VPP"
    )
    NUM_LAYERS: int | None = _setting(
        "parallelism",
        SIZE,
        "layers that the pipeline split counts (embedding and loss included where the model says so); the depth itself is `--num-layers`",
    )

    MBS: int = _setting("batch and job", SIZE, "micro-batch size, sequences")
    GBS: int = _setting("batch and job", SIZE, "global batch size, sequences")
    SEQ_LEN: int = _setting("batch and job", SIZE, "sequence length, tokens")
    NNODES: int = _setting("batch and job", NODES, "nodes")
    RUN_TIME: str = _setting("batch and job", DURATION, "Slurm time limit")
    RESUBMIT: int = _setting(
        "batch and job", _integer(0), "how many jobs may follow this one, until the run is done; unset: 0", 0
    )
    RESUME: bool = _setting(
        "batch and job",
        SWITCH,
        "1: go on from the checkpoints that are in the folder to save to, with the optimizer, at any number of nodes",
        False,
    )
    PRETRAIN: bool = _setting(
        "batch and job",
        SWITCH,
        "1: start from random weights; 0: start from LOAD_PATH, which the cluster config may set per model",
        False,
    )
    DATASET: str | None = _setting(
        "batch and job", TEXT, "name that the cluster config maps to DATA_PATH"
    )

    DISPATCHER: str | None = _setting(
        "MoE",
        _choice("alltoall", "deepep", "hybridep", "ncclep", "deepepv2"),
        "token dispatcher; ncclep from 0.19 on, deepepv2 on the dev branch; unset: by MOE_TOKEN_DISPATCHER",
    )
    MOE_TOKEN_DISPATCHER: str | None = _setting(
        "MoE",
        _choice("allgather", "alltoall", "flex", "deepep", "hybridep"),
        "the model's own dispatcher; flex means deepep",
    )
    MOE_GROUPED_GEMM: bool = _setting(
        "MoE", SWITCH, "one grouped GEMM over a rank's experts", False
    )

    PR: str = _setting(
        "performance",
        _choice("bf16", "fp8", "mxfp8", "nvfp4"),
        "precision: bf16; fp8 blockwise (Hopper); mxfp8 or nvfp4 (Blackwell)",
    )
    A2A_OVERLAP: bool = _setting(
        "performance",
        SWITCH,
        "1: hide the expert all-to-all behind the computation of other micro-batches",
        False,
    )
    OPTIMIZER_OFFLOAD: bool = _setting(
        "performance", SWITCH, "1: optimizer states and step on the CPU", False
    )
    PROFILE: str = _setting(
        "performance",
        _choice("0", "1", "nsys", "torch"),
        "profile steps 23 to 25 of rank 0 with Nsight Systems (1, nsys) or the PyTorch profiler (torch)",
    )
    BINDPCIE_PATH: str | None = _setting(
        "performance",
        PATH,
        "wrapper put before the training program, to bind each rank to its NUMA node",
    )

    ACCOUNT: str | None = _setting("cluster", TEXT, "Slurm account")
    PARTITION: str | None = _setting("cluster", TEXT, "Slurm partition")
    RUN_NAME: str | None = _setting(
        "cluster", TEXT, "part of the job's name and of its run directory"
    )
    CONTAINER_RUNTIME: str = _setting(
        "cluster", _choice("pyxis", "apptainer", "none"), "how CONTAINER_IMAGE is run on the nodes; none: bare, with what NODE_SETUP_PATH sets up; unset: pyxis", "pyxis"
    )
    CONTAINER_MOUNTS: str | None = _setting(
        "cluster", TEXT, "mounts into the container, `source:target`, separated by commas"
    )
    NODE_SETUP_PATH: str | None = _setting(
        "cluster", PATH, "Bash file that each task sources first (`module load …`); with pyxis inside the container"
    )
    PASS_ENV: str | None = _setting(
        "cluster",
        TEXT,
        "variables of the submitting shell that the training processes get too, such as `NCCL_DEBUG,UCX_*`; no other does",
    )
    MPI_TYPE: str | None = _setting(
        "cluster", TEXT, "`srun --mpi`; unset: pmix where `srun --mpi=list` has it, else none"
    )
    MASTER_PORT: int | None = _setting(
        "cluster", SIZE, "port of rank 0 for the others; unset: a free one below the ephemeral ones"
    )
    SBATCH_OPTIONS: str | None = _setting(
        "cluster", TEXT, "further options of sbatch, such as `--qos=high --constraint=h100 --mail-type=END`, split by POSIX quoting rules"
    )
    GB200_CLUSTER: bool = _setting(
        "cluster", SWITCH, "1: GB200 or GB300 NVL72: 4 tasks a node, NVLINK_DOMAIN_SIZE=72", False
    )
    SEGMENT: int | None = _setting(
        "cluster",
        SIZE,
        "nodes that must share one NVLink domain (sbatch --segment), on GB200_CLUSTER=1",
    )
    GPU: str | None = _setting("cluster", _choice(*GPUS, "none"), "the GPU whose memory the plan compares with its estimate; none: nodes without GPUs, for SMOKE=1")
    TASKS_PER_NODE: int | None = _setting(
        "cluster", SIZE, "training processes a node; unset: 8, or 4 with GB200_CLUSTER=1"
    )

    OUTPUT_PATH: str = _setting(
        "paths", PATH, "everything a job writes: checkpoints, TensorBoard, logs, run directories"
    )
    DATA_PATH: str | None = _setting(
        "paths",
        TEXT,
        "dataset prefix, or a blend `weight prefix weight prefix …`; unset: mock data",
    )
    TOKENIZER_MODEL: str | None = _setting(
        "paths", TEXT, "tokenizer file or Hugging Face name, for the models that do not bring one"
    )
    LOAD_PATH: str | None = _setting("paths", PATH, "checkpoint to start from")

    WANDB_API_KEY: str | None = _setting(
        "logging",
        Kind("secret", str),
        "W&B key; passed on through the environment, never written anywhere",
    )
    HF_TOKEN: str | None = _setting(
        "logging", Kind("secret", str), "Hugging Face token, for gated tokenizers; passed on through the environment, never written anywhere"
    )
    WANDB_PROJECT: str | None = _setting("logging", TEXT, "W&B project")
    WANDB_MODE: str = _setting(
        "logging", _choice("online", "offline", "disabled"), "unset: online with a key, else disabled"
    )
    COMMENT: str | None = _setting("logging", TEXT, "tag at the end of the W&B experiment's name")

    DRY_RUN: bool = _setting(
        "launching", SWITCH, "1: print what would be submitted, and do nothing", False
    )
    SMOKE: bool = _setting(
        "launching", SWITCH, "1: the same recipe shrunk to seconds, in real Megatron-Core", False
    )
    WAIT: bool = _setting(
        "launching", SWITCH, "1: follow the Slurm job to its end and return its exit status", False
    )
    EXPLAIN: bool = _setting(
        "launching", SWITCH, "1: print every argument with the place that set it", False
    )
    FORCE: bool = _setting("launching", SWITCH, "1: submit a job although a check found an error", False)
    VERIFY: bool = _setting("launching", SWITCH, "1: let Megatron-Core itself check the job on this machine; unset: only before a submission, and only where Megatron is set up; 0: never", False)
    PLAN_FORMAT: str | None = _setting("launching", _choice("text", "json"), "how the plan is printed; unset: text")
    TIMESTAMP: str | None = _setting(
        "launching",
        Kind("YYMMDD_HHMMSS", _stamp),
        "time stamp in the job's name and run directory; set it to repeat a preview to the byte",
    )

    WORKSPACE: str = _setting("set by the launcher", PATH, "this repository, for use in configs")
    MODEL_NAME: str = _setting(
        "set by the launcher", TEXT, "MODEL without folder and .yaml, for use in configs"
    )

    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, metadata={})

    def origin(self, name: str) -> str:
        """Return where `name` got its value: 'environment', a layer's file, or a flag."""
        return self.origins.get(name, "unset")


FIELDS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}


def from_environment(environ: Mapping[str, str]) -> Settings:
    """Convert the environment, as the layers left it.

    Raises UsageError for a value that is not allowed, and for a required variable that no layer
    set. The message names the variable, what is allowed, and where it was set.
    """
    origins = _origins(environ)
    values: dict[str, Any] = {}
    for name, field in FIELDS.items():
        text = environ.get(name, "")
        if text == "":
            if field.default is None and not _optional(field):
                raise UsageError(f"{name} is not set ({field.metadata['meaning']})")
            continue
        try:
            values[name] = field.metadata["kind"].convert(text)
        except (ValueError, KeyError):
            raise not_allowed(name, text, origins.get(name, "environment")) from None
    if values.get("GB200_CLUSTER") and "GPU" not in values:
        values["GPU"], origins["GPU"] = "GB200", "GB200_CLUSTER"
    return Settings(**values, origins=types.MappingProxyType(origins))


def not_allowed(name: str, text: str, origin: str) -> UsageError:
    """Return the error for a value of the wrong type or outside the allowed ones."""
    allowed = FIELDS[name].metadata["kind"].allowed
    hint = did_you_mean(text, allowed.split(", ")) if ", " in allowed else ""
    return UsageError(f"{name}={shortened(text)!r} (set by {origin}) is not allowed: {allowed}.{hint}")


def replace(settings: Settings, name: str, text: str, origin: str) -> Settings:
    """Return settings with `name` set from `text`, as from the environment."""
    try:
        value = FIELDS[name].metadata["kind"].convert(text)
    except (ValueError, KeyError):
        raise not_allowed(name, text, origin) from None
    origins = types.MappingProxyType({**settings.origins, name: origin})
    return dataclasses.replace(settings, **{name: value}, origins=origins)


def by_layer(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the variables that each Bash layer set."""
    found = {}
    for line in environ.get(LAYER_ORIGINS, "").splitlines():
        layer, _, names = line.rpartition(":")
        found[layer] = names.split()
    return found


def as_text(value: Any) -> str:
    """Return a setting's value as configs see it: '' when unset, true or false for a switch."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def table() -> str:
    """Return the Markdown table of all variables, one group after the other."""
    rows = ["| variable | values | meaning |", "|---|---|---|"]
    group = ""
    for name, field in FIELDS.items():
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            rows.append(f"| **{group}** | | |")
        rows.append(f"| {name} | {field.metadata['kind'].allowed} | {field.metadata['meaning']} |")
    return "\n".join(rows)


def unfilled(settings: Settings, name: str) -> bool:
    """Say whether a variable still holds the template's YOUR_…."""
    return bool(_PLACEHOLDER.search(str(getattr(settings, name) or "")))


def placeholders(settings: Settings) -> list[str]:
    """Return a line for each config that still holds the template's YOUR_…; it names the variables."""
    found: dict[str, list[str]] = {}
    for name in FIELDS:
        if unfilled(settings, name):
            found.setdefault(settings.origin(name), []).append(name)
    return [
        f"{origin} still has placeholders for {', '.join(names)}" for origin, names in found.items()
    ]


def _optional(field: dataclasses.Field[Any]) -> bool:
    return str(field.type).endswith("| None")


def _origins(environ: Mapping[str, str]) -> dict[str, str]:
    origins = {name: "environment" for name in FIELDS if environ.get(name)}
    for layer, names in by_layer(environ).items():
        origins.update({name: layer for name in names})
    return origins
