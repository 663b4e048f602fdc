"""Change the dtype of values: rounding is counted, overflow and NaN are refused."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from launcher.errors import UsageError

STEP = 1 << 24  # elements compared at once


@dataclass(frozen=True)
class Change:
    """The effect of a conversion on the values of one tensor, or of a part of it."""

    name: str
    before: str  # dtype
    after: str  # dtype
    values: int  # values that changed
    total: int
    relative: float  # largest |after - before| / |before|; 1 where a value became zero
    part: int = 0  # of the tensor; ranks that hold the same part count it once


class Changes:
    """The changes of a file's tensors."""

    def __init__(self) -> None:
        self._found: list[Change] = []

    def cast(
        self, tensor: torch.Tensor, dtype: torch.dtype, name: str, part: int = 0
    ) -> torch.Tensor:
        """Return the tensor as `dtype`, and note what that changes.

        Raises UsageError where a value is NaN or infinite, or becomes infinite.
        """
        require_finite(tensor, name)
        if torch.promote_types(tensor.dtype, dtype) == dtype:
            return tensor.to(dtype)
        result = tensor.to(dtype)
        _require_range(tensor, result, name)
        self.compare(tensor, result, name, part)
        return result

    def compare(self, before: torch.Tensor, after: torch.Tensor, name: str, part: int = 0) -> None:
        """Note how far `after` is from the values of `before`, of the same shape."""
        wide = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
        values, relative = 0, 0.0
        flat = before.reshape(-1), after.reshape(-1)
        for begin in range(0, before.numel(), STEP):
            old, new = (one[begin : begin + STEP].to(wide) for one in flat)
            changed = old != new
            count = int(changed.sum())
            if count:
                values += count
                old, new = old[changed], new[changed]
                relative = max(relative, float(((new - old) / old).abs().max()))
        if values:
            names = (_name(before.dtype), _name(after.dtype))
            change = Change(name, *names, values, before.numel(), relative, part)
            self._found.append(change)

    def as_json(self) -> list[dict]:
        """Return the changes for the record of a file."""
        return [asdict(change) for change in self._found]


def require_finite(tensor: torch.Tensor, name: str) -> None:
    """Raise UsageError, which names the tensor, for NaN and infinity in a source."""
    if not _is_finite(tensor):
        bad = tensor.numel() - int(tensor.isfinite().sum())
        raise UsageError(
            f"{name}: {bad} of {tensor.numel()} values in the source are NaN or infinite; "
            "nothing was made of it. Take a source without them"
        )


def _require_range(before: torch.Tensor, after: torch.Tensor, name: str) -> None:
    if not _is_finite(after):
        over = after.numel() - int(after.isfinite().sum())
        limit, largest = torch.finfo(after.dtype).max, float(before.abs().max())
        raise UsageError(
            f"{name}: {over} of {after.numel()} values, up to {largest:.3g}, become infinite in "
            f"{_name(after.dtype)}, whose largest is {limit:.6g}; convert to bfloat16 (--bf16)"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Say whether all values are finite. One pass finds the extremes, and NaN wins."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(tensor))


def summary(records: Iterable[Mapping]) -> Iterator[str]:
    """Return a line for each kind of change in the records of all files."""
    kinds: dict[tuple[str, str], dict[tuple[str, int], Change]] = defaultdict(dict)
    for record in records:
        for entry in record["details"]["changes"]:
            change = Change(**entry)
            kinds[change.before, change.after][change.name, change.part] = change
    for (before, after), changes in sorted(kinds.items()):
        worst = max(changes.values(), key=lambda change: change.relative)
        tensors = len({name for name, _ in changes})
        values = sum(change.values for change in changes.values())
        total = sum(change.total for change in changes.values())
        how = f"from {before} to {after}" if before != after else f"as {after}"
        yield (
            f"{tensors} {'tensor' if tensors == 1 else 'tensors'} changed {how}: {values} of "
            f"{total} values, by {worst.relative:.2g} of the value at most (in {worst.name})"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
