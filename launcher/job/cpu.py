"""A job without GPUs, or without Transformer Engine: flags that need them are replaced.

Each replacement is a line for the user. Megatron's code, its arithmetic and the collectives stay.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.config.arguments import Argument
from launcher.job.draft import Draft
from launcher.megatron.replacements import (
    ON_THE_CPU,
    WITHOUT_TRANSFORMER_ENGINE,
    Replacement,
)

FLAGS: Mapping[str, tuple[str, ...]] = {
    "--distributed-backend": ("gloo",),
    "--no-gradient-accumulation-fusion": (),  # Apex's CUDA extension
    "--no-rope-fusion": (),  # Transformer Engine's, and for MLA a Triton kernel
}
# Ranks share the cores. Megatron asks for one hardware queue where A2A overlap is off.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def without_gpus(draft: Draft, origin: str) -> Draft:
    """Return the job for CPU processes that talk through gloo; `origin` says why."""
    draft = _replace(draft, (*WITHOUT_TRANSFORMER_ENGINE, *ON_THE_CPU), origin)
    arguments = dict(draft.arguments)
    for flag, values in FLAGS.items():
        arguments[flag] = Argument(flag, values, origin)
    if draft.settings.WANDB_MODE == "disabled":
        # Importing wandb takes seconds in every process, to record nothing.
        for flag in ("--wandb-project", "--wandb-exp-name", "--wandb-save-dir"):
            arguments.pop(flag, None)
    environment = {name: (text, "CPU") for name, text in ENVIRONMENT.items()}
    return draft.change(arguments=arguments, environment={**draft.environment, **environment})


def without_transformer_engine(draft: Draft, origin: str) -> Draft:
    """Return the job on Megatron's own local modules; `origin` says why."""
    return _replace(draft, WITHOUT_TRANSFORMER_ENGINE, origin)


def _replace(draft: Draft, replacements: tuple[Replacement, ...], origin: str) -> Draft:
    """Apply replacements; each that changes something is a note."""
    arguments, notes = dict(draft.arguments), []
    for replacement in replacements:
        found = [flag for flag in replacement.flags if flag in arguments]
        if not found or (replacement.instead and arguments[found[0]].values == replacement.instead):
            continue
        before = " ".join(" ".join(arguments[flag].words()) for flag in found)
        for flag in found:
            if replacement.instead is None:
                del arguments[flag]
            else:
                arguments[flag] = Argument(flag, replacement.instead, origin)
        after = f"{found[0]} {' '.join(replacement.instead)}" if replacement.instead else "nothing"
        notes.append(f"replaced: {before} → {after} ({replacement.reason})")
    return draft.change(*notes, arguments=arguments)
