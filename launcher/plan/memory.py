"""GPU memory of each pipeline rank at its fullest, in bytes, and the assumptions of the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config.gpus import GPUS
from launcher.plan import activations, parameters, static
from launcher.plan.parameters import Count
from launcher.plan.shape import Shape
from launcher.plan.stages import Stage
from launcher.records import dataclass

GIB = 2**30
# CUDA context and kernels, cuBLAS and cuDNN workspaces, NCCL's buffers of all groups.
FRAMEWORK = 4 * GIB
# Communication buffers that the fused dispatchers allocate outside PyTorch.
DISPATCHER = {"deepep": 1 * GIB, "hybridep": 2 * GIB}


@dataclass(frozen=True)
class Rank:
    """Memory of one pipeline rank at its fullest, in bytes."""

    pipeline_rank: int
    weights: int
    gradients: int  # Transformer Engine's placeholders included
    optimizer: int  # what stays on the GPU throughout
    offloaded_states: int  # what is on the GPU during the optimizer's step only
    activations: int  # saved for backward by all micro-batches in flight
    logits: int  # logits and loss
    working: int  # gradients, communication and recomputed tensors of the layer at work
    framework: int
    in_flight: tuple[int, ...]  # micro-batches, by virtual chunk, at the fullest moment

    @property
    def static(self) -> int:
        """The memory that is in use between steps."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Memory at the fullest moment: in the passes, or when offloaded states are back."""
        running = self.activations + self.logits + self.working
        return self.static + self.framework + max(running, self.offloaded_states)


def ranks(shape: Shape, split: Sequence[Stage], imbalance: float | None = None) -> tuple[Rank, ...]:
    """Return the memory of every pipeline rank; `imbalance` replaces the assumed one."""
    return tuple(
        rank(shape, stage, count, imbalance)
        for stage, count in zip(split, parameters.stages(shape, split))
    )


def rank(shape: Shape, stage: Stage, count: Count, imbalance: float | None = None) -> Rank:
    """Return the memory of one pipeline rank."""
    # Layers of a kind are equal, so each kind is computed once for a rank.
    kinds = {one.kind: one for one in stage.layers}
    sizes = {kind: activations.kept(shape, one, imbalance) for kind, one in kinds.items()}
    saved = [activations.chunk_activations(shape, chunk, sizes) for chunk in stage.chunks]
    losses = [activations.logits(shape, chunk) for chunk in stage.chunks]
    flying = activations.in_flight(
        shape, stage.pipeline_rank, [one + loss for one, loss in zip(saved, losses)]
    )
    resident, visiting = static.optimizer(shape, count)
    at_work = max(
        (activations.working(shape, one, imbalance) for one in kinds.values()), default=0.0
    )
    if shape.training.overlap_experts:
        at_work += max(sizes.values(), default=0.0)
    return Rank(
        pipeline_rank=stage.pipeline_rank,
        weights=static.weights(shape, count),
        gradients=static.gradients(shape, count) + static.placeholders(shape, stage),
        optimizer=resident,
        offloaded_states=visiting,
        activations=round(sum(one * n for one, n in zip(saved, flying))),
        logits=round(sum(one * n for one, n in zip(losses, flying))),
        # A layer's backward pass comes after the loss, and the logits are free by then.
        working=round(max(0.0, at_work - max(losses))),
        framework=FRAMEWORK + DISPATCHER.get(shape.training.dispatcher, 0),
        in_flight=flying,
    )


def worst(found: Sequence[Rank]) -> Rank:
    """Return the rank that needs most."""
    return max(found, key=lambda one: one.total)


def room(found: Sequence[Rank], gpu: str) -> float:
    """Return the GiB that the fullest rank leaves free on a GPU; negative where it does not fit."""
    return GPUS[gpu].memory - worst(found).total / GIB


def assumptions(shape: Shape, imbalance: float | None = None) -> list[str]:
    """Return the assumptions of the estimate, for the reader."""
    training, experts = shape.training, shape.model.experts
    lines = [
        "activations are read off Megatron's and Transformer Engine's sources and counted in "
        "Megatron's layers; nothing was calibrated on a GPU",
        f"{FRAMEWORK / GIB:g} GiB for CUDA, NCCL and workspaces, and "
        f"{DISPATCHER.get(training.dispatcher, 0) / GIB:g} GiB of dispatcher buffers",
        "unfused attention: the whole matrix of scores"
        if training.unfused_attention
        else "flash or fused attention: no matrix of scores",
        "all that CUDA reports of the GPU's memory is usable; no fragmentation (without expandable "
        "segments, published runs on B200 reserved 4 to 7 % more than they allocated)",
        "buffers without their padding: parameters start at multiples of 64 elements, buckets end "
        "at multiples of 128 and of DP",
    ]
    if experts is not None:
        lines.append(
            f"the fullest rank gets {activations.imbalance_of(experts, imbalance):g} times its "
            "even share of tokens in every MoE layer"
        )
    if training.fp8:
        lines.append(
            "FP8 keeps two copies of a weight, for forward and for backward, and saves the inputs "
            "of matrix products in one byte"
        )
    if training.graph_modules:
        lines.append("the private pools of CUDA graphs hold what would be saved anyway, no more")
    if training.activations_offloaded:
        lines.append("offloaded activations of one layer at a time are on the GPU")
    if training.offloaded:
        lines.append("the CPU's optimizer holds nothing on the GPU, staging buffers included")
    return lines
