"""The Hugging Face side: safetensors with their index, read tensor by tensor.

The format (github.com/huggingface/safetensors): 8 bytes, the header's length N, little-endian; N
bytes of JSON, {name: {dtype, shape, data_offsets: [begin, end]}}; the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from launcher.convert import files
from launcher.errors import UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}
# What quantized weights are stored as.
_ENCODED = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in (DTYPES | _ENCODED).items()}


class Stored(Protocol):
    """A tensor of the published model, in any encoding."""

    @property
    def path(self) -> Path:
        """The file that it is in."""
        ...

    @property
    def dtype(self) -> str:
        """What it is read as."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, once it is read."""
        ...

    def read(self) -> torch.Tensor:
        """Return its values."""
        ...


@dataclass(frozen=True)
class Tensor:
    """The place of a tensor's bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int  # of its bytes in the file
    size: int  # bytes

    def read(self) -> torch.Tensor:
        """Return its values."""
        dtype = (DTYPES | _ENCODED)[self.dtype]
        data = files.read_bytes(self.path, self.begin, self.size)
        if data.storage_offset() % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).reshape(self.shape)

    def item(self, number: int) -> Tensor:
        """Return one of the entries along the first axis."""
        size = self.size // self.shape[0]
        return replace(self, shape=self.shape[1:], begin=self.begin + number * size, size=size)

    def rows(self, part: int, parts: int) -> Tensor:
        """Return one of as many equal parts of the rows."""
        size = self.size // parts
        shape = (self.shape[0] // parts, *self.shape[1:])
        return replace(self, shape=shape, begin=self.begin + part * size, size=size)


@dataclass(frozen=True)
class Source:
    """A published model: its configuration and all its tensors by name."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def read(self, name: str, part: int = 0, parts: int = 1) -> torch.Tensor:
        """Return a tensor, or one of as many equal parts of its rows."""
        tensor = self.tensors[name]
        if parts == 1:
            return tensor.read()
        if isinstance(tensor, Tensor):
            return tensor.rows(part, parts).read()
        return tensor.read().chunk(parts)[part]


def open_source(folder: Path) -> Source:
    """Read configuration, index and headers; no data. Raises UsageError for anything missing."""
    if not folder.is_dir():
        raise UsageError(f"SOURCE_CKPT_PATH={str(folder)!r} is no folder")
    config = read_config(folder)
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        if not single.is_file():
            raise UsageError(f"{folder} has neither {INDEX} nor {SINGLE}")
        return Source(folder, config, read_header(single))
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise UsageError(f"{index}: no weight_map")
    tensors: dict[str, Tensor] = {}
    missing = sorted(name for name in set(listed.values()) if not (folder / str(name)).is_file())
    if missing:
        raise UsageError(f"{folder}: {_some(missing)} of {INDEX} missing")
    for name in sorted(set(listed.values())):
        for tensor, found in read_header(folder / name).items():
            if listed.get(tensor) != name:
                raise UsageError(
                    f"{folder / name} holds {tensor}, which {INDEX} "
                    + (f"places in {listed[tensor]}" if tensor in listed else "does not list")
                )
            tensors[tensor] = found
    absent = sorted(listed.keys() - tensors.keys())
    if absent:
        raise UsageError(f"{folder}: {_some(absent)} in {INDEX}, but not in the file it names")
    return Source(folder, config, tensors)


def read_config(folder: Path) -> dict:
    """Return config.json. Raises UsageError."""
    return _json(folder / "config.json")


def read_header(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors. Raises UsageError where it is cut short or no safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise UsageError(f"{path}: cut short, {size} bytes are not even its header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: Tensor(
                    path,
                    entry["dtype"],
                    tuple(entry["shape"]),
                    8 + length + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{path}: no safetensors file, its header cannot be read") from None
    end = max((tensor.begin + tensor.size for tensor in tensors.values()), default=8 + length)
    if end != size:
        what = "cut short" if end > size else "too long"
        raise UsageError(f"{path}: {what}, {size} bytes where its header says {end}")
    return tensors


def header(tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]]) -> bytes:
    """Return the first bytes of a file of these tensors, in that order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        size = dtype.itemsize * math.prod(shape)
        entries[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} has no {path.name}") from None
    except ValueError as error:
        raise UsageError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: no JSON object")
    return found


def _some(names: Iterable[str]) -> str:
    """Return a few of many names, for a message."""
    found = list(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more + (" is" if len(found) == 1 else " are")
