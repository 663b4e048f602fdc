"""The submitting shell: what of its environment a Slurm job is given, and the notes on the rest.

The training processes get what job.sh exports, from whatever shell it was submitted. Slurm's own
commands read some two hundred variables; none but these reaches one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase, translate

from launcher.config.settings import FIELDS, by_layer
from launcher.errors import UsageError
from launcher.job.draft import Draft, Environment
from launcher.secrets import SECRETS, is_secret

# Who somebody is, where programs are, how Slurm is reached, and what must stand in no file.
PERSON = ("HOME", "USER", "LOGNAME", "PATH", "KRB5CCNAME", "SLURM_CONF", "SLURM_JWT", *SECRETS)
# What Slurm sets in every job's script, and the script and its srun need.
OF_THE_JOB = (
    "SLURMD_NODENAME",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_PARTITION",
    "SLURM_TASKS_PER_NODE",
    "SLURM_SPANK_*",  # options of plugins, given to sbatch
)
# Names that a training process, or a program that starts it, would heed.
HEEDED = (
    *("APPTAINER*", "BASH_ENV", "CU[ABD]*", "ENROOT*", "FI_*", "GLOO*", "HF_*", "*_proxy"),
    *("LD_*", "LOCAL_*", "MASTER_ADDR", "MKL_*", "*NCCL*", "NVIDIA*", "NVSHMEM*", "NVTE*"),
    *("OMP[_I]*", "*PMI*", "PYTHON*", "PYTORCH*", "RANK", "SBATCH*", "SLURM*", "SRUN*"),
    *("TORCH*", "TRITON*", "UC[CX]_*", "WANDB*", "WORLD_SIZE"),
)
_FOR_SLURM = re.compile(r"_?S(LURM|BATCH|RUN|ALLOC|QUEUE|INFO|CONTROL|ACCT|CANCEL|PANK)_")


def for_sbatch(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that sbatch is started in, and hands on to the job's script."""
    names = (*PERSON, *from_configs(environ))
    return {name: environ[name] for name in names if name in environ}


def from_configs(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets that a Bash layer set: a job inherits them, no file holds them."""
    return sorted(
        name
        for names in by_layer(environ).values()
        for name in names
        if is_secret(name, environ.get(name, "")) and name not in SECRETS
    )


def for_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what would change how Slurm's other commands answer."""
    return {
        name: text for name, text in environ.items() if name in PERSON or not _FOR_SLURM.match(name)
    }


def passed_on(draft: Draft, environ: Mapping[str, str]) -> Environment:
    """Return the variables that PASS_ENV names. Raises UsageError for a secret."""
    origin = f"PASS_ENV ({draft.settings.origin('PASS_ENV')})"
    found = {}
    for pattern in re.split(r"[\s,]+", draft.settings.PASS_ENV or ""):
        for name in filter(lambda name: fnmatchcase(name, pattern), environ):
            if is_secret(name, environ[name]):
                raise UsageError(
                    f"{origin}: {name} may be a secret, and would stand in job.sh; "
                    "NODE_SETUP_PATH can set it on the node"
                )
            found[name] = (environ[name], f"environment, {origin}")
    return found


def compare(draft: Draft, environ: Mapping[str, str]) -> Draft:
    """Say which variables of this shell the training processes get, and which they do not."""
    over = [name for name, (_, origin) in draft.environment.items() if origin == "environment"]
    away = [
        name
        for name in heeded(environ)
        if name not in draft.environment and name not in FIELDS and name not in PERSON
    ]
    notes = []
    if over:
        notes.append(f"taken over from this shell: {', '.join(sorted(over))}")
    if away:
        notes.append(
            f"this shell's {', '.join(sorted(away))} will not reach the training processes "
            "(PASS_ENV='NAME …', or the cluster config, passes variables on)"
        )
    return draft.change(*notes)


def heeded(names: Iterable[str]) -> list[str]:
    """Return those of the names that a training process might heed."""
    return list(filter(_heeded().match, names))


@functools.cache
def _heeded() -> re.Pattern[str]:
    return re.compile("|".join(map(translate, HEEDED)))
