"""Read a training log of any length, from any number of tasks, even while it grows.

The log is scanned in blocks for the few words that matter; only lines that hold one are parsed.
Memory is bounded: beyond KEPT iterations only every second one is kept, later every fourth.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.report import lines
from launcher.report.lines import Iteration, Memory, StepTime

BLOCK = 1 << 22  # bytes read at once
LONGEST_LINE = 1 << 20  # bytes of a line that are looked at
KEPT = 1 << 14  # iterations kept, at least half of it
SOURCES = 1 << 14  # tasks whose step times are told apart
CONTINUED = 3  # lines over which a terminal may have broken an iteration's line

# What Megatron's lines hold: iterations, memory, checkpoints and evaluations the first of them.
_WORDS = (b"iteration", b"datetime: ", b"arguments ----")
# What other programs' hold, looked for until the log is known to be Megatron's.
_OTHER_WORDS = (b"Step Time", b":::MLLOG", b"Job throughput: ", b"using world size: ")
_KNOWN = 100  # iteration lines
# A line of the regular form, of which only time and number are wanted.
_REGULAR = re.compile(
    rb"iteration +(\d+)/ *\d+ \|[^|\n]*\| elapsed time per iteration \(ms\): ([\d.]+) \|"
)


@dataclass
class Pace:
    """How fast one task ran, by its own lines."""

    count: int = 0
    seconds: float = 0.0
    last: int = 0  # the iteration of its last line

    @property
    def mean(self) -> float:
        """Mean seconds an iteration."""
        return self.seconds / self.count if self.count else 0.0


@dataclass
class Log:
    """The content of a log so far."""

    iterations: list[Iteration] = field(default_factory=list)  # each once, in the log's order
    logged: int = 0  # iteration lines, each iteration of a life counted once
    seconds: float = 0.0  # the sum of their times, those not kept included
    stride: int = 1  # one of so many iterations is kept
    life: int = 0  # restarts so far
    starts: dict[int, float] = field(default_factory=dict)  # when each life began, if it says so
    first: float | None = None  # the earliest and the latest time in the log
    latest: float | None = None
    done: bool = False  # 'after training is done'
    paces: dict[str, Pace] = field(default_factory=dict)  # by task
    peaks: dict[int, Memory] = field(default_factory=dict)  # by rank, the largest
    memory: dict[int, float] = field(default_factory=dict)  # iteration → largest peak, in bytes
    arguments: dict[str, str] = field(default_factory=dict)  # Megatron's own dump
    world: int | None = None  # GPUs
    pauses: list[tuple[str, int, float]] = field(default_factory=list)  # what, after iteration, s
    cumulative: list[tuple[int, float]] = field(default_factory=list)  # progress.txt
    newest: Iteration | None = None


def read(path: Path) -> Log:
    """Read a whole log; return an empty one where there is no file yet."""
    reader = Reader()
    reader.read(path)
    reader.finish()
    return reader.log


def iteration(line: str) -> Iteration | None:
    """Return what an iteration line says, or None for any other line."""
    return next(lines.iterations(lines.plain(line)), None)


class Reader:
    """A reader that continues where it stopped. `log` holds everything read so far."""

    def __init__(self) -> None:
        self.log = Log()
        self._file: tuple[int, int] | None = None  # device and inode
        self._offset = 0
        self._rest = b""
        self._step: StepTime | None = None
        self._steps = 0  # Bridge's lines without an iteration's
        self._dump = False
        self._started = True  # whether a start was seen since the last iteration
        self._after: set[str] = set()
        self._pausing: tuple[str, float] | None = None
        self._regular = 0  # iteration lines since another program's were seen
        # Of the newest line: its number, its task, and what stands in front of its time.
        self._at = 0
        self._source = ""
        self._before = b"\0"

    def read(self, path: Path) -> Log:
        """Read what the file has gained since the last time; a new file is read from its start."""
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                identity = facts.st_dev, facts.st_ino
                if identity != self._file or facts.st_size < self._offset:
                    self.finish()
                    self._file, self._offset = identity, 0
                    self._start()
                file.seek(self._offset)
                while block := file.read(BLOCK):
                    self._offset += len(block)
                    self.feed(block)
        except OSError:
            pass
        return self.log

    def feed(self, block: bytes) -> None:
        """Read the next bytes, which may end within a line."""
        text = self._rest + block if self._rest else block
        end = text.rfind(b"\n") + 1
        self._rest = text[end:] if end else text
        if len(self._rest) > LONGEST_LINE:
            end, self._rest = len(text), b""
        # An iteration's line may go on in the next lines: they stay until they are there.
        if end:
            held = self._scan(text, end)
            self._rest = text[held:end] + self._rest if held < end else self._rest

    def finish(self) -> None:
        """Read the complete parts of an unfinished last line."""
        if self._rest:
            text, self._rest = self._rest, b""
            end = text.rfind(b"\n") + 1
            if end:
                self._scan(text, end, final=True)
            if end < len(text):
                self._line(_text(text[end:]), whole=False)
        if self._step is not None:
            self._lone_step()

    def _scan(self, text: bytes, end: int, final: bool = False) -> int:
        """Read the lines of text[:end] that matter; return where the unfinished ones begin."""
        start = 0
        if self._dump:
            start = self._arguments(text, 0, end)
        words = _WORDS if self._regular >= _KNOWN else _WORDS + _OTHER_WORDS
        unparsed = None
        for place in _matching(text, words, start, end):
            if place < start:
                continue  # in a dump, or the rest of a broken line
            stop = text.find(b"\n", place, end)
            stop = end if stop < 0 else stop
            if self._passes(text, place, stop):
                unparsed = place, stop
                continue
            if unparsed:
                self._latest(_text(text[unparsed[0] : unparsed[1]]))
                unparsed = None
            line = _text(text[place : min(stop, place + LONGEST_LINE)])
            if "arguments ----" in line:
                self._dump = "end of arguments" not in line
                if self._dump:
                    self._begin()
                    start = self._arguments(text, stop + 1, end)
                continue
            if lines.has_iteration(line):
                self._before = text[place : text.find(b"[", place, stop) + 1] or b"\0"
            if lines.has_iteration(line) or "memory (" in line:
                joined, after = _continued(text, line, stop, end)
                if joined is None and not final:
                    return place
                if joined:
                    line, start = joined, after
            self._line(line)
        if unparsed:
            self._latest(_text(text[unparsed[0] : unparsed[1]]))
        return end

    def _passes(self, text: bytes, place: int, stop: int) -> bool:
        """Count a regular line that is not kept; return False for any other line."""
        log = self.log
        if log.logged % log.stride == 0 or self._started or self._after or self._step:
            return False
        found = _REGULAR.search(text, place, stop)
        if (
            not found
            or text[place : place + len(self._before)] != self._before
            or int(found[1]) <= self._at
            or text[stop - 1 : stop] != b"|"
            or text.find(b"iteration ", found.end(), stop) >= 0
        ):
            return False
        seconds = float(found[2]) / 1000
        self._at = int(found[1])
        log.logged += 1
        log.seconds += seconds
        pace = log.paces[self._source]
        pace.count += 1
        pace.seconds += seconds
        pace.last = self._at
        return True

    def _latest(self, line: str) -> None:
        """Make the last of the lines that were only counted the newest."""
        found = next(lines.iterations(line), None)
        if found:
            self.log.newest = dataclasses.replace(found, life=self.log.life)
            if found.at is not None:
                self._time(found.at)

    def _arguments(self, text: bytes, start: int, end: int) -> int:
        """Read Megatron's argument dump from `start`; return where it ends."""
        marker = text.find(b"end of arguments", start, end)
        stop = end if marker < 0 else marker
        for line in text[start : min(stop, start + BLOCK)].decode(errors="replace").splitlines():
            found = lines.argument(line[:2000])
            if found and len(self.log.arguments) < 5000:
                self.log.arguments[found[0]] = found[1]
        self._dump = marker < 0
        return stop

    def _line(self, line: str, whole: bool = True) -> None:
        """Take in one line."""
        # A progress bar overwrites its line again and again.
        for part in line.split("\r") if "\r" in line else (line,):
            self._part(part, whole)

    def _part(self, line: str, whole: bool) -> None:
        seen = False
        for found in lines.iterations(line, whole):
            seen = True
            self._iteration(found)
        if "memory (" in line:
            for one in lines.memory(line):
                self._memory(one)
        if "Step Time" in line and (step := lines.step_time(line)):
            self._regular = -(1 << 62)
            if self._step is not None:
                self._lone_step()
            self._step = step
            if step.peak is not None:
                self._memory(Memory(0, self._number(), 0.0, step.peak, 0.0))
        if seen:
            return
        if "datetime: " in line and (moment := lines.moment(line)):
            self._moment(*moment)
        elif "using world size: " in line:
            self._begin()
            number = line.partition("using world size: ")[2].partition(",")[0].strip()
            if number.isdigit():
                self.log.world = int(number)
        elif ":::MLLOG" in line and (event := lines.mlperf(line)):
            self._regular = -(1 << 62)
            self._mlperf_event(event)
        elif "checkpoint" in line and "iteration" in line:
            self._checkpoint(line)
        elif "validation loss at" in line or "Evaluating on " in line:
            self._after.add("evaluation")
        elif (progress := lines.progress(line)) and len(self.log.cumulative) < KEPT:
            self.log.cumulative.append(progress)

    def _iteration(self, found: Iteration) -> None:
        """Keep an iteration, unless another task has logged it already."""
        log = self.log
        if self._step is not None:
            step, self._step = self._step, None
            # Bridge prints both of the same step, the time rounded.
            if (
                found.seconds is None
                or abs(found.seconds - step.seconds) <= 0.01 + found.seconds / 50
            ):
                found = _with_step(found, step)
        pace = log.paces.get(found.source)
        again = self._again(found, pace)
        if pace is None:
            if len(log.paces) < SOURCES:
                pace = log.paces[found.source] = Pace()
            else:
                pace = Pace()
        pace.last = found.number
        if found.seconds is not None:
            pace.count += 1
            pace.seconds += found.seconds
        if found.at is not None:
            self._time(found.at)
        newest = log.newest
        if again:
            log.life += 1
        elif newest is not None and found.number <= newest.number:
            # Another task of the same iteration: only its pace is of interest, or what is new.
            more = found.number == newest.number and found.fields.keys() - newest.fields.keys()
            if more and log.iterations and log.iterations[-1] is newest:
                log.iterations[-1] = log.newest = _merged(newest, found)
            return
        if log.life or self._after:
            found = dataclasses.replace(found, life=log.life, after=frozenset(self._after))
            self._after.clear()
        self._started = False
        self._regular += 1
        self._at, self._source = found.number, found.source
        log.newest = found
        log.logged += 1
        log.seconds += found.seconds or 0.0
        if (log.logged - 1) % log.stride == 0:
            log.iterations.append(found)
            if len(log.iterations) >= KEPT:
                del log.iterations[1::2]
                log.stride *= 2

    def _again(self, found: Iteration, pace: Pace | None) -> bool:
        """Say whether the job has started anew before this line."""
        newest = self.log.newest
        if newest is None:
            return False
        if self._started:
            return True
        if pace is None or not pace.last:
            return found.number < newest.number - 2
        # Tasks lag behind each other by a line or two, a single one never goes back.
        return found.number <= pace.last and (
            found.source == newest.source or found.number < newest.number - 2
        )

    def _start(self) -> None:
        self._started = True
        self._after.clear()
        self._pausing = None

    def _begin(self) -> None:
        """Note the first lines of a start; each start has several."""
        if not self._started:
            self._start()

    def _moment(self, what: str, at: float) -> None:
        if what.startswith(_BEGINNING):
            self._begin()
        elif what.startswith("after training is done"):
            self.log.done = True
        self._time(at)
        if self._started:
            # "before library-setup" is printed after later moments.
            life = self.log.life + (self.log.newest is not None)
            self.log.starts[life] = min(at, self.log.starts.get(life, at))

    def _time(self, at: float) -> None:
        if at <= 0:
            return
        log = self.log
        log.first = at if log.first is None else min(log.first, at)
        log.latest = at if log.latest is None else max(log.latest, at)

    def _checkpoint(self, line: str) -> None:
        at = lines.stamp(line)
        if at is not None:
            self._time(at)
        if "saving checkpoint" in line or "scheduled an async checkpoint" in line:
            self._after.add("checkpoint")
            if at is not None:
                self._pausing = ("checkpoint", at)
        elif "successfully saved checkpoint" in line:
            self._after.add("checkpoint")
            if at is not None and self._pausing and len(self.log.pauses) < KEPT:
                self.log.pauses.append(("checkpoint", self._number(), at - self._pausing[1]))
            self._pausing = None

    def _memory(self, one: Memory) -> None:
        log = self.log
        known = log.peaks.get(one.rank)
        if known is None or one.peak >= known.peak:
            log.peaks[one.rank] = one
        if one.iteration in log.memory or len(log.memory) < KEPT:
            log.memory[one.iteration] = max(one.peak, log.memory.get(one.iteration, 0.0))

    def _number(self) -> int:
        return self.log.newest.number if self.log.newest else 0

    def _lone_step(self) -> None:
        """Count a step that Bridge timed and no iteration line names."""
        step, self._step = self._step, None
        if step is None or (self.log.newest is not None and not self._steps):
            return
        self._steps += 1
        self._iteration(
            _with_step(Iteration(self._steps, self._steps, step.seconds, None, None), step)
        )

    def _mlperf_event(self, event: dict[str, object]) -> None:
        """Take the step times of an MLPerf log: tracked_stats with a time or a throughput."""
        value, metadata = event.get("value"), event.get("metadata")
        when = event.get("time_ms")
        at = when / 1000 if isinstance(when, (int, float)) else None
        if event["key"] == "init_start":
            self._begin()
        elif event["key"] == "eval_start":
            self._after.add("evaluation")
        elif event["key"] == "global_batch_size" and isinstance(value, int):
            self.log.arguments.setdefault("global_batch_size", str(value))
        elif event["key"] in ("max_sequence_length", "sequence_length") and isinstance(value, int):
            self.log.arguments.setdefault("seq_length", str(value))
        if at is not None:
            self._time(at)
        if event["key"] != "tracked_stats" or not isinstance(value, dict):
            return
        numbers = {
            name: float(number)
            for name, number in value.items()
            if isinstance(number, (int, float)) and not isinstance(number, bool)
        }
        seconds = next((numbers[name] for name in _MLPERF_SECONDS if name in numbers), None)
        if seconds is None:
            return
        place = metadata if isinstance(metadata, dict) else {}
        step = next((place[name] for name in _MLPERF_STEP if isinstance(place.get(name), int)), 0)
        loss = next((numbers[name] for name in _MLPERF_LOSS if name in numbers), None)
        self._iteration(Iteration(step, step, seconds, loss, None, at=at, fields=numbers))


_BEGINNING = (
    "before library-setup",
    "before megatron",
    "after megatron is initialized",
    "before the start of training",
)
_MLPERF_SECONDS = ("train_step_time", "train_step_timing", "step_time")
_MLPERF_LOSS = ("reduced_train_loss", "train_loss", "loss")
_MLPERF_STEP = ("step", "step_num", "samples_count")


def _matching(text: bytes, words: tuple[bytes, ...], start: int, end: int) -> Iterator[int]:
    """Return where lines begin that hold one of the words, in order."""
    found = set()
    for word in words:
        place = text.find(word, start, end)
        while place >= 0:
            found.add(text.rfind(b"\n", start, place) + 1 or start)
            after = text.find(b"\n", place, end)
            if after < 0:
                break
            place = text.find(word, after, end)
    return iter(sorted(found))


def _continued(text: bytes, line: str, stop: int, end: int) -> tuple[str | None, int]:
    """Join a line that a terminal or a pager has broken; return it and where the next one begins.

    ('', stop) where nothing continues it; (None, stop) where what follows was not read yet.
    """
    source, joined, place = lines.label(line), line, stop + 1
    for _ in range(CONTINUED):
        after = text.find(b"\n", place, end)
        if after < 0:
            if not _complete(joined):
                return None, stop
            break
        if text.find(b"|", place, min(after, place + 200)) < 0:
            break
        following = _text(text[place : min(after, place + 4000)])
        if lines.label(following) != source or not _continues(following):
            break
        joined += lines.unlabelled(following, source)
        place = after + 1
    return ("" if joined == line else joined), place


def _complete(line: str) -> bool:
    """Say whether a line is complete, with its end."""
    if "memory (" in line:
        return "max reserved" in line
    return line.rstrip().endswith("|") and "elapsed time" in line


def _continues(line: str) -> bool:
    """Say whether a line can be the rest of an iteration's or of a memory line."""
    if "[" in line[:80] or "memory (" in line or "time (ms)" in line:
        return False
    return not lines.has_iteration(line) and bool(lines.fields(line))


def _with_step(found: Iteration, step: StepTime) -> Iteration:
    numbers = dict(found.fields)
    if step.tokens is not None:
        numbers.setdefault("tokens per GPU (tokens/s/GPU)", step.tokens)
    return dataclasses.replace(
        found,
        tflops=step.tflops if found.tflops is None else found.tflops,
        fields=numbers,
    )


def _merged(first: Iteration, second: Iteration) -> Iteration:
    """Return an iteration with what another task adds: the last stage has the loss."""
    return dataclasses.replace(
        first,
        seconds=second.seconds if first.seconds is None else first.seconds,
        loss=second.loss if first.loss is None else first.loss,
        tflops=second.tflops if first.tflops is None else first.tflops,
        fields={**second.fields, **first.fields},
    )


def _text(line: bytes) -> str:
    return lines.plain(line.decode(errors="replace"))
