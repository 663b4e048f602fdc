"""What a rule looks at: a job's arguments, its place, and Megatron's defaults for the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any, TypeVar

from launcher.config import parallelism
from launcher.config.arguments import Arguments, whole_number
from launcher.config.gpus import GPUS
from launcher.config.releases import index
from launcher.plan import choices, flags
from launcher.records import dataclass

T = TypeVar("T")

Rule = Callable[["Case"], Iterator[str]]  # yields what is wrong, a line each


class Unreadable(Exception):
    """A value that a rule needs is none, or another rule's fault: the rule has nothing to say."""


@dataclass(frozen=True)
class Case:
    """A job as the rules see it. What the arguments leave open has the release's default."""

    arguments: Arguments
    world_size: int
    release: str
    environment: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # value, origin
    gpu: str | None = None  # a name of gpus.GPUS; None: unknown
    tasks_per_node: int = 8
    segment: int | None = None  # nodes that share an NVLink domain, of 72 GPUs
    own_training: bool = False  # runs launcher/megatron/gpt.py's model, not pretrain_gpt.py's

    def has(self, *names: str) -> bool:
        """Say whether any of the flags is given."""
        return any(name in self.arguments for name in names)

    def since(self, release: str) -> bool:
        """Say whether the job's Megatron-Core is this release or a later one."""
        return index(self.release) >= index(release)

    def words(self, flag: str) -> tuple[str, ...]:
        """Return a flag's values, Megatron's default for an absent one."""
        if flag in self.arguments:
            return self.arguments[flag].values
        known = self.catalogue.get(flag)
        if known is None or known.default is None or known.switch is not None:
            return ()
        if isinstance(known.default, (list, tuple)):
            return tuple(map(str, known.default))
        return (str(known.default),)

    def text(self, flag: str) -> str | None:
        """Return a flag's first value, or its default; None where there is neither."""
        return next(iter(self.words(flag)), None)

    def number(self, flag: str) -> int | None:
        """Return a flag's value as a number. Raises Unreadable where it is none."""
        text = self.text(flag)
        return None if text is None else _readable(whole_number, text)

    def numbers(self, flag: str) -> tuple[int, ...]:
        """Return all of a flag's values as numbers. Raises Unreadable where one is none."""
        return tuple(_readable(whole_number, text) for text in self.words(flag))

    def real(self, flag: str) -> float | None:
        """Return a flag's value as a finite number. Raises Unreadable where it is none."""
        text = self.text(flag)
        number = None if text is None else _readable(float, text)
        if number is not None and not math.isfinite(number):
            raise Unreadable(flag)
        return number

    def size(self, flag: str) -> int:
        """Return a number that has to be positive. Raises Unreadable where it is not."""
        number = self.number(flag)
        if number is None or number < 1:
            raise Unreadable(flag)
        return number

    def said(self, flag: str) -> str:
        """Return a flag with its value and the place that set it, for a message."""
        if flag in self.arguments:
            argument = self.arguments[flag]
            return f"{' '.join((flag, *argument.values))} ({argument.origin})"
        value = " ".join(self.words(flag))
        return f"{flag} {value} (Megatron's default)" if value else f"{flag} (not set)"

    def variable(self, name: str) -> str | None:
        """Return an environment variable of the training processes."""
        return self.environment[name][0] if name in self.environment else None

    def said_variable(self, name: str) -> str:
        """Return a variable with its value and origin, for a message."""
        if name not in self.environment:
            return f"{name} is not set"
        value, origin = self.environment[name]
        return f"{name}={value} ({origin})"

    @functools.cached_property
    def catalogue(self) -> flags.Catalogue:
        """The release's flags, for their defaults."""
        return flags.load(self.release)

    # What several rules ask for.

    @functools.cached_property
    def sizes(self) -> parallelism.Sizes:
        """The parallel sizes. Raises Unreadable where one is no positive number."""
        return _readable(parallelism.read, self.arguments)

    @property
    def tensor(self) -> int:
        """TP."""
        return self.sizes.tensor

    @property
    def pipeline(self) -> int:
        """PP."""
        return self.sizes.pipeline

    @property
    def context(self) -> int:
        """CP."""
        return self.sizes.context

    @property
    def expert(self) -> int:
        """EP."""
        return self.sizes.expert

    @property
    def expert_tensor(self) -> int:
        """ETP; TP where it is not given."""
        return self.sizes.expert_tensor

    @functools.cached_property
    def virtual(self) -> int:
        """Model chunks of a pipeline rank, 1 without interleaving. Raises Unreadable."""
        return _readable(parallelism.virtual_stages, self.arguments, self.pipeline)

    @functools.cached_property
    def data(self) -> int:
        """DP. Raises Unreadable where the world size does not allow it."""
        shards = self.number("--tensor-parallel-num-weight-shards") or self.tensor
        model = max(shards, self.tensor) * self.pipeline * self.context
        if self.world_size % model:
            raise Unreadable("world size")
        return self.world_size // model

    @functools.cached_property
    def expert_data(self) -> int:
        """Replicas of the experts on a stage."""
        return self.world_size // (self.expert_tensor * self.expert * self.pipeline)

    @functools.cached_property
    def sequence_parallel(self) -> bool:
        """Whether Megatron uses sequence parallelism; it switches it off at TP1."""
        return self.has("--sequence-parallel") and self.tensor > 1

    @functools.cached_property
    def experts(self) -> int | None:
        """The number of experts; None in a dense model (0 means the same to Megatron)."""
        return self.number("--num-experts") or None

    @functools.cached_property
    def layers(self) -> int:
        """The decoder's depth."""
        return self.size("--num-layers")

    @functools.cached_property
    def mtp(self) -> int:
        """The number of MTP layers."""
        return self.number("--mtp-num-layers") or 0

    @functools.cached_property
    def fp8(self) -> str | None:
        """The FP8 recipe; None without FP8."""
        return self.text("--fp8-recipe") if self.has("--fp8-format") else None

    @property
    def dispatcher(self) -> str:
        """The token dispatcher: allgather, alltoall or flex."""
        return choices.dispatcher(self.arguments)

    @property
    def backend(self) -> str | None:
        """What moves the tokens of the flex dispatcher; None with another one."""
        return choices.backend(self.arguments)

    @property
    def granularity(self) -> str | None:
        """What is recomputed: full, selective or None."""
        return choices.granularity(self.arguments)

    @property
    def recomputed(self) -> frozenset[str]:
        """The modules named for recomputation, used or not; the core of attention by default."""
        return choices.recomputed(self.arguments)

    @property
    def graphs(self) -> str:
        """How CUDA graphs are made: none, local, transformer_engine, full_iteration."""
        return choices.graphs(self.arguments)

    @functools.cached_property
    def graph_flag(self) -> str:
        """The flag that names the modules in CUDA graphs; the older one where it is used."""
        old = "--cuda-graph-scope"
        return old if self.has(old) else "--cuda-graph-modules"

    @functools.cached_property
    def graphed(self) -> frozenset[str]:
        """The modules in CUDA graphs; none named means whole layers."""
        names = set(self.words(self.graph_flag)) - {"full"}
        if self.graphs == "local" and names & {"moe_router", "moe_preprocess"}:
            names |= {"moe_router", "moe_preprocess"}  # local graphs do not tell them apart
        return frozenset(names)

    @functools.cached_property
    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability of the GPU; None where that is unknown."""
        return GPUS[self.gpu].capability if self.gpu and self.gpu in GPUS else None


def _readable(read: Callable[..., T], *words: Any) -> T:
    """Return what `read` makes of its arguments. Raises Unreadable where that is ValueError."""
    try:
        return read(*words)
    except ValueError:
        raise Unreadable(words[-1]) from None


MOST_DIVISOR = 100_000  # up to which divisors are looked for: no group of processes is larger


def divisors(number: int, most: int = 8) -> str:
    """Return the divisors of a number for a message, the largest left out where there are many."""
    sizes = range(1, min(number, MOST_DIVISOR) + 1)
    found = [size for size in sizes if number % size == 0]
    return ", ".join(map(str, found[:most])) + (", …" if len(found) > most else "")


def multiples(number: int, near: int) -> str:
    """Return the multiples of a number around a value: '7680 or 8192'."""
    below = near // number * number
    return f"{below} or {below + number}" if below > 0 else str(number)
