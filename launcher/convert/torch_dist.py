"""Megatron's distributed format, torch_dist: PyTorch's distributed checkpoint, without ranks.

    release/__N_0.distcp    tensors as torch.save writes them, one behind the other
    release/.metadata       the tensors' places: a pickled torch.distributed.checkpoint Metadata
    release/common.pt       what is not a tensor; every release from 0.15 on reads it from there
    release/metadata.json   the format's name
    release/integrity.json  SHA-256 of all of these, for Megatron's --verify-integrity

Sources: torch/distributed/checkpoint/{metadata,filesystem}.py, megatron/core/dist_checkpointing.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from launcher.convert import files, hugging_face, legacy, names, parameters, pickles
from launcher.convert.audit import stop
from launcher.convert.description import Description
from launcher.convert.files import Output
from launcher.convert.names import Place
from launcher.convert.parameters import Parameter
from launcher.errors import UsageError
from launcher.plan.stages import Layer, mtp_layer

FILE_BYTES = 1 << 30  # of tensors in a file, unless one tensor is larger


def layers(job: Description) -> dict[str, Layer]:
    """Return every layer, by the prefix of its parameters' names."""
    model = job.shape.model
    found = [Layer(n, model.moe[n], model.linear[n], False) for n in range(model.layers)]
    found += [mtp_layer(model, n) for n in range(model.mtp_built)]
    return {parameters.prefix(layer): layer for layer in found}


def place(job: Description, by_prefix: Mapping[str, Layer], parameter: Parameter) -> Place:
    """Return where a parameter lies."""
    words = parameter.name.split(".")
    start = ".".join(words[: 4 if words[0] == "mtp" else 3]) + "."
    return names.place(parameter, by_prefix.get(start), job.shape.model, job.naming)


def chunks(parameter: Parameter, where: Place) -> Iterator[tuple[str, tuple, tuple, slice]]:
    """Return a parameter's parts: key, whole tensor's shape, offset in it, and the rows.

    Gate and up projection are apart, as Megatron reads them; a delta net's are other tensors.
    """
    if not parameter.sections:
        sections: Sequence[int] = parameter.shape[:1]
    else:
        sections = parameter.sections
    begin = 0
    for number, size in enumerate(sections):
        rows = slice(begin, begin + size)
        rest = (0,) * (len(parameter.shape) - 1)
        if parameter.section_names:
            key = f"{where.key}.{parameter.section_names[number]}"
            yield key, (*where.stack, size, *parameter.shape[1:]), (*where.index, 0, *rest), rows
        else:
            shape = (*where.stack, *parameter.shape)
            yield where.key, shape, (*where.index, begin, *rest), rows
        begin += size


def write(
    output: Output, parameter: Parameter, where: Place, parts: Sequence[torch.Tensor]
) -> list[dict[str, Any]]:
    """Append a parameter, given as its parts' rows, to a file; return what `finish` needs."""
    written = []
    for (key, shape, offset, rows), part in zip(chunks(parameter, where), parts):
        assert len(part) == rows.stop - rows.start, parameter
        begin = output.bytes
        sizes = (*(1 for _ in where.stack), *part.shape)
        output.save_tensor(sizes, part)
        written.append(
            {
                "key": key,
                "dtype": hugging_face.NAMES[part.dtype],
                "shape": shape,
                "offset": offset,
                "sizes": sizes,
                "begin": begin,
                "length": output.bytes - begin,
            }
        )
    return written


def finish(folder: Path, job: Description, records: Mapping[str, dict]) -> None:
    """Write everything that is no tensor; `records` are those of the tensors' files, by name."""
    tensors: dict[str, TensorStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for file, record in records.items():
        for part in record["details"]["parts"]:
            key, offset = part["key"], torch.Size(part["offset"])
            dtype = hugging_face.DTYPES[part["dtype"]]
            whole = tensors.setdefault(
                key,
                TensorStorageMetadata(TensorProperties(dtype), torch.Size(part["shape"]), []),
            )
            whole.chunks.append(ChunkStorageMetadata(offset, torch.Size(part["sizes"])))
            index = MetadataIndex(key, offset)
            storage[index] = _StorageInfo(Path(file).name, part["begin"], part["length"])
    state: dict[str, Any] = dict(tensors)
    extra = _save([torch.empty(0, dtype=torch.uint8)])
    name = f"__{len(records)}_0.distcp"
    (folder / name).write_bytes(extra)
    # All extra states are the same empty tensor, so one copy serves them all.
    for key in extra_states(job):
        state[key] = BytesStorageMetadata()
        storage[MetadataIndex(key)] = _StorageInfo(name, 0, len(extra))
    (folder / "common.pt").write_bytes(_save(common(job)))
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(Metadata(state, None, storage), file)


def integrity(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the manifest that Megatron itself verifies (validation.py), of all files by name."""
    manifest = {"algorithm": "sha256", "files": dict(sorted(digests.items()))}
    (folder / "integrity.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def common(job: Description) -> dict[str, Any]:
    """Return the part of the checkpoint that is no tensor."""
    return {
        "args": legacy.arguments(job),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }


def extra_states(job: Description) -> list[str]:
    """Return the keys of all extra states that a model asks for when it loads."""
    model, by_prefix = job.shape.model, layers(job)
    keys: dict[str, None] = {}
    for parameter in parameters.every(model):
        where = place(job, by_prefix, parameter)
        module = names.stateful(where.key)
        if module is None or module == "output_layer":
            continue
        index = ".".join(map(str, where.index or (0,)))
        sizes = ".".join(map(str, where.stack or (1,)))
        keys[f"{module}._extra_state/shard_{index}_{sizes}"] = None
        core = names.core_attention(where.key, model)
        if core:
            keys[f"{core}._extra_state/shard_{index}_{sizes}"] = None
    return list(keys)


def _save(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


_OPTIMIZER = ("optimizer.", "chained_")  # a training job's states: they are not converted


class Reader:
    """The parameters of a torch_dist checkpoint, whatever parallelism it was saved with."""

    def __init__(self, folder: Path, job: Description):
        self._folder, self._job, self._layers = folder, job, layers(job)
        found = _metadata(folder)
        self._tensors: dict[str, Any] = found.state_dict_metadata
        self._storage = {
            (index.fqn, tuple(index.offset)): info
            for index, info in found.storage_data.items()
            if index.offset is not None
        }
        self.check()

    def check(self) -> None:
        """Compare the keys and shapes with the model's. Raises UsageError."""
        expected: dict[str, tuple[int, ...]] = {}
        for parameter in parameters.every(self._job.shape.model):
            where = place(self._job, self._layers, parameter)
            for key, shape, _, _ in chunks(parameter, where):
                expected[key] = shape
        problems = []
        for key, shape in expected.items():
            whole = self._tensors.get(key)
            if whole is None:
                problems.append(f"{key} is not in the checkpoint")
            elif tuple(whole.size) != shape:
                problems.append(f"{key} is {list(whole.size)}, the model needs {list(shape)}")
        for key, whole in self._tensors.items():
            tensor = isinstance(whole, TensorStorageMetadata)
            if tensor and key not in expected and not key.startswith(_OPTIMIZER):
                problems.append(f"{key} is left over: the model has no place for it")
        files = {info.relative_path for info in self._storage.values()}
        problems += [
            f"{name} is missing" for name in sorted(files) if not (self._folder / name).is_file()
        ]
        stop(problems)

    def read(self, parameter: Parameter) -> torch.Tensor:
        """Return the whole parameter."""
        where = place(self._job, self._layers, parameter)
        parts = []
        for key, _, offset, rows in chunks(parameter, where):
            lead = len(where.stack)
            sizes = (*(1,) * lead, rows.stop - rows.start, *parameter.shape[1:])
            part = self._region(key, offset, sizes)
            parts.append(part.reshape(part.shape[lead:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _region(self, key: str, offset: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """Return a box of the tensor `key`, from the chunks that overlap with it."""
        whole = self._tensors[key]
        result = torch.empty(tuple(sizes), dtype=whole.properties.dtype)
        filled = 0
        for chunk in whole.chunks:
            begin = [max(a, b) for a, b in zip(offset, chunk.offsets)]
            end = [
                min(a + size, b + length)
                for a, size, b, length in zip(offset, sizes, chunk.offsets, chunk.sizes)
            ]
            if any(b >= e for b, e in zip(begin, end)):
                continue
            stored = self._load(key, tuple(chunk.offsets))
            if tuple(stored.shape) != tuple(chunk.sizes):
                raise UsageError(f"{key}: a chunk is {list(stored.shape)}, not {list(chunk.sizes)}")
            source = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, chunk.offsets))
            target = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, offset))
            if tuple(stored[source].shape) == tuple(sizes):
                return stored[source]
            result[target] = stored[source]
            filled += result[target].numel()
        if filled != result.numel():
            raise UsageError(f"{key}: the checkpoint has no data for a part of it")
        return result

    def _load(self, key: str, offset: tuple[int, ...]) -> torch.Tensor:
        info = self._storage[key, offset]
        data = files.read_bytes(self._folder / info.relative_path, info.offset, info.length)
        return torch.load(io.BytesIO(data.numpy()), map_location="cpu", weights_only=True)


def names_in(folder: Path) -> set[str]:
    """Return the keys of a checkpoint's tensors."""
    return set(_metadata(folder).state_dict_metadata)


def _metadata(folder: Path) -> Metadata:
    """Return the places of all tensors. Raises UsageError where they cannot be read."""
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            return _MetadataUnpickler(file).load()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} cannot be read: {reason}") from None


class _MetadataUnpickler(pickles.Unpickler):
    """Finds the classes of the distributed checkpoint's metadata too."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, or Idle for an unknown one."""
        if module.startswith("torch.distributed.checkpoint") or (module, name) in _METADATA:
            return pickle.Unpickler.find_class(self, module, name)
        return super().find_class(module, name)


_METADATA = {
    ("torch.serialization", "_get_layout"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("pathlib", "PosixPath"),
}
