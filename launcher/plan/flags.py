"""Whether Megatron's parser takes a job's arguments, release by release, and what to write instead.

`extract_flags.py` read the catalogue's data from the real parser. This module checks values and
their number as argparse does, so an error means that Megatron would stop.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launcher.config.arguments import Argument, Arguments, shortened, whole_number
from launcher.config.layout import expression
from launcher.config.releases import RENAMES, SUPPORTED, Rename, index
from launcher.errors import did_you_mean
from launcher.plan import Finding, influence

CATALOGUE = Path(__file__).parent / "catalogue"

# The same setting under another name, beyond what the launcher itself renames. Found by comparing
# the catalogues; only pairs that take the same values and mean the same.
OTHER_RENAMES = (
    Rename("--teacher-model-config", "--export-kd-teacher-model-config", "0.16"),
    Rename("--grpo-default-temperature", "--rl-default-temperature", "0.16"),
    Rename("--grpo-default-top-p", "--rl-default-top-p", "0.16"),
    Rename("--linear-attention-type", "--experimental-attention-variant", "0.16"),
    Rename(
        "--inference-dynamic-batching-max-requests-override",
        "--inference-dynamic-batching-max-requests",
        "0.16",
    ),
    Rename(
        "--inference-dynamic-batching-max-tokens-override",
        "--inference-dynamic-batching-max-tokens",
        "0.16",
    ),
    Rename("--tiktoken-special-tokens", "--tokenizer-special-tokens", "0.18"),
    Rename("--muon-use-nesterov", "--muon-nesterov", "0.18"),
    Rename("--moe-ncclep-zero-copy", "--moe-ncclep-use-symm-mem", "dev"),
    Rename(
        "--moe-hybridep-pad-uneven-dispatch-inputs", "--moe-hybridep-pad-variable-tokens", "dev"
    ),
    Rename("--hybrid-context-parallel", "--dynamic-context-parallel", "dev"),
    Rename("--offload-optimizer-states", "--chunked-optimizer-state-offload", "dev"),
)

NO_NUMBERS = ("nan", "inf", "infinity")  # that Python reads as numbers
# argparse takes a word with a dash in front for a flag unless it is such a number: -1e-3 is none.
_NEGATIVE = re.compile(r"-\d+$|-\d*\.\d+$")

# By argparse's nargs: how many values, in words, at least and at most. Of a number, just as many.
_NUMBER_OF: Mapping[int | str | None, tuple[str, float, float]] = {
    None: ("one value", 1, 1),
    "?": ("one value or none", 0, 1),
    "*": ("any number of values", 0, math.inf),
    "+": ("one or more values", 1, math.inf),
}


class Flag(NamedTuple):
    """One flag in a release's parser; `extract_flags.py` explains the fields."""

    switch: bool | None = None  # None: it takes values
    type: str = "str"
    nargs: int | str | None = None
    choices: tuple[object, ...] = ()
    default: object = None
    dest: str = ""
    needs: str = ""
    deprecated: str = ""


class Catalogue(NamedTuple):
    """The flags of one release, each read from the data when it is asked for."""

    release: str
    entries: Mapping[str, Mapping[str, Any]]

    def __contains__(self, flag: object) -> bool:
        return flag in self.entries

    def get(self, flag: str) -> Flag | None:
        """Return a flag under any of its spellings; None where it is unknown."""
        entry = self.entries.get(flag)
        if entry is None:
            return None
        if "alias" in entry:
            overrides = {name: text for name, text in entry.items() if name != "alias"}
            flag = str(entry["alias"])
            entry = {**self.entries[flag], **overrides}
        dest = flag.lstrip("-").replace("-", "_")
        return Flag(**{"dest": dest, **entry, "choices": tuple(entry.get("choices", ()))})


def load(release: str) -> Catalogue:
    """Return the flags of a release, 0.19.2 or core_v0.19 alike. Raises UsageError."""
    return _read(SUPPORTED[index(release)])


def check(arguments: Arguments, release: str) -> list[Finding]:
    """Return what the release's parser refuses, as errors, and its advice, as warnings."""
    catalogue = load(release)
    found = []
    for flag, argument in arguments.items():
        known = catalogue.get(flag)
        if known is None:
            message = f"{flag} is no argument of {_core(catalogue.release)}"
            found.append(_finding("error", f"{message}{_hint(flag, catalogue)}", argument))
            continue
        refused = _refusal(argument, known)
        if refused:
            found.append(_finding("error", f"{flag} {refused}", argument))
        found += [
            _finding("warning", f"{flag} {text}", argument)
            for text in _advice(argument, known, catalogue)
        ]
    return found


@functools.cache
def _read(release: str) -> Catalogue:
    text = (CATALOGUE / f"{release}.json").read_text(encoding="utf-8")
    return Catalogue(release, json.loads(text)["flags"])


def _finding(severity: str, message: str, argument: Argument) -> Finding:
    return Finding(severity, f"{message} (set by {argument.origin})", "flags")


def _core(release: str) -> str:
    return "Megatron's dev branch" if release == "dev" else f"Megatron-Core {release}"


def _named(release: str) -> str:
    return "the dev branch" if release == "dev" else release


def _hint(flag: str, catalogue: Catalogue) -> str:
    """Return advice about a flag that the release does not know."""
    at = index(catalogue.release)
    for entry in (*RENAMES, *OTHER_RENAMES):
        if flag == entry.old and entry.new in catalogue:
            return f": {_named(entry.release)} renamed it to {entry.new}"
        if flag == entry.new and entry.old in catalogue:
            return f": it is the name since {_named(entry.release)}; write {entry.old}"
    having = [release for release in SUPPORTED if flag in _read(release)]
    if having == ["dev"]:
        return ": only the dev branch has it"
    earlier = [release for release in having if index(release) < at]
    if earlier:
        known = [_read(release).get(flag) for release in reversed(earlier)]
        messages = (one.deprecated for one in known if one)
        advice = next((f". Megatron said: {text}" for text in messages if text), "")
        return f": {_named(earlier[-1])} was the last release to have it{advice}"
    if having:
        return f": it came with {_named(having[0])}"
    if flag == "--help":
        return ": with it Megatron lists its arguments and stops"
    return f".{did_you_mean(flag, catalogue.entries)} No supported release has it either."


def _refusal(argument: Argument, known: Flag) -> str:
    """Return why argparse would stop at the argument's words, '' where it would not."""
    words = argument.words()
    _, tied, value = words[0].partition("=")
    given = [value] if tied else words[1:]
    for dashed in () if tied else given:
        if _is_flag(dashed):
            return (
                f"cannot have the value {dashed}, which Megatron reads as a flag: "
                f"give a single one as {argument.flag}={dashed}"
            )
    if known.switch is not None:
        return f"is a switch and takes no value, not {' '.join(given)!r}" if given else ""
    number, least, most = _NUMBER_OF.get(known.nargs) or _exactly(known.nargs)
    if not least <= len(given) <= most:
        allowed = f" ({_listed(known.choices)})" if known.choices else ""
        return f"takes {number}{allowed}, not {repr(' '.join(given)) if given else 'none'}"
    convert, called = _TYPES.get(known.type, (str, ""))
    for text in given:
        try:
            converted = convert(text)
        except (ValueError, TypeError):
            return f"takes {called}, not {shortened(text)!r}"
        if _is_no_size(argument, converted):
            return f"takes a finite number, not {text!r}"
        if known.choices and converted not in known.choices:
            near = did_you_mean(text, map(str, known.choices))
            return f"takes {_listed(known.choices)}, not {shortened(text)!r}.{near}"
    return ""


def _is_no_size(argument: Argument, converted: object) -> bool:
    """Say whether a value is inf or nan where the plan computes with it."""
    if not isinstance(converted, float) or math.isfinite(converted):
        return False
    does = influence.of(argument.flag, argument.values)
    return does is not None and does.influence == influence.MODELLED


def _exactly(number: int | str | None) -> tuple[str, float, float]:
    return (f"{number} values", int(number or 0), int(number or 0))


def _is_flag(word: str) -> bool:
    """Say whether argparse takes a word for a flag, known or not."""
    if len(word) < 2 or not word.startswith("-") or _NEGATIVE.match(word):
        return False
    return " " not in word


def _listed(choices: Sequence[object]) -> str:
    return ", ".join(map(str, choices))


def _advice(argument: Argument, known: Flag, catalogue: Catalogue) -> list[str]:
    found = []
    at = index(catalogue.release)
    renamed = next(
        (
            entry
            for entry in (*RENAMES, *OTHER_RENAMES)
            if entry.old == argument.flag and at >= index(entry.release) and entry.new in catalogue
        ),
        None,
    )
    if renamed:
        found.append(f"is {renamed.new} since {_named(renamed.release)}")
    elif known.deprecated:
        found.append(f"is deprecated: {known.deprecated}")
    if known.needs:
        found.append(f"is known only where the package {known.needs} is installed")
    if known.type == "float" and any(
        text.lower().lstrip("+-") in NO_NUMBERS for text in argument.values
    ):
        found.append(f"is {' '.join(argument.values)}, which is no number to train with")
    if known.type == "bool" and argument.values and argument.values[0]:
        found.append(f"reads any text as true, {argument.values[0]!r} too")
    return found


def _pattern(text: str) -> object:
    """Read a layer frequency as Megatron does: a whole number, or an expression of lists."""
    return expression(text) if "[" in text else whole_number(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(whole_number(number) for number in text.strip("()").split(","))


def _alignment(text: str) -> object:
    return text if text == "max" else whole_number(text)


# By Megatron's name of the function that reads the text. Any text is accepted for a function that
# is not in this table.
_FREQUENCY = (_pattern, "a whole number or a list such as ([0]*3+[1]*58)")
_TYPES: Mapping[str, tuple[Callable[[str], object], str]] = {
    "int": (whole_number, "a whole number"),
    "float": (float, "a number"),
    "moe_freq_type": _FREQUENCY,
    "la_freq_type": _FREQUENCY,
    "no_rope_freq_type": _FREQUENCY,
    "compress_ratios_type": (expression, "a list such as ([0]*2+[4]*58)"),
    "tuple_type": (_numbers, "whole numbers with commas between them"),
    "_parse_pad_packed_seq_alignment": (_alignment, "max or a whole number"),
}
