"""The plan's memory against what Megatron-LM's own functional tests allocated on GPUs.

    python tests/tools/functional_memory.py extract CLONE      renew the data from a clone's git
    python tests/tools/functional_memory.py report             every job with its error
    python tests/tools/functional_memory.py table              the summary, as on the page

tests/functional_tests/test_cases of NVIDIA/Megatron-LM holds a job's exact arguments
(model_config.yaml) beside what torch.cuda.max_memory_allocated said on the last rank
(mem-max-allocated-bytes of golden_values_*.json). The data file has a line for each job.
"""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [*(p for p in sys.path if p != str(Path(__file__).parent)), str(ROOT)]

from launcher.config.arguments import parse  # noqa: E402
from launcher.errors import UsageError  # noqa: E402
from launcher.plan import influence, memory, stages  # noqa: E402
from launcher.plan.shape import read  # noqa: E402

DATA = ROOT / "tests" / "plan" / "functional_memory.jsonl.gz"
BRANCH = "core_r0.19.0"
CASES = "tests/functional_tests/test_cases"
RECIPES = "tests/test_utils/recipes"
# Of GPT's training; the rest is BERT, T5, multimodal and Mamba models.
MODELS = ("gpt", "moe", "mixtral", "nemotron")
PEAK = "mem-max-allocated-bytes"
GPT2 = "50257"  # tokens of vocab.json and merges.txt


@dataclass(frozen=True)
class Job:
    """A functional test: its arguments, and by platform the first and the last peak in bytes."""

    name: str
    commit: str
    gpus: Mapping[str, int]  # by platform
    argv: tuple[str, ...]
    peaks: Mapping[str, tuple[float, float]]


def jobs() -> list[Job]:
    """Return the stored jobs."""
    return [Job(**json.loads(line)) for line in gzip.decompress(DATA.read_bytes()).splitlines()]


# --- from a clone -------------------------------------------------------------------------------


def extract(clone: str) -> Iterator[Job]:
    """Read the jobs off a clone of Megatron-LM."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", clone, *words], check=True, capture_output=True, text=True
        ).stdout

    commit = git("rev-parse", "--short=10", BRANCH).strip()
    files = git("ls-tree", "-r", "--name-only", BRANCH, CASES).splitlines()
    used = _gpus(git)
    for path in sorted(one for one in files if one.endswith("/model_config.yaml")):
        folder = path.rpartition("/")[0]
        name = folder[len(CASES) + 1 :]
        model, _, case = name.partition("/")
        if model not in MODELS or "inference" in name or "grpo" in name:
            continue
        config = yaml.safe_load(git("show", f"{BRANCH}:{path}"))
        peaks = {}
        for golden in files:
            if golden.startswith(f"{folder}/golden_values_") and golden.endswith(".json"):
                found = _ends(git("show", f"{BRANCH}:{golden}"))
                if found:
                    peaks[golden[len(folder) + 15 : -5]] = found
        arguments = config.get("MODEL_ARGS") if isinstance(config, dict) else None
        if peaks and isinstance(arguments, dict):
            gpus = {one: used.get((_gpu(one), case), 4 if "1node" in case else 8) for one in peaks}
            yield Job(name, commit, gpus, tuple(_words(arguments)), peaks)


def _gpu(platform: str) -> str:
    return "gb200" if "gb200" in platform else "h100"


def _gpus(git: Any) -> dict[tuple[str, str], int]:
    """Return how many GPUs a recipe gives to its test cases."""
    found = {}
    for path in git("ls-tree", "-r", "--name-only", BRANCH, RECIPES).splitlines():
        if not path.endswith(".yaml"):
            continue
        recipe = yaml.safe_load(git("show", f"{BRANCH}:{path}"))
        spec = recipe.get("spec") or {}
        for product in recipe.get("products") or []:
            for case in product.get("test_case", []):
                count = int(spec.get("nodes", 1)) * int(spec.get("gpus", 8))
                found[path.split("/")[-2], case] = count
    return found


def _ends(text: str) -> tuple[float, float] | None:
    """Return the first and the last peak of a golden file; some are empty or have none."""
    series = json.loads(text).get(PEAK) if text.strip() else None
    values = series.get("values", {}) if isinstance(series, dict) else {}
    numbers = [one for one in values.values() if isinstance(one, (int, float))]
    return (numbers[0], numbers[-1]) if numbers else None


def _words(arguments: Mapping[str, Any]) -> Iterator[str]:
    for flag, value in arguments.items():
        if value is False or value is None:
            continue
        yield flag
        if value is not True:
            text = str(value)
            listed = text.startswith("[") and text.endswith("]") and " " in text
            yield from (text[1:-1] if listed else text).split()


# --- against the plan -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A peak and the plan's account of it, in bytes; `why` where the plan has none."""

    job: Job
    platform: str
    measured: float
    ours: float
    why: str = ""

    @property
    def error(self) -> float:
        """How far ours is above what was measured, as a share of it."""
        return self.ours / self.measured - 1


def compare() -> list[Compared]:
    """Return every job on every platform with the plan's account."""
    return [
        Compared(job, platform, last, *_account(job, platform))
        for job in jobs()
        for platform, (_, last) in job.peaks.items()
    ]


def _account(job: Job, platform: str) -> tuple[float, str]:
    """Return what the last rank allocates at most, or 0 and why that is not known."""
    argv = list(job.argv)
    if "--vocab-size" not in argv:
        if "--vocab-file" not in argv:
            return 0.0, "a tokenizer's size that is not stated"
        argv += ["--vocab-size", GPT2]
    arguments = parse(argv, job.name)
    if influence.unknown(arguments)[0]:
        return 0.0, "flags that the plan names as not modelled"
    try:
        shape = read(arguments, job.gpus[platform])
        if shape.training.global_batch % (shape.training.micro_batch * shape.parallel.data):
            return 0.0, "a number of GPUs that the global batch does not fit"
        last = memory.ranks(shape, stages.split(shape))[-1]
    except (UsageError, ValueError) as error:
        return 0.0, str(error)
    return last.static + last.activations + last.logits + last.working, ""


def noise() -> list[float]:
    """Return by how much the largest of a job's peaks on one kind of GPU exceeds the smallest."""
    spreads = []
    for job in jobs():
        for kind in ("a100", "h100", "gb200"):
            same = [last for one, (_, last) in job.peaks.items() if kind in one]
            if len(same) > 1:
                spreads.append(max(same) / min(same) - 1)
    return spreads


def table() -> str:
    """Return the summary as a table of Markdown."""
    found = [one for one in compare() if not one.why]
    lines = [
        "| jobs | peaks | median | within 10 % | within 20 % | lowest and highest |",
        "|---|---|---|---|---|---|",
    ]
    for title, chosen in _groups(found):
        errors = sorted(one.error for one in chosen)
        if not errors:
            continue
        near, far = (sum(abs(e) <= bound for e in errors) / len(errors) for bound in (0.1, 0.2))
        lines.append(
            f"| {title} | {len(errors)} | {statistics.median(errors):+.0%} | {near:.0%} "
            f"| {far:.0%} | {errors[0]:+.0%}, {errors[-1]:+.0%} |"
        )
    return "\n".join(lines)


def _groups(found: list[Compared]) -> Iterator[tuple[str, list[Compared]]]:
    """Split peaks by what their jobs have."""
    yield "all", found
    moe = [one for one in found if "--num-experts" in one.job.argv]
    yield "experts", moe
    yield "dense", [one for one in found if one not in moe]
    large = 4 * memory.GIB
    yield "4 GiB and more", [one for one in found if one.measured >= large]
    yield "less than 4 GiB", [one for one in found if one.measured < large]


def report() -> None:
    """Print every peak with ours, worst last; then what the plan has no number for."""
    found = compare()
    for one in sorted((one for one in found if not one.why), key=lambda one: abs(one.error)):
        sizes = f"{one.measured / memory.GIB:6.2f} {one.ours / memory.GIB:6.2f} GiB"
        print(f"{one.error:+6.1%} {sizes} {one.job.name} {one.platform}")
    reasons: dict[str, int] = {}
    for one in found:
        if one.why:
            reasons[one.why] = reasons.get(one.why, 0) + 1
    for why, count in sorted(reasons.items(), key=lambda pair: -pair[1]):
        print(f"{count} without a number: {why}")
    spreads = noise()
    print(
        f"two runs of one job on one kind of GPU differ by {statistics.median(spreads):.0%} in the "
        f"median, by {max(spreads):.0%} at most ({len(spreads)} jobs)"
    )
    print(table())


def main() -> None:
    """Do what the command line says."""
    words = sys.argv[1:]
    if words[:1] == ["extract"] and len(words) == 2:
        lines = [json.dumps(vars(job)) for job in extract(words[1])]
        DATA.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
        print(f"{len(lines)} jobs")
    elif words == ["report"]:
        report()
    elif words == ["table"]:
        print(table())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
