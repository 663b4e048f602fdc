"""A model's YAML: this module finds it, reads it, merges its parent in and fills in ${NAME}.

    EXTENDS: base/deepseek.yaml      # a path from here, or a model's name; keys below replace
    ENV_VARS: {NAME: value}          # environment of the training processes
    MODEL_ARGS: {--flag: value}      # true: the flag alone; false: no flag; a list: several values

Every scalar reaches Megatron as it is written in the file (1e-6 stays 1e-6).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from launcher.config import plain_yaml
from launcher.config.arguments import Argument, Arguments
from launcher.config.plain_yaml import Value
from launcher.config.settings import FIELDS, Settings, as_text
from launcher.errors import UsageError, did_you_mean
from launcher.records import dataclass
from launcher.secrets import is_secret

FOLDER = Path("model_configs") / "benchmarking"
_KEYS = ("EXTENDS", "ENV_VARS", "MODEL_ARGS")
_REFERENCE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)\}")  # $${NAME} stays ${NAME}


@dataclass(frozen=True)
class Entry:
    """One value of the YAML and the file and line that set it."""

    value: Value
    origin: str


@dataclass(frozen=True)
class Model:
    """The merged YAML, before ${NAME} is filled in."""

    path: Path
    arguments: Mapping[str, Entry]
    environment: Mapping[str, Entry]


def names(workspace: Path) -> list[str]:
    """Return the names of the repository's models."""
    return sorted(path.stem for path in (workspace / FOLDER).glob("*.yaml"))


def find(settings: Settings) -> Path:
    """Return the YAML of MODEL or TRAINING_PARAMS_PATH. Raises UsageError when there is none."""
    workspace = Path(settings.WORKSPACE)
    if settings.TRAINING_PARAMS_PATH:
        path = Path(settings.TRAINING_PARAMS_PATH)
        if not os.path.isfile(path):
            raise UsageError(f"TRAINING_PARAMS_PATH={str(path)!r}: there is no such file")
        return path
    if settings.MODEL.endswith((".yaml", ".yml")) or "/" in settings.MODEL:
        path = Path(settings.MODEL)
        if not os.path.isfile(path):
            raise UsageError(f"MODEL={settings.MODEL!r}: there is no such file")
        return path
    path = workspace / FOLDER / f"{settings.MODEL}.yaml"
    if not os.path.isfile(path):
        known = names(workspace)
        hint = did_you_mean(settings.MODEL, known)
        raise UsageError(
            f"MODEL={settings.MODEL!r} is unknown.{hint} "
            f"Known: {', '.join(known)}; or the path of a .yaml"
        )
    return path


def load(path: Path, workspace: Path, children: tuple[Path, ...] = ()) -> Model:
    """Read a YAML and its parents. Raises UsageError with file and line for anything unexpected."""
    keys = _read(path, path.stat().st_mtime_ns, _shown(path, workspace))
    arguments: dict[str, Entry] = {}
    environment: dict[str, Entry] = {}
    if "EXTENDS" in keys:
        entry = keys["EXTENDS"]
        parent_path = _parent(path, entry, workspace)
        chain = (*children, path.resolve())
        if parent_path.resolve() in chain:
            raise UsageError(
                f"{entry.origin}: EXTENDS: {entry.value}: the files extend each other in a circle"
            )
        parent = load(parent_path, workspace, chain)
        arguments.update(parent.arguments)
        environment.update(parent.environment)
    arguments.update(keys.get("MODEL_ARGS", {}))
    environment.update(keys.get("ENV_VARS", {}))
    return Model(path, arguments, environment)


def _parent(path: Path, entry: Entry, workspace: Path) -> Path:
    """Return the file that EXTENDS names: beside this one, or the repository's model."""
    name = str(entry.value)
    for parent in (path.parent / name, workspace / FOLDER / f"{name}.yaml"):
        if os.path.isfile(parent):  # Path.is_file raises for a name that is too long
            return parent
    hint = did_you_mean(name, names(workspace))
    raise UsageError(
        f"{entry.origin}: EXTENDS: {name}: there is no such file, and no model of that name.{hint}"
    )


def arguments(model: Model, settings: Settings, environ: Mapping[str, str]) -> Arguments:
    """Return the Megatron arguments of the model, with ${NAME} filled in.

    Raises UsageError for a reference to a variable that does not exist.
    """
    found: dict[str, Argument] = {}
    for flag, entry in model.arguments.items():
        if entry.value is True:
            found[flag] = Argument(flag, (), entry.origin)
        elif entry.value is not False and entry.value is not None:
            written = entry.value if isinstance(entry.value, tuple) else (entry.value,)
            values = tuple(_fill(text, entry.origin, settings, environ) for text in written)
            origin = ", ".join([entry.origin, *_set_by(written, settings)])
            # A switch or an unset path from a setting decides whether the flag is there at all.
            if values == ("true",) and entry.value != "true":
                found[flag] = Argument(flag, (), origin)
            elif values not in (("",), ("false",)) or entry.value in ("", "false"):
                found[flag] = Argument(flag, values, origin)
    return found


def _set_by(written: Sequence[str], settings: Settings) -> list[str]:
    """Return where each variable in a value was set: 'GBS from environment'."""
    names = [name for text in written for escaped, name in _REFERENCE.findall(text) if not escaped]
    return [f"{name} from {settings.origin(name)}" for name in names if name in settings.origins]


def environment(
    model: Model, settings: Settings, environ: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Return name → (value, origin) of the environment variables that the model asks for."""
    return {
        name: (_fill(str(entry.value), entry.origin, settings, environ), entry.origin)
        for name, entry in model.environment.items()
        if entry.value is not None
    }


def _fill(text: str, origin: str, settings: Settings, environ: Mapping[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return match.group()[1:]
        if is_secret(name):
            raise UsageError(f"{origin}: ${{{name}}} is a secret and cannot become an argument")
        if name in FIELDS:
            return as_text(getattr(settings, name))
        if name in environ:
            return environ[name]
        hint = did_you_mean(name, FIELDS)
        raise UsageError(
            f"{origin}: ${{{name}}} is neither a setting nor in the environment.{hint}"
        )

    return _REFERENCE.sub(replacement, text)


def _shown(path: Path, workspace: Path) -> str:
    try:
        return str(path.resolve().relative_to(workspace))
    except ValueError:
        return str(path)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed: int, shown: str) -> dict:
    """Return the file's top-level keys, each of the two maps as a dict from name to Entry."""
    keys: dict = {}
    for name, (node, where) in plain_yaml.sections(path, shown, _KEYS).items():
        if name == "EXTENDS":
            keys[name] = Entry(str(plain_yaml.value(node, where)), where)
        else:
            keys[name] = _entries(node, shown, name)
    return keys


def _entries(node: yaml.Node, shown: str, section: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, child, where in plain_yaml.named(node, shown, section, section == "MODEL_ARGS"):
        if section == "ENV_VARS" and is_secret(name):
            raise UsageError(
                f"{where}: {name} is a secret; set it in the environment, not in a file"
            )
        entries[name] = Entry(plain_yaml.value(child, where), where)
    return entries
