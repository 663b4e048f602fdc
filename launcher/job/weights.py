"""The weights that a checkpoint has, counted and held against those of the job's model.

Megatron itself fails at a weight that the model has and the checkpoint has not, or in another shape
(loading.py, STRICTNESS). What is left then is a weight that only the checkpoint has, and by that
some part of it holds more numbers than the model's.

The job script runs this file on the first node, so it needs nothing but Python's own library.
"""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LEGACY_FILE = "model_optim_rng.pt"
LARGEST_INDEX = 1 << 25  # bytes; more takes seconds to read
# The rows of these depend on the padding for the tensor-parallel ranks, which Megatron lets differ.
PADDED = {"embedding.word_embeddings.weight": "word embedding", "output_layer.weight": "output"}
# An optimizer's states and a router's statistics are no weights.
_NO_WEIGHTS = re.compile(r"optimizer\.|chained_|.*(expert_bias|qb_beta|_extra_state)$")
_NAMED = 3  # differences that a message lists

Needs = Mapping[str, Mapping[str, int]]


def unlike(found: Path, needs: Needs) -> str:
    """Return how the weights in the folder of one iteration differ from a model's, '' for not.

    `needs` has the model's: `parts` → number, of each layer, of `decoder` and `embedding` beside
    their layers and words, and 1 for each of PADDED that there is; and `ranks`, the folders of a
    legacy checkpoint → number.
    """
    if (found / "metadata.json").is_file():
        held = tensors(found)
        return _difference(_parts(held), _stacked(needs["parts"], held)) if held else ""
    for name, count in needs["ranks"].items():
        held = legacy_tensors(found / name / LEGACY_FILE)
        has = sum(math.prod(shape) for key, shape in held.items() if not _NO_WEIGHTS.match(key))
        if held and has != count:
            return f"{name} holds {has:,} weights, and the model has {count:,} there"
    return ""


def tensors(found: Path) -> dict[str, tuple[int, ...]]:
    """Return name → shape of what a distributed checkpoint holds, its optimizer's states too.

    Empty where the index has another layout than the one known here.
    """
    entries = getattr(index(found / ".metadata"), "state_dict_metadata", {})
    return {
        name: tuple(entry.size.arguments[0])
        for name, entry in entries.items()
        if hasattr(entry, "size")  # the others are objects
    }


def legacy_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the model's part in a rank's file of a legacy checkpoint.

    Empty where the file is none that torch.save writes today.
    """
    try:
        content = unpickled(path)
        chunks = [part for key, part in content.items() if re.fullmatch(r"model\d*", key)]
        return {
            f"{number}.{name}": tuple(entry.arguments[2])
            for number, part in enumerate(chunks)
            for name, entry in part.items()
            if isinstance(entry, Record) and len(entry.arguments) > 2
        }
    except Exception:  # zipfile and pickle raise whatever the bytes lead to
        return {}


def unpickled(file: Path | io.BytesIO) -> Any:
    """Return what torch.save wrote, with Record for tensors and other objects.

    Raises whatever zipfile and pickle are led to by its bytes.
    """
    import zipfile  # a dry run without a checkpoint does without it

    with zipfile.ZipFile(file) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
        if archive.getinfo(name).file_size > LARGEST_INDEX:
            raise ValueError("it would take seconds to read")
        return Unpickler(io.BytesIO(archive.read(name))).load()


def index(path: Path) -> Any:
    """Return the index of a distributed checkpoint, None for one that takes seconds to read.

    Raises whatever pickle is led to by its bytes, and FileNotFoundError.
    """
    seen = path.stat()
    return None if seen.st_size > LARGEST_INDEX else _read(path, seen.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _changed: int) -> Any:
    with path.open("rb") as file:
        return Unpickler(file).load()


class Record:
    """Stands for an object of any class: it has the state, and none of the behaviour."""

    def __init__(self, *args: Any, **_: Any):
        self.arguments = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __hash__(self) -> int:
        return id(self)


class Unpickler(pickle.Unpickler):
    """Runs nothing that a file names."""

    def persistent_load(self, pid: Any) -> Any:
        """Return what stands for a tensor's storage."""
        return Record(pid)

    def find_class(self, module: str, name: str) -> Any:
        """Return Record for every class that is no dictionary."""
        return OrderedDict if name == "OrderedDict" else Record


def _parts(held: Mapping[str, tuple[int, ...]]) -> Mapping[str, int]:
    """Count a checkpoint's weights by layer, or all layers together where it stacks them."""
    found: Counter[str] = Counter()
    for key, shape in held.items():
        if _NO_WEIGHTS.match(key):
            continue
        words = key.split(".")
        numbered = len(words) > 2 and words[2].isdigit()
        part = PADDED.get(key) or ".".join(words[:3] if numbered else words[:1])
        found[part] += 1 if key in PADDED else math.prod(shape)
    return found


def _stacked(needs: Mapping[str, int], held: Iterable[str]) -> Mapping[str, int]:
    """Count the decoder's layers together where the checkpoint does."""
    if any(key.startswith("decoder.layers.0.") for key in held):
        return needs
    found: Counter[str] = Counter()
    for part, count in needs.items():
        found["decoder" if part.startswith("decoder.") else part] += count
    return found


def _difference(has: Mapping[str, int], needs: Mapping[str, int]) -> str:
    said = []
    for part in sorted(has.keys() | needs.keys(), key=_numbers):
        more = has.get(part, 0) - needs.get(part, 0)
        if more and not needs.get(part):
            said.append(f"the model has no {part}")
        elif more and not has.get(part):
            said.append(f"the checkpoint has no {part}")
        elif more:
            said.append(f"{part} has {abs(more):,} {'more' if more > 0 else 'fewer'}")
    rest = f" and {len(said) - _NAMED} more differences" if len(said) > _NAMED else ""
    return f"its weights are not the model's: {', '.join(said[:_NAMED])}{rest}" if said else ""


def _numbers(part: str) -> list[tuple[int, str]]:
    """Return what sorts parts by their numbers."""
    return [(int(word) if word.isdigit() else -1, word) for word in part.split(".")]


if __name__ == "__main__":
    print(unlike(Path(sys.argv[1]), json.loads(sys.argv[2])))
