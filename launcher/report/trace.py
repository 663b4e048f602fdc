"""The trace of PyTorch's profiler: the longest kernels, and the share of communication."""

from __future__ import annotations

import gzip
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError

LARGEST = 2 << 30  # bytes of a trace that are read; it is parsed whole
IDLE = 0.1  # share of the span from which on waiting is worth a word
LAUNCH = 20e-6  # seconds; the projection fitted 15 µs of the CPU for an operation on x86
COMMUNICATION = ("nccl", "deep_ep", "hybrid_ep", "hybridep", "nvshmem", "all_to_all")


@dataclass(frozen=True)
class Profile:
    """GPU time of one rank's trace, in seconds."""

    path: Path
    kernels: tuple[tuple[str, float, int], ...]  # name, seconds in all, calls; the ten longest
    total: float  # all kernels
    communication: float
    exposed: float  # communication while no other kernel runs
    span: float  # from the first kernel's start to the last one's end
    count: int  # kernels
    median: float  # of their times

    @property
    def idle(self) -> float:
        """Share of the span in which no kernel runs."""
        return max(0.0, 1 - (self.exposed + _busy(self)) / self.span)


def find(run: Path) -> list[Path]:
    """Return the traces below a run directory."""
    return sorted(path for path in run.rglob("*.pt.trace.json*") if path.is_file())


def read(path: Path) -> Profile | None:
    """Read a trace; None where it has no kernel. Raises UsageError where it is no trace."""
    if path.stat().st_size > LARGEST:
        raise UsageError(
            f"{path} is larger than {LARGEST >> 30} GiB; it was not read. Profile fewer steps"
        )
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path} is no profiler's trace: {error}") from None
    spans = [
        (str(event.get("name", "")), float(event["ts"]), float(event["dur"]))
        for event in events
        if isinstance(event, dict)
        and event.get("ph") == "X"
        and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        and "ts" in event
        and "dur" in event
    ]
    if not spans:
        return None
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for name, _, length in spans:
        seconds[name] += length
        calls[name] += 1
    talking = _union((at, at + length) for name, at, length in spans if _communicates(name))
    working = _union((at, at + length) for name, at, length in spans if not _communicates(name))
    both = _length(_union([*talking, *working]))
    longest = sorted(seconds.items(), key=lambda one: one[1], reverse=True)[:10]
    return Profile(
        path,
        tuple((name, time / 1e6, calls[name]) for name, time in longest),
        sum(seconds.values()) / 1e6,
        _length(talking) / 1e6,
        (both - _length(working)) / 1e6,
        (max(at + length for _, at, length in spans) - min(at for _, at, _ in spans)) / 1e6,
        len(spans),
        statistics.median(length for _, _, length in spans) / 1e6,
    )


def lines(profile: Profile) -> list[str]:
    """Return the profile in words."""
    return [
        f"profile {profile.path.name}: {profile.span:.3f} s; communication "
        f"{profile.communication / profile.span:.1%} of it, exposed "
        f"{profile.exposed / profile.span:.1%}; idle {profile.idle:.1%}",
        *_small(profile),
        *(
            f"  {time / profile.total:6.1%} {time * 1000:10.2f} ms {calls:6} × {name[:110]}"
            for name, time, calls in profile.kernels
        ),
    ]


def _small(profile: Profile) -> list[str]:
    """Say that the CPU is too slow for the GPU, where many kernels are shorter than a launch."""
    if profile.idle < IDLE or profile.median > LAUNCH:
        return []
    return [
        f"  the GPU waits for the CPU: half of its {profile.count:,} kernels take less than "
        f"{profile.median * 1e6:.0f} µs, about as long as launching one; CUDA graphs "
        "(--cuda-graph-impl) or fused kernels help"
    ]


def _busy(profile: Profile) -> float:
    return min(profile.span - profile.exposed, profile.total - profile.communication)


def _communicates(name: str) -> bool:
    lowered = name.lower()
    return any(word in lowered for word in COMMUNICATION)


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return spans without overlap, in order."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _length(spans: Iterable[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)
