"""Misspelt variables: names that were meant for the launcher, such as DRYRUN, NODES, partiton.

A name is close to one of ours where it differs in case or underscores, where it is a common other
word for it, or where one letter is missing, added, wrong or swapped. Such a name is an error where
it can mean nothing else. Otherwise it is a warning, because other programs read variables too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from launcher.config.settings import FIELDS, by_layer
from launcher.errors import UsageError

# Other words for our names, without underscores. The shared ones below only warn: other programs
# use them too.
SYNONYMS = {
    "TP": ("TPSIZE", "TENSORPARALLEL", "TENSORPARALLELSIZE", "TENSORMODELPARALLELSIZE"),
    "PP": ("PPSIZE", "PIPELINEPARALLEL", "PIPELINEPARALLELSIZE", "PIPELINEMODELPARALLELSIZE"),
    "EP": ("EPSIZE", "EXPERTPARALLEL", "EXPERTPARALLELSIZE", "EXPERTMODELPARALLELSIZE"),
    "CP": ("CPSIZE", "CONTEXTPARALLEL", "CONTEXTPARALLELSIZE"),
    "VPP": ("VP", "VPSIZE", "VPPSIZE", "VIRTUALPIPELINE", "NUMVIRTUALSTAGES"),
    "MBS": ("MICROBATCH", "MICROBATCHSIZE"),
    "GBS": ("GLOBALBATCH", "GLOBALBATCHSIZE"),
    "SEQ_LEN": ("SEQ", "SEQLENGTH", "SEQUENCELENGTH"),
    "NNODES": ("NODECOUNT",),
    "RUN_TIME": ("WALLTIME", "TIMELIMIT"),
    "TASKS_PER_NODE": ("NTASKSPERNODE",),
    "NUM_LAYERS": ("NLAYERS",),
    "DISPATCHER": ("TOKENDISPATCHER",),
    "A2A_OVERLAP": ("OVERLAPA2A",),
    "OPTIMIZER_OFFLOAD": ("OFFLOADOPTIMIZER",),
    "MCORE_RELEASE_VERSION": ("MCORERELEASE", "MCOREVERSION", "MEGATRONVERSION"),
    "SBATCH_OPTIONS": ("SBATCHARGS",),
}
SHARED = {
    "NNODES": ("NODES", "NUMNODES"),
    "TASKS_PER_NODE": ("GPUSPERNODE",),
    "MEGATRON_PATH": ("MEGATRONDIR", "MEGATRONROOT", "MEGATRONLMPATH"),
    "PR": ("PRECISION",),
    "GPU": ("GPUTYPE",),
    "OUTPUT_PATH": ("OUTPUTDIR",),
    "DATA_PATH": ("DATADIR",),
    "LOAD_PATH": ("CHECKPOINTPATH", "CKPTPATH"),
    "TOKENIZER_MODEL": ("TOKENIZER", "TOKENIZERPATH"),
    "CONTAINER_IMAGE": ("IMAGE",),
}
# Everyday words: another program may well have a variable of that name in lower case.
EVERYDAY = {
    *("MODEL", "CLUSTER", "ACCOUNT", "PARTITION", "SEGMENT", "DATASET", "PROFILE", "COMMENT"),
    *("TIMESTAMP", "GPU", "WAIT", "FORCE", "VERIFY", "EXPLAIN", "SMOKE"),
}
# What the programs of a training process read; a config may set these without a word.
FAMILIES = re.compile(
    r"(NCCL|NVTE|CUDA|CUDNN|CUBLAS\w*|NVIDIA|NVSHMEM|NVLINK|NVFUSER|NSYS|TORCH\w*|PYTORCH|TRITON|"
    r"MEGATRON|DEEP_?EP|HYBRID_?EP|SLURM|SBATCH|SRUN|PMIX?|OMPI|UCX|UCC|FI|IB|GLOO|MELLANOX|ENROOT|"
    r"APPTAINER\w*|SINGULARITY\w*|OMP|MKL|OPENBLAS|KMP|HF|TRANSFORMERS|TOKENIZERS|WANDB|PYTHON\w*|"
    r"LD|LC|LANG|PATH|HOME|TMPDIR|XDG|HTTPS?|NO_PROXY|SSL|MASTER|TF|XLA|AWS|RDMA\w*|SHARP\w*|EFA"
    r")(_\w*)?"
)
_OURS = [name for name, field in FIELDS.items() if field.metadata["group"] != "set by the launcher"]
# Each other way to write a name, without underscores → the name, and whether it is sure.
_PLAIN = {
    **{word: (ours, False) for ours, words in SHARED.items() for word in words},
    **{word: (ours, True) for ours, words in SYNONYMS.items() for word in words},
    **{ours.replace("_", ""): (ours, ours not in EVERYDAY) for ours in _OURS},
}
_LONG = [ours for ours in _OURS if len(ours) >= 5]


def notes(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each doubtful variable of the environment and of the Bash layers.

    Raises UsageError for one that can only be meant for the launcher.
    """
    found = []
    from_layers = by_layer(environ)
    layered = {name for names in from_layers.values() for name in names}
    for name in environ.keys() - layered - FIELDS.keys():
        meant, sure = nearest(name)
        if sure:
            raise UsageError(
                f"{name} (environment) is not a variable of the launcher. Did you mean {meant}?"
            )
        if meant:
            found.append(f"{name} (environment) has no effect here: did you mean {meant}?")
    for layer, names in from_layers.items():
        found += unknown(names, layer, "they reach the training processes as they are")
    return sorted(found)


def unknown(names: Iterable[str], origin: str, effect: str) -> list[str]:
    """Return a line for the names in a config or sweep that no program here is known to read.

    Raises UsageError for one that is close to a variable of the launcher.
    """
    found, strange = [], []
    for name in names:
        if name in FIELDS:
            continue
        meant, sure = nearest(name)
        if meant and (sure or name.isupper()):
            raise UsageError(
                f"{name} ({origin}) is not a variable of the launcher. Did you mean {meant}?"
            )
        if meant:
            found.append(f"{name} ({origin}) has no effect here: did you mean {meant}?")
        elif name.isupper() and not FAMILIES.fullmatch(name):
            strange.append(name)
    if strange:
        found.append(
            f"{origin} sets {', '.join(strange)}, which the launcher does not know; {effect}"
        )
    return found


@functools.cache
def nearest(name: str) -> tuple[str, bool]:
    """Return the variable that `name` is close to ('' for none), and whether that is sure."""
    if name in FIELDS:
        return "", False
    upper = name.upper()
    plain = upper.replace("_", "")
    if plain in _PLAIN:
        return _PLAIN[plain]
    for ours in _LONG:
        # A slip leaves the first letter, or all that follows it.
        if (upper[:1] == ours[0] or upper[1:3] in ours[:4]) and _one_slip(upper, ours):
            return ours, upper != f"{ours}S"
    return "", False


def _one_slip(word: str, right: str) -> bool:
    """Say whether one letter is missing, too many, wrong, or swapped with the next."""
    if abs(len(word) - len(right)) > 1 or word == right:
        return False
    same = next((i for i, pair in enumerate(zip(word, right)) if pair[0] != pair[1]), None)
    if same is None:
        return True  # one of them has a last letter more
    left, other = word[same:], right[same:]
    return (
        left[1:] == other[1:]
        or left[1:] == other
        or left == other[1:]
        or (left[1::-1] == other[:2] and left[2:] == other[2:])
    )
