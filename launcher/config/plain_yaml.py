"""YAML with line numbers, where each scalar stays the text of the file (1e-6 stays 1e-6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Union

import yaml

from launcher.errors import UsageError, did_you_mean

_FLAG = re.compile(r"--[A-Za-z][\w-]*", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
Value = Union[bool, None, str, tuple[str, ...]]


def compose(path: Path, shown: str) -> yaml.Node | None:
    """Return the file's root node. Raises UsageError, which calls the file `shown`."""
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
    """Return the entries of a map; a missing map has none. Raises UsageError for anything else."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        return []
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise UsageError(f"{shown}:{line}: {what} must hold `name: value` lines")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            raise UsageError(f"{shown}:{line}: a name in {what} must be a word, not a list or map")
    return node.value


def sections(path: Path, shown: str, allowed: Sequence[str]) -> dict[str, tuple[yaml.Node, str]]:
    """Return the file's top-level keys, each with its node and its place.

    Raises UsageError for a key that is not allowed, and for a repeated key.
    """
    found: dict[str, tuple[yaml.Node, str]] = {}
    for key, node in pairs(compose(path, shown), shown, "the file"):
        where, name = f"{shown}:{key.start_mark.line + 1}", key.value
        if name not in allowed:
            hint = did_you_mean(str(name), allowed)
            raise UsageError(f"{where}: unknown key {name!r}; allowed: {', '.join(allowed)}.{hint}")
        if name in found:
            raise UsageError(f"{where}: {name} is set twice (first at {found[name][1]})")
        found[name] = (node, where)
    return found


def named(
    node: yaml.Node | None, shown: str, section: str, flags: bool
) -> list[tuple[str, yaml.Node, str]]:
    """Return name, value and place of each entry of a map of flags, or of variables.

    Raises UsageError for a name that is neither, and for a repeated name.
    """
    pattern, kind = (_FLAG, "a flag (--name)") if flags else (_VARIABLE, "a variable's name")
    found: dict[str, tuple[str, yaml.Node, str]] = {}
    for key, child in pairs(node, shown, section):
        where, name = f"{shown}:{key.start_mark.line + 1}", key.value
        if not isinstance(name, str) or not pattern.fullmatch(name):
            raise UsageError(f"{where}: {name!r} in {section} is not {kind}")
        if name in found:
            raise UsageError(f"{where}: {name} is set twice (first at {found[name][2]})")
        found[name] = (name, child, where)
    return list(found.values())


def value(node: yaml.Node, where: str) -> Value:
    """Return a scalar, or a list of them. Raises UsageError for a map."""
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(child, yaml.ScalarNode) for child in node.value):
            raise UsageError(f"{where}: a list must hold scalars, not lists or maps")
        return tuple(str(value(child, where)) for child in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{where}: a value is a scalar or a list, not a map")
    if node.tag.endswith(":bool"):
        return node.value.lower() in ("true", "yes", "on")
    if node.tag.endswith(":null"):
        return None
    return node.value
