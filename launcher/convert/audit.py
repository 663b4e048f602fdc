"""The audit: each tensor is used once, each parameter is filled once, and shapes and dtypes agree.

Otherwise nothing is converted. The audit reads names and headers only, before any data, and cannot
be switched off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from launcher.convert import parameters, tables
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
    found: Mapping[str, Any],
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
    leftovers = []
    for name, tensor in found.items():
        if name in expected:
            if tensor.shape != tuple(expected[name]):
                problems.append(
                    f"{name} is {list(tensor.shape)}, the model needs {list(expected[name])}"
                )
        elif not any(pattern.fullmatch(name) for pattern in patterns):
            leftovers.append(name)
    problems += [f"{name} is left over: the model has no place for it" for name in leftovers]
    stop(sorted(problems), f"{_cause(leftovers)}the audit found")


@cache
def source_shapes(how: Transform, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the tensors that make a parameter of this shape, by the inverse."""
    parts = how.backward(torch.empty(shape, device="meta"))
    whole = how.forward(parts)
    if tuple(whole.shape) != shape:
        raise UsageError(f"{how} makes {list(whole.shape)} of what it took {list(shape)} apart to")
    return tuple(tuple(part.shape) for part in parts)


SHOWN = 10


def stop(problems: Sequence[str], found: str = "the audit found") -> None:
    """Raise UsageError for problems. It names at most ten, and at least one of each kind."""
    if not problems:
        return
    if len(problems) <= SHOWN:
        raise UsageError(f"{found} {len(problems)}: " + "; ".join(problems))
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"\d+", "N", problem), []).append(problem)
    lines = [
        one[0] + (f" (and {len(one) - 1} more like it)" if one[1:] else "")
        for one in list(kinds.values())[:SHOWN]
    ]
    if len(kinds) > SHOWN:
        lines.append(f"and {len(kinds) - SHOWN} more kinds")
    raise UsageError(f"{found} {len(problems)}: " + "; ".join(lines))


# The cause that a family of unknown names points to.
_CAUSES = (
    (r".*\.lora_[AB]\..*", "an adapter that is not merged into its model (LoRA)"),
    (r".*\.(qkv_proj|query_key_value|Wqkv)\..*", "queries, keys and values in one matrix"),
    (r"(?!.*\.experts\.).*\.gate_up_proj\..*", "gate and up projections in one matrix"),
    (r".*\.experts\..*(gate_up_proj|down_proj)(_bias)?", "stacks of experts with biases"),
    (r"(module|base_model|transformer|language_model)\..*", "names with another beginning"),
)


def _cause(leftovers: Sequence[str]) -> str:
    """Return the known cause of left-over names, if there is one."""
    causes = [
        cause for pattern, cause in _CAUSES if any(re.fullmatch(pattern, n) for n in leftovers)
    ]
    return f"the source has {causes[0]}, which no table here knows; " if causes else ""
