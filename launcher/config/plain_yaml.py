"""YAML as it is written: with line numbers, each scalar the text of the file (1e-6 stays 1e-6)."""

from __future__ import annotations

from pathlib import Path
from typing import Union

import yaml

from launcher.errors import UsageError

Value = Union[bool, None, str, tuple[str, ...]]


def compose(path: Path, shown: str) -> yaml.Node | None:
    """Return the file's root. Raises UsageError, naming the file as `shown`."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{shown}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown}: not valid YAML: {str(error).splitlines()[0]}") from None


def pairs(node: yaml.Node | None, shown: str, what: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the entries of a map, none of a missing one. Raises UsageError for anything else."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        return []
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise UsageError(f"{shown}:{line}: {what} is to hold `name: value` lines")
    return node.value


def value(node: yaml.Node, where: str) -> Value:
    """Return a scalar, or a list of them. Raises UsageError for a map."""
    if isinstance(node, yaml.SequenceNode):
        return tuple(str(value(child, where)) for child in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{where}: a value is a scalar or a list, not a map")
    if node.tag.endswith(":bool"):
        return node.value.lower() in ("true", "yes", "on")
    if node.tag.endswith(":null"):
        return None
    return node.value
