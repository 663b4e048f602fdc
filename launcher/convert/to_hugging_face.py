"""Convert a Megatron checkpoint, legacy or torch_dist, to Hugging Face safetensors."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Union

import torch

from launcher.convert import (
    audit,
    encodings,
    hugging_face,
    legacy,
    manifest,
    resumable,
    tables,
    torch_dist,
)
from launcher.convert.audit import Filled, stop
from launcher.convert.configuration import language_model
from launcher.convert.description import Description
from launcher.convert.files import SMALL, Output, ahead
from launcher.convert.megatron_source import Checkpoint
from launcher.convert.tables import Table
from launcher.convert.to_megatron import vocabulary
from launcher.convert.transforms import ZeroCentred
from launcher.convert.values import Changes, require_finite
from launcher.errors import UsageError

SHARD_BYTES = 5_000_000_000
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".part")

Reader = Union[legacy.Reader, torch_dist.Reader]


@dataclass(frozen=True)
class Piece:
    """One of the tensors into which a parameter is taken apart, or a part of it."""

    one: Filled
    part: int
    transposed: bool = False  # it is published by its columns

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, by its rows."""
        return self.one.source_shapes[self.part]


@dataclass(frozen=True)
class Tensor:
    """A tensor to publish: its pieces are written one behind the other."""

    name: str
    pieces: tuple[Piece, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * math.prod(self.shape)


def open_checkpoint(source: Checkpoint, job: Description) -> Reader:
    """Return a reader of a checkpoint. Raises UsageError where the job's model is another."""
    reader = torch_dist.Reader if source.form == "torch_dist" else legacy.Reader
    return reader(source.folder, job)


def published(
    job: Description, table: Table, config: Mapping[str, object], like: Path, mtp: int
) -> list[Tensor]:
    """Return every tensor to publish, in the model's order, its dtype that of `like` if there.

    `mtp` layers of multi-token prediction are published, which may be fewer than the job has.
    """
    model = replace(job.shape.model, mtp=mtp, mtp_built=mtp)
    filled = audit.pair(table, model, vocabulary(config, model.vocabulary))
    twins = tables.twins(table, model)
    names = audit.sources(filled, twins)
    stored = _tensors(like)
    there = {encodings.plain_name(name): one for name, one in stored.items()}
    known = _dtypes(there, names)
    found = {}
    for one in filled:
        for part, (name, shape) in enumerate(zip(one.row.sources, one.source_shapes)):
            usual = torch.float32 if one.parameter.float32 else job.dtype
            found[name] = Tensor(name, (Piece(one, part),), known.get(name, usual), shape)
    for name, other in twins.items():
        if name in known or (not known and name != tables.OUTPUT):
            found[name] = replace(found[other], name=name)
    result = _stacked(found, there, table).values()
    if "text_config" in config:
        return list(result)  # the language model alone
    named = encodings.names_as(stored)
    return [replace(tensor, name=named(tensor.name)) for tensor in result]


def _tensors(like: Path) -> Mapping[str, hugging_face.Stored]:
    """Return the tensors that are published in `like`; none where it has no weights."""
    return hugging_face.open_source(like).tensors if any(like.glob("*.safetensors")) else {}


def _stacked(
    found: Mapping[str, Tensor], there: Mapping[str, hugging_face.Stored], table: Table
) -> dict[str, Tensor]:
    """Return the tensors, with the experts in stacks where `there` or the architecture has them."""
    stacks = encodings.stacks(there)
    if not stacks and not table.alternating:
        return dict(found)
    experts = encodings.Experts(table)
    groups: dict[str, list[Tensor]] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in found.items():
        stack = experts.stack_of(name, stacks)
        if stack:
            groups.setdefault(stack, []).append(tensor)
            result.setdefault(stack, tensor)  # holds the stack's place in the order
        else:
            plain = experts.beside_stacks(name)
            result[plain] = replace(tensor, name=plain)
    dtypes = _dtypes(there, groups)
    for name, group in groups.items():
        by_columns = table.alternating and len(group[0].shape) == 2
        pieces = [replace(piece, transposed=by_columns) for one in group for piece in one.pieces]
        rows, *columns = group[0].shape[::-1] if by_columns else group[0].shape
        each = 2 if "gate_up_proj" in name and not table.alternating else 1  # gate and up apart
        shape = (len(group) // each, each * rows, *columns)
        if name in there and there[name].shape != shape:
            raise UsageError(f"LIKE_PATH: {name} is {list(there[name].shape)}, of another model")
        result[name] = Tensor(name, tuple(pieces), dtypes.get(name, group[0].dtype), shape)
    return result


def _dtypes(
    there: Mapping[str, hugging_face.Stored], names: Collection[str]
) -> dict[str, torch.dtype]:
    """Return the dtypes of the tensors of these names, those of quantized ones as bfloat16.

    Raises UsageError for a dtype that no weight can be written as.
    """
    dtypes, problems = {}, []
    for end in encodings.PACKED:
        dtypes.update({name: torch.bfloat16 for name in names if name + end in there})
    for name in there.keys() & set(names):
        dtype = there[name].dtype
        if dtype.startswith("F8_"):
            dtypes[name] = torch.bfloat16
        elif dtype in hugging_face.DTYPES:
            dtypes[name] = hugging_face.DTYPES[dtype]
        else:
            problems.append(f"{name} is {dtype}")
    known = ", ".join(hugging_face.DTYPES)
    stop(
        sorted(problems),
        f"LIKE_PATH has dtypes that weights are not written as (only {known} are):",
    )
    return dtypes


def units(reader: Reader, tensors: Sequence[Tensor]) -> list[resumable.Unit]:
    """Return the files to write: tensors in order, up to 5 GB each."""
    groups: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.bytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    return [
        resumable.Unit(
            _file(number, len(groups)),
            sum(tensor.bytes for tensor in group),
            partial(_write, reader, group),
        )
        for number, group in enumerate(groups)
    ]


def _file(number: int, count: int) -> str:
    return (
        hugging_face.SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    )


def _write(reader: Reader, group: Sequence[Tensor], output: Output) -> dict[str, list]:
    changes = Changes()
    header = hugging_face.header([(one.name, one.dtype, one.shape) for one in group])
    output.write(header)
    pieces = [(tensor, piece) for tensor in group for piece in tensor.pieces]
    runs = [list(run) for _, run in groupby(pieces, lambda one: id(one[1].one))]
    wholes = ahead(
        reader.read,
        [run[0][1].one.parameter for run in runs],
        small=lambda parameter: parameter.numel < SMALL // 2,
    )
    for run, whole in zip(runs, wholes):
        one = run[0][1].one
        require_finite(whole, one.parameter.name)
        parts = one.row.how.backward(whole)
        if isinstance(one.row.how, ZeroCentred):
            changes.compare(whole, one.row.how.forward(parts), one.parameter.name)
        for tensor, piece in run:
            part = changes.cast(parts[piece.part], tensor.dtype, one.row.sources[piece.part])
            if tuple(part.shape) != piece.shape:
                raise UsageError(f"{tensor.name}: {list(part.shape)}, not {list(piece.shape)}")
            output.tensor(part.t() if piece.transposed else part)
    return {"names": [tensor.name for tensor in group], "changes": changes.as_json()}


def described(
    config: Mapping[str, Any], table: Table, tensors: Sequence[Tensor], mtp: int
) -> dict[str, Any]:
    """Return the config.json of what is written: unquantized, with its dtype and sizes."""
    if isinstance(config.get("text_config"), Mapping):
        config = language_model(config)  # which is written alone
    bytes_of: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        bytes_of[tensor.dtype] += tensor.bytes
    ((dtype, _),) = bytes_of.most_common(1)
    name = str(dtype).removeprefix("torch.")
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name.endswith(EMBEDDING))
    found = {**_unquantized(config), "vocab_size": rows}
    for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
        found[key] = name
    counts = [key for key in MTP_KEYS if key in config]
    if not counts and table.mtp and table.mtp.default not in (None, mtp):
        counts = [MTP_KEYS[0]]
    return {**found, **dict.fromkeys(counts, mtp)}


EMBEDDING = "embed_tokens.weight"
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")


def _unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    gone = ("quantization_config", "compression_config")
    return {key: value for key, value in config.items() if key not in gone}


def finish(
    like: Path,
    config: Mapping[str, object],
    table: Table,
    tensors: Sequence[Tensor],
    mtp: int,
    files: Path,
    records: Mapping[str, dict],
) -> None:
    """Write the index, the configuration, and the tokenizer's and other small files of `like`."""
    for path in sorted(like.iterdir()):
        weights = path.name.endswith((*WEIGHTS, ".index.json"))
        if path.is_file() and not weights and path.name not in ("config.json", manifest.NAME):
            shutil.copyfile(path, files / path.name)
    text = json.dumps(described(config, table, tensors, mtp), indent=2, ensure_ascii=False) + "\n"
    (files / "config.json").write_text(text, encoding="utf-8")
    if len(records) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.bytes for tensor in tensors)},
            "weight_map": {
                name: file
                for file, record in records.items()
                for name in record["details"]["names"]
            },
        }
        text = json.dumps(index, indent=2) + "\n"
        (files / hugging_face.INDEX).write_text(text, encoding="utf-8")
