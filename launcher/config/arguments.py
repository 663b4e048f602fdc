"""The Megatron arguments of a job: each flag once, its values, and the place that set it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from launcher.errors import UsageError
from launcher.records import dataclass


@dataclass(frozen=True)
class Argument:
    """One flag with its values; a switch has none."""

    flag: str
    values: tuple[str, ...]
    origin: str

    def words(self) -> list[str]:
        """Return the words of argv. A value like a flag is joined to its own flag with '='."""
        if (
            len(self.values) == 1
            and self.values[0].startswith("-")
            and not _NUMBER.match(self.values[0])
        ):
            return [f"{self.flag}={self.values[0]}"]
        return [self.flag, *self.values]


Arguments = Mapping[str, Argument]  # by flag, in the order of argv

_NUMBER = re.compile(r"-\d+$|-\d*\.\d+$")  # what argparse takes for a negative number
_FLAG = re.compile(r"--[A-Za-z]")

# A flag that is set removes these flags of the layers below it: Megatron refuses the pair, or reads
# both as one setting (megatron/training/arguments.py validate_args, TransformerConfig).
_SPLIT = (
    "--num-virtual-stages-per-pipeline-rank",
    "--num-layers-per-virtual-pipeline-stage",
    "--pipeline-model-parallel-layout",
)
_UNEVEN = (
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
    "--account-for-embedding-in-pipeline-split",
    "--account-for-loss-in-pipeline-split",
)
SUPERSEDES: Mapping[str, tuple[str, ...]] = {
    "--train-iters": ("--train-samples", "--lr-decay-samples", "--lr-warmup-samples"),
    "--train-samples": ("--train-iters", "--lr-decay-iters", "--lr-warmup-iters"),
    "--lr-decay-iters": ("--lr-decay-samples",),
    "--lr-warmup-fraction": ("--lr-warmup-samples", "--lr-warmup-iters"),
    "--mock-data": ("--data-path", "--data-args-path"),
    "--data-path": ("--mock-data", "--data-args-path"),
    "--data-args-path": ("--mock-data", "--data-path"),
    "--recompute-granularity": (
        "--recompute-method",
        "--recompute-num-layers",
        "--recompute-modules",
    ),
    "--recompute-activations": (
        "--recompute-granularity",
        "--recompute-method",
        "--recompute-num-layers",
    ),
    "--pipeline-model-parallel-layout": (*_SPLIT[:2], *_UNEVEN),
    "--num-virtual-stages-per-pipeline-rank": _SPLIT[1:],
    "--num-layers-per-virtual-pipeline-stage": (_SPLIT[0], _SPLIT[2]),
    "--moe-token-dispatcher-type": (
        "--moe-flex-dispatcher-backend",
        "--moe-flex-dispatcher-num-sms",
        "--moe-hybridep-num-sms",
        "--moe-deepep-num-sms",
        "--moe-enable-deepep",
    ),
    "--overlap-moe-expert-parallel-comm": ("--moe-shared-expert-overlap",),
    "--global-batch-size": ("--step-batch-size-schedule",),
    "--step-batch-size-schedule": ("--global-batch-size", "--rampup-batch-size"),
    "--rampup-batch-size": ("--step-batch-size-schedule",),
    "--fp16": ("--bf16",),
    "--bf16": ("--fp16",),
}


def split(text: str, origin: str) -> list[str]:
    """Split text into words by POSIX quoting rules; nothing is expanded. Raises UsageError."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{origin} cannot be split into arguments: {error}") from None


def parse(words: Sequence[str], origin: str) -> Arguments:
    """Read `--flag value …` words. The last of a repeated flag counts, with all its values.

    Raises UsageError for a word that belongs to no flag.
    """
    found: dict[str, Argument] = {}
    flag = ""
    values: list[str] = []
    for word in words:
        if _FLAG.match(word):
            flag, equals, value = word.partition("=")
            values = [value] if equals else []
            found.pop(flag, None)
        elif flag:
            values.append(word)
        else:
            raise UsageError(
                f"{word!r} ({origin}) is no Megatron argument, because it follows no --flag"
            )
        found[flag] = Argument(flag, tuple(values), origin)
    return found


def merge(*layers: Arguments) -> Arguments:
    """Merge layers, the lowest first. A higher layer's flag replaces the lower one's."""
    merged: dict[str, Argument] = {}
    for layer in layers:
        for flag in layer:
            for lower in SUPERSEDES.get(flag, ()):
                if lower not in layer:
                    merged.pop(lower, None)
        merged.update(layer)
    return merged


def argv(arguments: Arguments) -> list[str]:
    """Return the words that Megatron receives."""
    return [word for argument in arguments.values() for word in argument.words()]


def value(arguments: Arguments, flag: str) -> str | None:
    """Return the first value of a flag, or None when it is absent or a switch."""
    argument = arguments.get(flag)
    return argument.values[0] if argument and argument.values else None


def whole_number(text: str) -> int:
    """Return a number as Python's int reads it, of at most 18 digits. Raises ValueError."""
    if len(text.strip()) > 19:  # a sign and the digits of 64 bits: no size is larger
        raise ValueError(f"{shortened(text)} is too large")
    return int(text)


def shortened(text: str) -> str:
    """Return a text for a message, cut to its beginning where it is long."""
    return text if len(text) <= 80 else f"{text[:80]}…"


def integer(arguments: Arguments, flag: str, default: int | None = None) -> int:
    """Return a flag's value as a number, `default` where it is absent. Raises ValueError."""
    text = value(arguments, flag)
    if text is None:
        if default is None:
            raise ValueError(f"{flag} is not set")
        return default
    try:
        return whole_number(text)
    except ValueError:
        raise ValueError(f"{flag} {shortened(text)} is not a whole number below 10^18") from None


def optional(arguments: Arguments, flag: str) -> int | None:
    """Return a flag's value as a number, None where it is absent. Raises ValueError."""
    return integer(arguments, flag) if value(arguments, flag) is not None else None


def positive(arguments: Arguments, flag: str, default: int | None = None) -> int:
    """Return a flag's value as a number of at least 1. Raises ValueError."""
    number = integer(arguments, flag, default)
    if number < 1:
        raise ValueError(f"{flag} {number} is below 1")
    return number


def quote(word: str) -> str:
    """Quote a word for a POSIX shell, and so that shellcheck reads it as one word of an array."""
    return shlex.quote(word) if "," not in word or "'" in word else f"'{word}'"
