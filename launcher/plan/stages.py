"""Which layers each pipeline stage and virtual chunk holds, as Megatron-Core distributes them.

Sources: PipelineParallelLayerLayout (core/transformer/pipeline_parallel_layer_layout.py),
get_num_layers_to_build (transformer_block.py), get_transformer_layer_offset
(transformer_layer.py) and get_mtp_num_layers_to_build (multi_token_prediction.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TypeVar

from launcher.config.layout import expand
from launcher.plan.shape import Model, Shape
from launcher.records import dataclass

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    number: int  # in its own count, of the decoder or of MTP; from 0
    moe: bool
    linear: bool  # linear attention
    mtp: bool  # a multi-token prediction layer

    @property
    def kind(self) -> str:
        """Its name in a table. Layers of a kind differ only in their numbers."""
        linear = "linear " if self.linear else ""
        return f"{'MTP ' if self.mtp else ''}{linear}{'MoE' if self.moe else 'dense'}"


@dataclass(frozen=True)
class Chunk:
    """The model chunk of one pipeline rank and virtual stage."""

    pipeline_rank: int
    virtual_stage: int
    layers: tuple[Layer, ...]
    embedding: bool  # the model's own
    embedding_copy: bool  # MTP's, where the chunk has no embedding of its own
    final_norm: bool
    loss: bool  # output layer and loss

    @property
    def mtp(self) -> tuple[Layer, ...]:
        """The MTP layers."""
        return tuple(layer for layer in self.layers if layer.mtp)

    @property
    def decoder(self) -> tuple[Layer, ...]:
        """The decoder's layers."""
        return tuple(layer for layer in self.layers if not layer.mtp)


@dataclass(frozen=True)
class Stage:
    """What one pipeline rank holds."""

    pipeline_rank: int
    chunks: tuple[Chunk, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of all chunks."""
        return tuple(layer for chunk in self.chunks for layer in chunk.layers)


def split(shape: Shape) -> tuple[Stage, ...]:
    """Return every pipeline stage. Raises ValueError where no whole number of layers fits."""
    sizes = _by_layout(shape) if shape.split.layout is not None else _by_counts(shape)
    stages = len(sizes)
    virtual = len(sizes[0])
    model = shape.model
    chunks = [
        [
            _chunk(model, rank, stage, sizes[rank][stage], (stages, virtual))
            for stage in range(virtual)
        ]
        for rank in range(stages)
    ]
    return tuple(Stage(rank, tuple(held)) for rank, held in enumerate(chunks))


@dataclass(frozen=True)
class _Size:
    """The number of layers of a chunk, and where they start."""

    offset: int
    layers: int
    mtp: int
    embedding: bool
    loss: bool


def _chunk(model: Model, rank: int, stage: int, size: _Size, grid: tuple[int, int]) -> Chunk:
    # Megatron slices the list of all layers, so layers beyond its end are silently absent.
    numbers = range(size.offset, min(size.offset + size.layers, model.layers))
    decoder = tuple(Layer(n, model.moe[n], model.linear[n], False) for n in numbers)
    return Chunk(
        pipeline_rank=rank,
        virtual_stage=stage,
        layers=decoder + tuple(mtp_layer(model, n, bool(decoder)) for n in range(size.mtp)),
        embedding=size.embedding,
        embedding_copy=bool(size.mtp) and not size.embedding,
        # With MTP, the norm stands behind the last decoder layer wherever that is; without, it
        # belongs to the output (TransformerBlock.has_final_layernorm_in_this_stage).
        final_norm=model.layers - 1 in numbers if model.mtp else size.loss,
        loss=size.loss,
    )


def mtp_layer(model: Model, number: int, beside_decoder: bool = True) -> Layer:
    """Return the MTP layer, which repeats the decoder's last one.

    Beside no decoder layer at all Megatron's builder takes the MoE layer of a model that has
    experts (mtp_block_spec, training/models/gpt.py).
    """
    moe = model.moe[-1] or (
        not beside_decoder and model.experts is not None and model.linear_attention is None
    )
    return Layer(number, moe, model.linear[-1], True)


def _by_layout(shape: Shape) -> list[list[_Size]]:
    """Read the layout string: chunk v of rank p is its part number v·PP + p."""
    stages, virtual = shape.parallel.pipeline, shape.parallel.virtual
    parts = expand(shape.split.layout or "")
    if len(parts) % stages:
        raise ValueError(f"the layout has {len(parts)} chunks, which do not divide by PP={stages}")
    built = shape.model.mtp_built
    sizes, offset = [], 0
    for part in parts:
        layers = part.count("t")
        mtp = built if "m" in part else 0
        sizes.append(_Size(offset, layers, mtp, "E" in part, "L" in part))
        offset += layers
    if offset != shape.model.layers:
        raise ValueError(f"the layout has {offset} layers (t), the model {shape.model.layers}")
    if sum(part.count("m") for part in parts) != shape.model.mtp:
        raise ValueError(
            f"the layout has {sum(part.count('m') for part in parts)} MTP layers (m), "
            f"the model {shape.model.mtp}"
        )
    return [[sizes[v * stages + p] for v in range(virtual)] for p in range(stages)]


def _counted(shape: Shape) -> int:
    return shape.model.layers + shape.split.account_embedding + shape.split.account_loss


def _even(whole: int, parts: int, what: str) -> int:
    if parts < 1 or whole % parts:
        raise ValueError(f"{whole} layers do not divide by {parts} {what}")
    return whole // parts


def _by_counts(shape: Shape) -> list[list[_Size]]:
    """Split evenly, or around the numbers given for the first and the last stage."""
    stages, virtual = shape.parallel.pipeline, shape.parallel.virtual
    if shape.split.layers_per_chunk is not None:
        _even(_even_stages(shape)[0], shape.split.layers_per_chunk, "layers a virtual stage")
    uneven = shape.split.first is not None or shape.split.last is not None
    per_stage = _uneven_stages(shape) if uneven else _even_stages(shape)
    per_chunk = [_even(layers, virtual, "virtual stages") for layers in per_stage]
    sizes = []
    for rank in range(stages):
        held = []
        for stage in range(virtual):
            first = rank == 0 and stage == 0
            last = rank == stages - 1 and stage == virtual - 1
            held.append(
                _Size(
                    offset=_offset(shape, rank, stage, virtual),
                    layers=per_chunk[rank]
                    - (first and shape.split.account_embedding)
                    - (last and shape.split.account_loss),
                    mtp=shape.model.mtp_built if last else 0,
                    embedding=first,
                    loss=last,
                )
            )
        sizes.append(held)
    if min(size.layers for held in sizes for size in held) < 0:
        raise ValueError("a virtual stage is left with less than no layer")
    return sizes


def _even_stages(shape: Shape) -> list[int]:
    stages = shape.parallel.pipeline
    return [_even(_counted(shape), stages, "pipeline stages")] * stages


def _uneven_stages(shape: Shape) -> list[int]:
    first, last, stages = shape.split.first, shape.split.last, shape.parallel.pipeline
    middle = stages - (first is not None) - (last is not None)
    rest = shape.model.layers - (first or 0) - (last or 0)
    share = _even(rest, middle, "middle stages") if middle > 0 else 0
    layers = [share] * stages
    if first is not None:
        layers[0] = first
    if last is not None:
        layers[-1] = last
    return layers


def _offset(shape: Shape, rank: int, stage: int, virtual: int) -> int:
    """Return the first layer of a chunk, as get_transformer_layer_offset computes it."""
    stages = shape.parallel.pipeline
    if stages == 1:
        return 0
    chosen = shape.split
    if chosen.first is None and chosen.last is None:
        layers = _counted(shape)
        per_chunk = layers // stages // virtual
        offset = stage * (layers // virtual) + rank * per_chunk
        return offset - (chosen.account_embedding and (rank, stage) != (0, 0))
    first, last = chosen.first or 0, chosen.last or 0
    middle_stages = stages - (chosen.first is not None) - (chosen.last is not None)
    middle = shape.model.layers - first - last
    middle_rank = rank if chosen.first is None else rank - 1
    if virtual == 1:
        share = middle // middle_stages if middle_stages > 0 else 0
        return 0 if rank == 0 else middle_rank * share + first
    row = first // virtual + middle // virtual + last // virtual
    if rank == 0:
        return stage * row
    # Megatron divides by zero here with two stages that are both given: it refuses the job.
    if middle_stages == 0:
        raise ValueError("virtual stages need a stage between the first and the last")
    return stage * row + first // virtual + middle_rank * (middle // virtual // middle_stages)


def describe(stage: Stage) -> str:
    """Return a stage's chunks in words, | between them, equal ones folded: '(2 MoE)×4'."""
    runs = _runs(map(_describe, stage.chunks), key=str)
    return " | ".join(text if len(same) == 1 else f"({text})×{len(same)}" for text, same in runs)


def _describe(chunk: Chunk) -> str:
    words = ["embedding"] if chunk.embedding else []
    words += [
        f"{len(run)} {kind}" for kind, run in _runs(chunk.layers, key=lambda layer: layer.kind)
    ]
    words += ["loss"] if chunk.loss else []
    return ", ".join(words) or "empty"


def _runs(items: Iterable[T], key: Callable[[T], str]) -> list[tuple[str, list[T]]]:
    return [(value, list(run)) for value, run in groupby(items, key=key)]
