"""A Megatron checkpoint, legacy or torch_dist, to Hugging Face safetensors."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Union

import torch

from launcher.convert import audit, hugging_face, legacy, manifest, resumable, tables, torch_dist
from launcher.convert.audit import Filled
from launcher.convert.description import Description
from launcher.convert.files import Output, ahead
from launcher.convert.tables import Table
from launcher.convert.to_megatron import TRACKER, vocabulary
from launcher.convert.transforms import ZeroCentred
from launcher.convert.values import Changes, require_finite
from launcher.errors import UsageError

SHARD_BYTES = 5_000_000_000
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".part")

Reader = Union[legacy.Reader, torch_dist.Reader]


@dataclass(frozen=True)
class Tensor:
    """A tensor to publish: the parameter it is a part of, and which part."""

    name: str
    one: Filled
    part: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * math.prod(self.shape)


def open_checkpoint(source: Path, job: Description) -> Reader:
    """Return a reader of the newest checkpoint in a folder. Raises UsageError where none is."""
    tracker = source / TRACKER
    if not tracker.is_file():
        raise UsageError(f"{source} has no {TRACKER}: it is no Megatron checkpoint, or unfinished")
    iteration = tracker.read_text(encoding="utf-8").strip()
    if iteration != "release" and not iteration.isdigit():
        raise UsageError(f"{tracker} says {iteration!r}, neither a number nor release")
    folder = source / (iteration if iteration == "release" else f"iter_{int(iteration):07d}")
    if (folder / "metadata.json").is_file():
        return torch_dist.Reader(folder, job)
    if any(folder.glob("mp_rank_*")):
        return legacy.Reader(folder, job)
    raise UsageError(f"{folder} has neither metadata.json (torch_dist) nor mp_rank_* (legacy)")


def published(
    job: Description, table: Table, config: Mapping[str, object], like: Path
) -> list[Tensor]:
    """Return every tensor to publish, in the model's order, its dtype that of `like` if there."""
    model = job.shape.model
    filled = audit.pair(table, model, vocabulary(config, model.vocabulary))
    twins = tables.twins(table, model)
    audit.sources(filled, twins)
    known = _dtypes(like)
    found = {}
    for one in filled:
        for part, (name, shape) in enumerate(zip(one.row.sources, one.source_shapes)):
            usual = torch.float32 if one.parameter.float32 else job.dtype
            found[name] = Tensor(name, one, part, known.get(name, usual), shape)
    for name, other in twins.items():
        if not known or name in known:
            tensor = found[other]
            found[name] = Tensor(name, tensor.one, tensor.part, tensor.dtype, tensor.shape)
    return list(found.values())


def _dtypes(like: Path) -> dict[str, torch.dtype]:
    """Return the dtypes of the model published in `like`, FP8 as bfloat16; none without weights."""
    if not any(like.glob("*.safetensors")):
        return {}
    dtypes = {}
    for name, tensor in hugging_face.open_source(like).tensors.items():
        if not name.endswith(hugging_face.SCALE):
            dtype = hugging_face.DTYPES[tensor.dtype]
            dtypes[name] = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
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
    runs = [list(run) for _, run in groupby(group, lambda tensor: tensor.one)]
    for run, whole in zip(runs, ahead(reader.read, [run[0].one.parameter for run in runs])):
        how, name = run[0].one.row.how, run[0].one.parameter.name
        require_finite(whole, name)
        parts = how.backward(whole)
        if isinstance(how, ZeroCentred):
            changes.compare(whole, how.forward(parts), name)
        for tensor in run:
            part = changes.cast(parts[tensor.part], tensor.dtype, tensor.name)
            if tuple(part.shape) != tensor.shape:
                raise UsageError(f"{tensor.name}: {list(part.shape)}, not {list(tensor.shape)}")
            output.tensor(part)
    return {"names": [tensor.name for tensor in group], "changes": changes.as_json()}


def finish(
    like: Path,
    config: Mapping[str, object],
    tensors: Sequence[Tensor],
    files: Path,
    records: Mapping[str, dict],
) -> None:
    """Write the index, the configuration, and the tokenizer's and other small files of `like`."""
    for path in sorted(like.iterdir()):
        weights = path.name.endswith((*WEIGHTS, ".index.json"))
        if path.is_file() and not weights and path.name not in ("config.json", manifest.NAME):
            shutil.copyfile(path, files / path.name)
    # What is written is not quantized any more.
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
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
