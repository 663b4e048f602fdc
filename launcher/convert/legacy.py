"""Megatron's legacy layout: `release/mp_rank_TT_PPP_EEE/model_optim_rng.pt`, a file for each rank.

Sources: get_checkpoint_name and load_checkpoint (megatron/training/checkpointing.py).
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from launcher.config.arguments import integer
from launcher.convert import names, parameters, pickles
from launcher.convert.audit import stop
from launcher.convert.description import Description
from launcher.convert.names import Naming
from launcher.convert.parameters import Parameter
from launcher.errors import UsageError
from launcher.plan.shape import Model
from launcher.plan.stages import Chunk, Layer

FILE = "model_optim_rng.pt"


@dataclass(frozen=True)
class Rank:
    """A rank whose file no other rank's file repeats."""

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int


@dataclass(frozen=True)
class Held:
    """A parameter in a rank's file."""

    parameter: str  # by its name in parameters.py
    model: str  # the file's key: model, or model0, model1, … with virtual stages
    name: str


def ranks(job: Description) -> list[Rank]:
    """Return a rank for each file. Raises UsageError where the layout cannot hold it."""
    files: dict[tuple[int, int], int] = {}
    for tensor, expert, expert_tensor in job.tensor_expert:
        if files.setdefault((tensor, expert), expert_tensor) != expert_tensor:
            parallel = job.shape.parallel
            raise UsageError(
                f"the legacy layout has no file for each part of the experts at "
                f"ETP={parallel.expert_tensor} with TP={parallel.tensor}; FORMAT=torch_dist has"
            )
    return [
        Rank(tensor, stage.pipeline_rank, expert, expert_tensor)
        for stage in job.stages
        for (tensor, expert), expert_tensor in files.items()
    ]


def path(job: Description, rank: Rank) -> str:
    """Return where a rank's file is, below the iteration's folder."""
    parallel = job.shape.parallel
    folder = f"mp_rank_{rank.tensor:02d}"
    folder += f"_{rank.pipeline:03d}" if parallel.pipeline > 1 else ""
    folder += f"_{rank.expert:03d}" if parallel.expert > 1 else ""
    return f"{folder}/{FILE}"


def keys(job: Description, rank: Rank) -> list[str]:
    """Return the keys of the models in a rank's file, one for each virtual stage."""
    count = len(job.stages[rank.pipeline].chunks)
    return ["model"] if count == 1 else [f"model{number}" for number in range(count)]


def held(job: Description, rank: Rank) -> Iterator[Held]:
    """Return the parameters of a rank's file, in the model's order."""
    for key, chunk in zip(keys(job, rank), job.stages[rank.pipeline].chunks):
        for name, parameter in _chunk(job, chunk, rank):
            yield Held(parameter, key, name)


def _chunk(job: Description, chunk: Chunk, rank: Rank) -> Iterator[tuple[str, str]]:
    model = job.shape.model
    if chunk.embedding or chunk.embedding_copy:
        yield parameters.EMBEDDING, parameters.EMBEDDING
    first = chunk.decoder[0].number if chunk.decoder else 0
    for layer in chunk.decoder:
        yield from _layer(job, layer, f"decoder.layers.{layer.number - first}.", rank)
    if chunk.final_norm:
        yield parameters.FINAL_NORM, parameters.FINAL_NORM
    for layer in chunk.mtp:
        start = f"mtp.layers.{layer.number}."
        for part in ("enorm", "hnorm", "eh_proj"):
            yield f"{start}{part}.weight", f"{start}{part}.weight"
        yield from _layer(job, layer, f"{start}{job.naming.mtp_layer}.", rank)
        yield f"{start}final_layernorm.weight", f"{start}final_layernorm.weight"
    if chunk.loss and not model.tied:
        yield parameters.OUTPUT, parameters.OUTPUT
    elif chunk.loss and not chunk.embedding:
        yield parameters.OUTPUT, parameters.EMBEDDING


def _layer(job: Description, layer: Layer, start: str, rank: Rank) -> Iterator[tuple[str, str]]:
    model, whole = job.shape.model, parameters.prefix(layer)
    share = model.experts.count // job.shape.parallel.expert if model.experts else 0
    kind = replace(layer, number=0)
    for name, relative in _names(model, job.naming, kind, rank.expert * share, share):
        yield start + name, whole + relative


@cache
def _names(
    model: Model, naming: Naming, kind: Layer, first: int, share: int
) -> tuple[tuple[str, str], ...]:
    """Return the parameters of a kind of layer: by the file's names and by parameters.py's."""
    local = range(first, first + share)
    return tuple(
        (names.legacy(one.name, kind, model, naming, first), one.name)
        for one in parameters.of_layer(model, kind, "")
        if not one.expert or parameters.expert_number(one.name) in local
    )


def shard(
    sections: Sequence[torch.Tensor], parameter: Parameter, job: Description, rank: Rank
) -> list[torch.Tensor]:
    """Return the sections of a rank's part of a parameter, from the sections of the whole."""
    if parameter.axis is None:
        return list(sections)
    number, count = part_of(parameter, job, rank)
    return [section.chunk(count, parameter.axis)[number] for section in sections]


def part_of(parameter: Parameter, job: Description, rank: Rank) -> tuple[int, int]:
    """Return the number of a rank's part of a split parameter, and the number of parts."""
    number = rank.expert_tensor if parameter.expert else rank.tensor
    return number, _split(parameter, job)


def _split(parameter: Parameter, job: Description) -> int:
    """Return how many ranks a parameter is split over, if it is."""
    parallel = job.shape.parallel
    return parallel.expert_tensor if parameter.expert else parallel.tensor


def join(shards: list[torch.Tensor], parameter: Parameter) -> torch.Tensor:
    """Join the parts of all ranks into the whole parameter."""
    if parameter.axis is None or len(shards) == 1:
        return shards[0]
    if not parameter.sections:
        return torch.cat(shards, parameter.axis)
    sizes = [size // len(shards) for size in parameter.sections]
    parts = [shard.split(sizes) for shard in shards]
    return torch.cat([part for section in zip(*parts) for part in section])


def state(job: Description, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of a file: the models, their extra states, and the rest."""
    filled = {key: _with_extra_states(job, found) for key, found in models.items()}
    return {"args": arguments(job), "checkpoint_version": 3.0, "iteration": 0, **filled}


def arguments(job: Description) -> argparse.Namespace:
    """Return the arguments that Megatron compares with those of a job (check_checkpoint_args)."""
    model, parallel = job.shape.model, job.shape.parallel
    return argparse.Namespace(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.attention.heads,
        padded_vocab_size=model.vocabulary,
        max_position_embeddings=integer(job.arguments, "--max-position-embeddings", 0),
        add_position_embedding="--no-position-embedding" not in job.arguments,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        consumed_train_samples=0,
        skipped_train_samples=0,
        consumed_valid_samples=0,
        no_save_optim=True,
        no_save_rng=True,
    )


def _with_extra_states(job: Description, found: Mapping[str, Any]) -> OrderedDict[str, Any]:
    filled: OrderedDict[str, Any] = OrderedDict()
    for name, tensor in found.items():
        filled[name] = tensor
        module = names.stateful(name)
        if module:
            filled[f"{module}._extra_state"] = None
        core = names.core_attention(name, job.shape.model)
        if core:
            filled[f"{core}._extra_state"] = None
    return filled


class Reader:
    """The parameters of a legacy checkpoint, each put together from the ranks' files."""

    def __init__(self, folder: Path, job: Description):
        self._folder, self._job = folder, job
        self._places: dict[str, list[tuple[Rank, Held]]] = {}
        for rank in ranks(job):
            file = folder / path(job, rank)
            if not file.is_file():
                raise UsageError(
                    f"{file} is missing: the checkpoint has other TP, PP or EP, or is not whole"
                )
            for one in held(job, rank):
                self._places.setdefault(one.parameter, []).append((rank, one))
        self._open = lru_cache(maxsize=64)(self._load)
        self.check()

    def check(self) -> None:
        """Compare every file's names and shapes with the model's. Raises UsageError."""
        by_name = {one.name: one for one in parameters.every(self._job.shape.model)}
        problems = []
        for rank in ranks(self._job):
            state = self._open(rank)
            expected = {(one.model, one.name): one.parameter for one in held(self._job, rank)}
            found = {
                (key, name): tensor
                for key, model in state.items()
                if key.startswith("model")
                for name, tensor in model.items()
                if isinstance(tensor, torch.Tensor) and not name.endswith("_extra_state")
            }
            where = path(self._job, rank)
            missing, left = expected.keys() - found.keys(), found.keys() - expected.keys()
            problems += [f"{where} has no {name}" for _, name in missing]
            problems += [f"{where}: {name} is left over" for _, name in left]
            for place in expected.keys() & found.keys():
                shape = local_shape(by_name[expected[place]], self._job)
                if tuple(found[place].shape) != shape:
                    problems.append(
                        f"{where}: {place[1]} is {list(found[place].shape)}, not {list(shape)}"
                    )
        stop(sorted(problems))

    def read(self, parameter: Parameter) -> torch.Tensor:
        """Return the whole parameter."""
        places = self._places[parameter.name]
        by_number: dict[int, torch.Tensor] = {}
        for rank, one in places:
            number = rank.expert_tensor if parameter.expert else rank.tensor
            if number not in by_number:
                by_number[number] = self._open(rank)[one.model][one.name]
        shards = [by_number[number] for number in sorted(by_number)]
        return join(shards, parameter)

    def _load(self, rank: Rank) -> dict[str, Any]:
        return load(self._folder / path(self._job, rank))


def load(file: Path) -> dict[str, Any]:
    """Return a rank's file; its tensors are mapped into memory. Raises UsageError."""
    try:
        # Checkpoints hold their arguments as objects of Megatron's; nothing here needs them.
        return torch.load(
            file, map_location="cpu", mmap=True, weights_only=False, pickle_module=pickles
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{file} cannot be read: {reason}") from None


def names_in(folder: Path) -> set[str]:
    """Return the names of the parameters of all stages, from one tensor and expert rank each."""
    return {
        name
        for file in folder.glob(f"mp_rank_00*/{FILE}")
        if not re.search(r"_\d{3}_(?!000)\d{3}$", file.parent.name)
        for key, model in load(file).items()
        if re.fullmatch(r"model\d*", key)
        for name in model
    }


def local_shape(parameter: Parameter, job: Description) -> tuple[int, ...]:
    """Return the shape of a rank's part."""
    count = _split(parameter, job)
    return tuple(
        size // count if axis == parameter.axis else size
        for axis, size in enumerate(parameter.shape)
    )
