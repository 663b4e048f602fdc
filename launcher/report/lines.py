"""Parse one line of a training log: pure functions from text to numbers.

A line may begin with other text than Megatron's (srun's task, a host, NeMo-Run's task, Primus'
time and rank, colours), and several writers may share a line. Every function takes time
linear in the line's length.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

LONGEST = 1 << 14  # characters of one iteration's fields; Megatron's longest lines have 2,000

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HEAD = re.compile(r"iteration\s{1,20}(\d{1,12})\s{0,20}/\s{0,20}(\d{1,12})(?!\d)")
_NUMBER = re.compile(
    r"\s{0,40}([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf))"
    r"(?:\s?(?:MODEL_)?(?:ms|s|GiB|GB|MiB|MB|%|TFLOP/s/GPU))?(?![\w.])",
    re.IGNORECASE,
)
_LAST_NUMBER = re.compile(
    r"(?<=[\s:])([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))\s*$", re.IGNORECASE
)
_TIME = re.compile(r"\[(\d{4})-?(\d\d)-?(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?\]")
_DATETIME = re.compile(
    r"\[([^\]]{1,100})\] datetime: (\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?"
)
_LABEL = re.compile(
    r"\s{0,20}(?:(\d{1,7}):|\[((?:rank|default)?\d{1,7})\]:|\[([\w.-]{1,64}:\d{1,7})\]:"
    r"|([\w.-]{1,64}/\d{1,7}) )"
)
_PRIMUS_RANK = re.compile(r"\[(rank-\d{1,7})/\d{1,7}\]")
_MEMORY = re.compile(r"\[Rank (\d{1,7})\] ?\(after (\d{1,12}) iterations\) memory \((MB|GB)\)")
_STEP = re.compile(r"Step Time\s{0,4}:\s{0,4}(\d+(?:\.\d+)?)\s?s\b")
_UTILIZATION = re.compile(r"GPU utilization:\s{0,4}(\d+(?:\.\d+)?)\s?(?:MODEL_)?TFLOPS?/s/GPU")
_TOKENS = re.compile(r"([\d.]+) tok/s/gpu", re.IGNORECASE)
_PEAK = re.compile(r"Peak Mem:\s{0,4}([\d.]+)\s?GB")
_PROGRESS = re.compile(r"Iteration: (\d{1,12})\s.{0,40}?Job throughput: ([\d.]+) TFLOP/s/GPU")
# Where another writer's line begins inside this one.
_FOREIGN = ("[Rank ", "time (ms) |", "Step Time", "srun: ", "slurmstepd: ", ":::MLLOG", "[rank")

# Fields under the names that Megatron-LM prints today, by every spelling, blanks left out.
_SAME: Mapping[str, tuple[str, ...]] = {
    "elapsed time per iteration (ms)": (),
    "elapsed time per iteration (s)": ("iterationtime",),
    "throughput per GPU (TFLOP/s/GPU)": ("tflops", "tflop/s/gpu", "model_tflop/s/gpu"),
    "compute per GPU (TFLOP/s/GPU)": (),
    "tokens per GPU (tokens/s/GPU)": (
        "tokens/s/gpuinst/harmonicmean",
        "tokens/sec/gpu",
        "tokenspergpupersecond(tgs)",
        "tokenspergpupersecond",
    ),
    "samples per second": ("samples/sec",),
    "consumed samples": (),
    "consumed tokens": (),
    "skipped samples": (),
    "energy per GPU (J/iter/GPU)": (),
    "power per GPU (W/GPU)": (),
    "learning rate": (),
    "decoupled learning rate": (),
    "global batch size": (),
    "actual seqlen": (),
    "lm loss": ("lossvalue", "lmlossvalue"),
    "loss scale": (),
    "grad norm": (),
    "num zeros": (),
    "params norm": (),
    "number of skipped iterations": (),
    "number of nan iterations": (),
    "hip mem usage (GiB)": ("hipmemusage/free/total/usage_ratio", "memusages"),
}
NAMES: Mapping[str, str] = {
    **{"".join(name.lower().split()): name for name in _SAME},
    **{spelling: name for name, spellings in _SAME.items() for spelling in spellings},
}


@dataclass(frozen=True)
class Iteration:
    """One logged iteration. A number that the line lacks is None."""

    number: int
    total: int
    seconds: float | None  # elapsed time per iteration
    loss: float | None  # lm loss; None where this rank does not log one
    tflops: float | None  # model TFLOPS a GPU, by the count of the program that logged it
    at: float | None = None  # when it was printed, in seconds since 1970 of the log's own clock
    source: str = ""  # the task that printed it: srun's number, a host, Primus' rank
    fields: Mapping[str, float] = field(default_factory=dict)  # all numbers, by Megatron's names
    life: int = 0  # which start of the job it belongs to, from 0
    after: frozenset[str] = frozenset()  # "checkpoint", "evaluation": what came just before

    @property
    def tokens(self) -> float | None:
        """Tokens a second and GPU, where the line says so."""
        return self.fields.get("tokens per GPU (tokens/s/GPU)")

    @property
    def batch(self) -> float | None:
        """Global batch size."""
        return self.fields.get("global batch size")

    @property
    def skipped(self) -> bool:
        """Whether the optimizer skipped its step, or the loss was not a number."""
        return any(
            self.fields.get(f"number of {kind} iterations", 0) > 0 for kind in ("skipped", "nan")
        )


@dataclass(frozen=True)
class Memory:
    """PyTorch's memory on one rank, in bytes."""

    rank: int
    iteration: int
    allocated: float
    peak: float  # max allocated
    reserved: float  # max reserved


@dataclass(frozen=True)
class StepTime:
    """Megatron-Bridge's own line, which comes before the iteration's."""

    seconds: float
    tflops: float | None
    tokens: float | None
    peak: float | None  # bytes


def plain(line: str) -> str:
    """Return a line without colours."""
    return _COLOUR.sub("", line) if "\x1b" in line else line


def label(line: str) -> str:
    """Return who wrote a line: 7 of '7: …', 'rank-7' of Primus, 'node1:3', 'task/0'; '' unknown."""
    found = _LABEL.match(line)
    if found:
        return found[found.lastindex or 0]
    primus = _PRIMUS_RANK.search(line, 0, 200)
    return primus[1] if primus else ""


def unlabelled(line: str, source: str) -> str:
    """Return a line without the task in front of it."""
    found = _LABEL.match(line) if source else None
    return line[found.end() :] if found else line


def iterations(line: str, whole: bool = True) -> Iterator[Iteration]:
    """Yield each iteration that a line tells of.

    Two writers may share a line. `whole` says that its end was seen. Where a line is cut off, a
    last number without a delimiter is not taken.
    """
    heads = list(_heads(line))
    for place, head in enumerate(heads):
        following = heads[place + 1].start() if place + 1 < len(heads) else len(line)
        text = line[head.end() : min(following, head.end() + LONGEST)]
        foreign = min((at for word in _FOREIGN if (at := text.find(word)) >= 0), default=len(text))
        closed = whole and following == len(line) and foreign == len(text)
        found = fields(text[:foreign], closed)
        # "iteration 3/10" alone is a progress bar of another program.
        if not found:
            continue
        before = line[max(0, head.start() - 200) : head.start()]
        times = list(_TIME.finditer(before))
        milliseconds = found.get("elapsed time per iteration (ms)")
        wall = found.get("throughput per GPU (TFLOP/s/GPU)")
        yield Iteration(
            number=int(head[1]),
            total=int(head[2]),
            seconds=found.get("elapsed time per iteration (s)")
            if milliseconds is None
            else milliseconds / 1000,
            loss=found.get("lm loss"),
            tflops=found.get("compute per GPU (TFLOP/s/GPU)") if wall is None else wall,
            at=_seconds(times[-1].groups()) if times else None,
            source=label(line),
            fields=found,
        )


def has_iteration(line: str) -> bool:
    """Say whether a line has 'iteration N/M'."""
    return next(_heads(line), None) is not None


def _heads(line: str) -> Iterator[re.Match[str]]:
    place = line.find("iteration")
    while place >= 0:
        head = _HEAD.match(line, place)
        if head and (place == 0 or not (line[place - 1].isalnum() or line[place - 1] in "_.")):
            yield head
        place = line.find("iteration", place + 9)


def fields(text: str, closed: bool = True) -> dict[str, float]:
    """Return the numbers of 'name: number | name: number |', by Megatron's names.

    The first number of a pair inst/average counts. `closed`: the end of the text ends the last
    field.
    """
    cells = text.split("|")
    if not closed:
        cells.pop()
    found: dict[str, float] = {}
    for cell in cells:
        name, _, rest = cell.partition(":")
        try:
            found.setdefault(_named(name), float(rest))
            continue
        except ValueError:
            pass
        parts = cell[:400].split(":")
        if len(parts) == 1:
            _without_colon(parts[0], found)
            continue
        name = parts[0]
        for part in parts[1:]:
            number = _NUMBER.match(part)
            if number is None:
                name = part
                continue
            found.setdefault(_named(name), float(number[1]))
            name = part[number.end() :]
    found.pop("", None)
    return found


def _without_colon(cell: str, found: dict[str, float]) -> None:
    """Read ' lm loss 5.1E+00 ' (2020) and ' 300.0 MODEL_TFLOP/s/GPU '."""
    last = _LAST_NUMBER.search(cell[-120:])
    first = _NUMBER.match(cell)
    if first and cell.rstrip().endswith("TFLOP/s/GPU"):
        found.setdefault("throughput per GPU (TFLOP/s/GPU)", float(first[1]))
    elif last and cell[:-1].strip():
        name = cell[-120:][: last.start()]
        if name.strip():
            found.setdefault(_named(name), float(last[1]))


@functools.lru_cache(maxsize=1 << 10)
def _named(name: str) -> str:
    """Return a field under the name that Megatron prints today; a line may break within it."""
    return NAMES.get("".join(name.lower().split())) or " ".join(name.split())[:100]


def memory(line: str) -> Iterator[Memory]:
    """Yield each rank's memory that a line tells of."""
    heads = list(_MEMORY.finditer(line))
    for place, head in enumerate(heads):
        end = heads[place + 1].start() if place + 1 < len(heads) else len(line)
        text = line[head.end() : min(end, head.end() + 400)]
        found: dict[str, float] = {}
        for cell in text.split("|"):
            name, _, rest = cell.partition(":")
            number = _NUMBER.match(rest)
            # Another task's text may follow the last number without a blank.
            loose = number or re.match(r"\s*(\d+\.\d+)", rest)
            if loose:
                found[" ".join(name.split())] = float(loose[1])
        unit = 2**20 if head[3] == "MB" else 2**30
        if "max allocated" in found:
            yield Memory(
                rank=int(head[1]),
                iteration=int(head[2]),
                allocated=found.get("allocated", 0.0) * unit,
                peak=found["max allocated"] * unit,
                reserved=found.get("max reserved", 0.0) * unit,
            )


def step_time(line: str) -> StepTime | None:
    """Return what Megatron-Bridge's line says of the step that the next iteration line names."""
    found = _STEP.search(line)
    if not found:
        return None
    tflops, tokens, peak = (
        pattern.search(line, found.end(), found.end() + 300)
        for pattern in (_UTILIZATION, _TOKENS, _PEAK)
    )
    return StepTime(
        float(found[1]),
        float(tflops[1]) if tflops else None,
        float(tokens[1]) if tokens else None,
        float(peak[1]) * 2**30 if peak else None,
    )


def moment(line: str) -> tuple[str, float] | None:
    """Return '[what] datetime: …' as (what, seconds since 1970)."""
    found = _DATETIME.search(line)
    return (found[1], _seconds(found.groups()[1:])) if found else None


def stamp(line: str) -> float | None:
    """Return the first '[date time]' of a line, in seconds since 1970."""
    found = _TIME.search(line, 0, 400)
    return _seconds(found.groups()) if found else None


def progress(line: str) -> tuple[int, float] | None:
    """Return (iteration, TFLOPS/GPU since the job's start) of a line of progress.txt."""
    found = _PROGRESS.search(line)
    return (int(found[1]), float(found[2])) if found else None


def mlperf(line: str) -> dict[str, object] | None:
    """Return the event of an ':::MLLOG {json}' line, or None where it is cut off."""
    _, marker, text = line.partition(":::MLLOG")
    if not marker:
        return None
    try:
        event, _ = json.JSONDecoder().raw_decode(text.strip())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("key"), str) else None


def argument(line: str) -> tuple[str, str] | None:
    """Return (name, value) of '  seq_length ....... 8192', a line of Megatron's argument dump."""
    name, dots, rest = line.partition(" ..")
    words = name.split()
    if not dots or not words or not words[-1].isidentifier():
        return None
    return words[-1], rest.lstrip(".").strip()


def _seconds(parts: tuple[str | None, ...]) -> float:
    year, month, day, hour, minute, second = (int(part or 0) for part in parts[:6])
    try:
        # The log has no time zone, and only differences matter.
        whole = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0
    return whole + (int((parts[6] or "0").ljust(6, "0")) / 1e6)
