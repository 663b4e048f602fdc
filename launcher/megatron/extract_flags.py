"""Read every command-line flag off Megatron's own parser and write it as the catalogue's data.

    python extract_flags.py 0.19 --checkout Megatron-LM > catalogue/0.19.json
    python extract_flags.py 0.19      # the installed megatron-core (0.17 and later)

Runs with the Python that training uses, on any machine: nothing touches a GPU. The file has a line
for each flag, so that a new release reads as a diff. Keys, each left out where it says nothing:

    switch      the value that the flag stands for; a switch takes no value
    type        int, float, bool, name of a parsing function of Megatron; text where left out
    nargs       +, * or a number; one value where left out
    choices     the allowed values
    default     what holds without the flag; null where left out
    dest        the name in Megatron's `args`, where it is not the flag's own
    alias       another spelling of that flag
    needs       the package without which pretrain_gpt.py does not add the flag
    deprecated  what Megatron says of it
"""

from __future__ import annotations

import argparse
import ast
import enum
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"`*\b([a-z0-9]+_\w+)`*")
ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # defaults that Megatron takes from the shell
PLAIN = {int: "int", float: "float", bool: "bool"}
SAID = re.compile(
    r"(?:WARNING: )?(?:--)?([a-z][\w-]*)(?: flag| argument)? is "
    r"(?:deprecated|going to be deprecated|no longer valid)(?: and will be removed[\w ]*)?\b(.*)"
)


def main() -> int:
    """Write one release's flags to standard output."""
    parser = argparse.ArgumentParser(description="Write one release's flags to standard output.")
    parser.add_argument("release", help="what the release is called here: 0.19, dev")
    parser.add_argument("--checkout", type=Path, help="Megatron-LM; else the installed wheel")
    options = parser.parse_args()
    if options.checkout:
        sys.path.insert(0, str(options.checkout.resolve()))
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    # What imports print (warnings of Megatron and torch) must not become part of the data.
    output, sys.stdout = sys.stdout, sys.stderr
    entries = extract(options.checkout)
    lines = ",\n".join(f"{json.dumps(flag)}: {json.dumps(entries[flag])}" for flag in entries)
    output.write(f'{{"release": {json.dumps(options.release)}, "flags": {{\n{lines}\n}}}}\n')
    return 0


def extract(checkout: Path | None) -> dict[str, dict[str, object]]:
    """Return every flag, sorted, with what the parser says of it."""
    arguments = _import_arguments()
    plain = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    everything = argparse.ArgumentParser(allow_abbrev=False)
    _pretend_kitchen()
    arguments.add_megatron_arguments(everything)
    needs = {flag: "nvidia-kitchen" for flag in _flags(everything) - _flags(plain)}
    if checkout:  # the wheel leaves post_training out
        before = _flags(everything)
        _load(checkout / "megatron/post_training/arguments.py").add_modelopt_args(everything)
        needs.update({flag: "nvidia-modelopt" for flag in _flags(everything) - before})

    from megatron.core.transformer import transformer_config

    texts: dict[str, str] = {}
    for module in (transformer_config, arguments):
        texts.update(_said_in_code(Path(inspect.getsourcefile(module))))
    fields = {_field(flag): flag for flag in _flags(everything)}
    entries: dict[str, dict[str, object]] = {}
    for action in everything._actions:
        if not isinstance(action, argparse._HelpAction):
            for flag, entry in _entries(action):
                text = _deprecated(action.help or "")
                # The help usually knows best what to write instead.
                text = text if "--" in text else texts.get(_field(flag), text)
                text = NAME.sub(lambda name: fields.get(name[1], name[0]), text)
                entry.update({"needs": needs[flag]} if flag in needs else {})
                entry.update({"deprecated": text} if text else {})
                entries[flag] = entry
    return dict(sorted(entries.items()))


def _entries(action: argparse.Action) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each spelling of an argument with its entry."""
    first, *others = action.option_strings
    entry: dict[str, object] = {}
    if action.nargs == 0:
        # argparse's own pair of a flag and its --no- form
        paired = isinstance(action, argparse.BooleanOptionalAction)
        entry["switch"] = True if paired else action.const
    else:
        paired = False
        choices = [_data(choice) for choice in action.choices or _names(action.type)]
        if choices:
            entry["choices"] = choices
        if action.type in PLAIN:
            entry["type"] = PLAIN[action.type]
        elif action.type not in (None, str) and not choices:
            entry["type"] = action.type.__name__
        if action.nargs is not None:
            entry["nargs"] = action.nargs
    if action.default is not None:
        entry["default"] = _data(action.default)
    if action.dest != _field(first):
        entry["dest"] = action.dest
    yield first, entry
    for other in others:
        if paired:
            yield other, {**entry, "switch": False, "dest": action.dest}
        else:
            yield other, {"alias": first}


def _names(function: object) -> list[str]:
    """Return the words that a function accepts which looks its text up in an enum."""
    if not isinstance(function, types.FunctionType):
        return []
    known = (function.__globals__.get(name) for name in function.__code__.co_names)
    words = [
        name for found in known if isinstance(found, enum.EnumMeta) for name in found.__members__
    ]
    if not words:
        return []
    # Besides the names, it may know words of its own: they are constants of its code.
    for constant in function.__code__.co_consts:
        words += constant if isinstance(constant, (frozenset, tuple)) else [constant]
    accepted = []
    for word in sorted({word for word in words if isinstance(word, str)}):
        try:
            function(word)
        except KeyError:
            continue
        accepted.append(word)
    return accepted


def _data(value: object) -> object:
    """Return a default or a choice as JSON holds it."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_data(item) for item in value]
    plain = value is None or isinstance(value, (bool, int, str))
    return value if plain or (isinstance(value, float) and math.isfinite(value)) else str(value)


def _deprecated(text: str) -> str:
    """Return what a help text says of a deprecated flag, '' where it is not one."""
    text = " ".join(text.split())
    match = re.search(r"(?:^|\. )\W*Deprecated\b[\w -]*?[.:]? ?(.*?)(?:\. |\.?$)", text, re.I)
    return _replacement(match[1]) if match else ""


def _replacement(text: str) -> str:
    """Return the rest of such a sentence as one that stands after 'deprecated: '."""
    text = re.sub(r"\.(?=[A-Z])", ". ", text).strip(" .,;:").removeprefix("and ")
    return text or "it will go"


def _said_in_code(path: Path) -> dict[str, str]:
    """Return what messages such as '--a is deprecated, use --b instead.' say, by field name."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = SAID.match(" ".join(node.value.split()))
            if match:
                found.setdefault(_field(match[1]), _replacement(match[2]))
    return found


def _import_arguments() -> types.ModuleType:
    """Import megatron.training.arguments where nothing is compiled."""
    from torch.utils import cpp_extension

    # Release 0.15 compiles a CUDA allocator when it is imported. As with a compiler that is
    # missing, Megatron goes on without it.
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("nothing is compiled here")

    cpp_extension.load_inline = refuse
    from megatron.training import arguments

    return arguments


def _pretend_kitchen() -> None:
    """Let Megatron add the flags of a quantization package that is not public."""
    stand_in = types.ModuleType("megatron.core.extensions.kitchen")
    stand_in.HAVE_KITCHEN = True
    stand_in.KitchenSpecProvider = object
    sys.modules[stand_in.__name__] = stand_in


def _load(path: Path) -> types.ModuleType:
    """Import one file without its package, which wants packages of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _field(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    return set(parser._option_string_actions)


if __name__ == "__main__":
    sys.exit(main())
