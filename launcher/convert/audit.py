"""Every tensor used once, every parameter filled once, shapes and dtypes right: or no conversion.

All of it is decided on names and headers, before any data is read, and cannot be switched off.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from launcher.convert import parameters, tables
from launcher.convert.hugging_face import BLOCK, DTYPES, SCALE, Tensor
from launcher.convert.parameters import Parameter
from launcher.convert.tables import Row, Table
from launcher.convert.transforms import Transform, ZeroCentred
from launcher.errors import UsageError
from launcher.plan.shape import Model


@dataclass(frozen=True)
class Filled:
    """A parameter, the row that fills it, and the shapes of the tensors that the row names."""

    parameter: Parameter
    row: Row
    source_shapes: tuple[tuple[int, ...], ...]

    def dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return what it is stored as."""
        exact = self.parameter.float32 or isinstance(self.row.how, ZeroCentred)
        return torch.float32 if exact else model_dtype


def pair(table: Table, model: Model, vocabulary: int) -> list[Filled]:
    """Return every parameter with its row. Raises UsageError for gaps and leftovers."""
    rows: dict[str, Row] = {}
    problems: list[str] = []
    for row in tables.rows(table, model, vocabulary):
        if row.target in rows:
            problems.append(f"{row.target} is filled twice")
        rows[row.target] = row
    filled = []
    for parameter in parameters.every(model):
        row = rows.pop(parameter.name, None)
        if row is None:
            problems.append(f"{parameter.name}: nothing of {table.name} fills it")
        else:
            shapes = source_shapes(row.how, parameter.shape)
            filled.append(Filled(parameter, row, shapes))
    problems += [f"{name}: Megatron's model has no such parameter" for name in rows]
    stop(problems)
    return filled


def sources(filled: Sequence[Filled], twins: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the published tensors, name and shape, that the rows and twins describe."""
    shapes: dict[str, tuple[int, ...]] = {}
    problems = []
    for one in filled:
        for name, shape in zip(one.row.sources, one.source_shapes):
            if name in shapes:
                problems.append(f"{name} is used twice, the second time for {one.row.target}")
            shapes[name] = shape
    for name, other in twins.items():
        if name in shapes:
            problems.append(f"{name} is used twice, as a copy of {other} too")
        elif other in shapes:
            shapes[name] = shapes[other]
    stop(problems)
    return shapes


def check(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Tensor],
    ignored: Iterable[str],
    optional: Iterable[str] = (),
) -> None:
    """Compare the tensors that are there with the expected ones. Raises UsageError naming all.

    `ignored` are patterns of names that no weight is made of; `optional` names may be absent.
    """
    patterns = [re.compile(pattern) for pattern in ignored]
    problems = [
        f"{name} is not in the source" for name in expected.keys() - found.keys() - set(optional)
    ]
    for name, tensor in found.items():
        if name in expected:
            if tensor.shape != tuple(expected[name]):
                problems.append(
                    f"{name} is {list(tensor.shape)}, the model needs {list(expected[name])}"
                )
            problems += _check_dtype(name, tensor, found)
        elif name.endswith(SCALE) and name[: -len(SCALE)] in expected:
            continue  # checked with its weight
        elif not any(pattern.fullmatch(name) for pattern in patterns):
            problems.append(f"{name} is left over: the model has no place for it")
    stop(sorted(problems))


def _check_dtype(name: str, tensor: Tensor, found: Mapping[str, Tensor]) -> list[str]:
    """Return what is wrong with a tensor's dtype and with the scales that FP8 needs."""
    if tensor.dtype not in DTYPES:
        return [f"{name} is {tensor.dtype}; known: {', '.join(DTYPES)}"]
    scales = found.get(name + SCALE)
    if tensor.dtype != "F8_E4M3":
        return [f"{name}{SCALE} scales a {tensor.dtype} tensor"] if scales else []
    if scales is None:
        return [f"{name} is FP8 without {name.rsplit('.', 1)[-1]}{SCALE}"]
    blocks = tuple(-(-size // BLOCK) for size in tensor.shape)
    if len(blocks) != 2 or scales.shape != blocks or scales.dtype not in ("F32", "BF16"):
        return [
            f"{name}{SCALE} is {scales.dtype} {list(scales.shape)}, "
            f"{BLOCK}×{BLOCK} blocks of {list(tensor.shape)} need F32 {list(blocks)}"
        ]
    return []


@cache
def source_shapes(how: Transform, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the tensors that make a parameter of this shape, by the inverse."""
    parts = how.backward(torch.empty(shape, device="meta"))
    whole = how.forward(parts)
    if tuple(whole.shape) != shape:
        raise UsageError(f"{how} makes {list(whole.shape)} of what it took {list(shape)} apart to")
    return tuple(tuple(part.shape) for part in parts)


SHOWN = 12


def stop(problems: Sequence[str], found: str = "the audit found") -> None:
    """Raise UsageError if there are problems: they are named, the first dozen where too many."""
    if not problems:
        return
    lines = list(problems[:SHOWN])
    kinds = Counter(re.sub(r"\d+", "N", problem) for problem in problems[SHOWN:])
    lines += [f"{count} more like: {kind}" for kind, count in kinds.items()][:SHOWN]
    raise UsageError(f"{found} {len(problems)}: " + "; ".join(lines))
