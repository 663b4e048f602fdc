"""The parallel sizes of a job, read in one place from its Megatron arguments.

Defaults are those of Megatron's parser and of validate_args (megatron/training/arguments.py).
"""

from __future__ import annotations

import math

from launcher.config.arguments import Arguments, positive, value
from launcher.config.layout import ACCOUNTED, expand
from launcher.records import dataclass

TENSOR = "--tensor-model-parallel-size"
PIPELINE = "--pipeline-model-parallel-size"
CONTEXT = "--context-parallel-size"
EXPERT = "--expert-model-parallel-size"
EXPERT_TENSOR = "--expert-tensor-parallel-size"
LAYOUT = "--pipeline-model-parallel-layout"
VIRTUAL = "--num-virtual-stages-per-pipeline-rank"
LAYERS_PER_CHUNK = "--num-layers-per-virtual-pipeline-stage"

# A flag on the command line also sets its variable, so that everything computed from it agrees.
FLAG_OF = {
    "TP": TENSOR,
    "PP": PIPELINE,
    "EP": EXPERT,
    "CP": CONTEXT,
    "VPP": VIRTUAL,
    "MBS": "--micro-batch-size",
    "GBS": "--global-batch-size",
    "SEQ_LEN": "--seq-length",
}


@dataclass(frozen=True)
class Sizes:
    """Ranks of each kind of process group."""

    tensor: int
    pipeline: int
    context: int
    expert: int
    expert_tensor: int

    @property
    def least_ranks(self) -> int:
        """The smallest number of ranks with which all groups exist."""
        dense = self.tensor * self.pipeline * self.context
        return math.lcm(dense, self.expert_tensor * self.expert * self.pipeline)

    def __str__(self) -> str:
        """Name what a legacy checkpoint is bound to."""
        text = f"TP{self.tensor} PP{self.pipeline} EP{self.expert}"
        alike = self.expert == 1 or self.expert_tensor == self.tensor
        return text if alike else f"{text} ETP{self.expert_tensor}"


def tensor_expert(tensor: int, expert: int, expert_tensor: int) -> list[tuple[int, int, int]]:
    """Return the (tensor, expert, expert tensor) ranks that occur together in a pipeline stage.

    Megatron numbers the ranks of a stage once by tensor parallelism and once by expert tensor,
    then expert parallelism (parallel_state.py), so only some combinations exist.
    """
    period = range(math.lcm(tensor, expert_tensor * expert))
    return sorted(
        {(rank % tensor, rank // expert_tensor % expert, rank % expert_tensor) for rank in period}
    )


def read(arguments: Arguments) -> Sizes:
    """Return the sizes. Raises ValueError where one is not a positive whole number."""
    tensor = positive(arguments, TENSOR, 1)
    return Sizes(
        tensor=tensor,
        pipeline=positive(arguments, PIPELINE, 1),
        context=positive(arguments, CONTEXT, 1),
        expert=positive(arguments, EXPERT, 1),
        expert_tensor=positive(arguments, EXPERT_TENSOR, tensor),
    )


def virtual_stages(arguments: Arguments, pipeline: int) -> int:
    """Return the model chunks of a pipeline rank, 1 without interleaving (validate_args).

    Layers or chunks that do not divide are rounded down. Raises ValueError where a needed value is
    not a positive whole number, and where the layout cannot be read.
    """
    layout = value(arguments, LAYOUT)
    if layout:
        return max(1, len(expand(layout)) // pipeline)
    if VIRTUAL in arguments:
        return positive(arguments, VIRTUAL)
    if LAYERS_PER_CHUNK in arguments:
        counted = positive(arguments, "--num-layers") + sum(flag in arguments for flag in ACCOUNTED)
        return max(1, counted // pipeline // positive(arguments, LAYERS_PER_CHUNK))
    return 1
