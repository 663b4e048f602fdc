"""Measurements of the user's own cluster: $OUTPUT_PATH/calibration.json.

    {"constants": {"e_bf16_hopper": 0.81, …},      written by `calibrate`
     "runs": [{"model": …, "gpu": …, …}, …]}       rows with the columns of published.csv

Measured constants replace the fitted ones. Runs are anchors like the published rows, and come
before them, because they are this cluster's.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.plan.projection.constants import NAMES, Constants, fitted
from launcher.records import dataclass

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """A cluster's own constants and runs."""

    constants: Constants
    runs: tuple[Mapping[str, str], ...] = ()
    measured: tuple[str, ...] = ()  # the constants that were measured here


def read(path: Path | None) -> Calibration:
    """Return the content of a file; without one, the fitted constants. Raises UsageError."""
    if path is None or not os.path.isfile(path):
        return Calibration(fitted())
    found = load(path)
    measured = found.get("constants", {})
    unknown = sorted(set(measured) - set(NAMES))
    if unknown:
        raise UsageError(f"{path} has constants that nobody knows: {', '.join(unknown)}")
    numbers = {name: float(number) for name, number in measured.items()}
    if any(not number > 0 for number in numbers.values()):
        raise UsageError(f"{path} has a constant that is not above 0")
    return Calibration(
        dataclasses.replace(fitted(), **numbers),
        tuple(found.get("runs", [])),
        tuple(sorted(measured)),
    )


def load(path: Path) -> dict[str, Any]:
    """Return a file's content, empty where there is none. Raises UsageError for a broken one."""
    if not os.path.isfile(path):
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Replace a file in one step, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
