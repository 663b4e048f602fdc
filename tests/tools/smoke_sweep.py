"""Smoke-train every model and every published recipe on this machine, one after the other.

    python tests/tools/smoke_sweep.py [WORD …]

A WORD picks the models and recipes whose name contains it; without any, all run (about half an hour
on 2 cores). The outputs are under output/smoke_sweep/. Exit status 1 when one of them failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.config import model_file  # noqa: E402
from tests.tools.golden import RECIPES, SCRIPTS  # noqa: E402

OUTPUT = ROOT / "output" / "smoke_sweep"


@dataclass(frozen=True)
class Case:
    """One launch: a script and the variables it gets."""

    name: str
    script: Path
    variables: dict[str, str]


@dataclass(frozen=True)
class Result:
    """How a launch ended."""

    name: str
    passed: bool
    seconds: float
    verdict: str
    sizes: str


def cases() -> list[Case]:
    """Return every model's default and every recipe."""
    entry = ROOT / "sbatch_benchmarking.sh"
    return [
        *(Case(name, entry, {"MODEL": name}) for name in model_file.names(ROOT)),
        *(
            Case(name, SCRIPTS / each.script, dict(each.parameters))
            for name, each in RECIPES.items()
        ),
    ]


def run(case: Case) -> Result:
    """Launch one case with SMOKE=1 on this machine and wait for it."""
    output = OUTPUT / case.name
    output.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **case.variables,
        "SMOKE": "1",
        "CLUSTER": "local",
        "OUTPUT_PATH": str(output),
    }
    start = time.monotonic()
    done = subprocess.run(
        ["bash", str(case.script)], env=environment, capture_output=True, text=True, check=False
    )
    (output / "launch.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    verdicts = re.findall(r"^(?:passed|FAILED|error).*", done.stderr, re.MULTILINE)
    sizes = re.search(r"→ (TP\d+ PP\d+ VPP\d+ EP\d+ CP\d+ on \d+ ranks)", done.stderr)
    return Result(
        case.name,
        done.returncode == 0 and "passed: loss" in done.stderr,
        time.monotonic() - start,
        verdicts[-1] if verdicts else f"exit status {done.returncode}",
        sizes[1] if sizes else "",
    )


def main(words: list[str]) -> int:
    """Run the chosen cases with a progress line each, then print a Markdown table."""
    chosen = [case for case in cases() if not words or any(word in case.name for word in words)]
    if not chosen:
        print(f"nothing is named {' or '.join(words)}", file=sys.stderr)
        return 1
    results = []
    for number, case in enumerate(chosen, 1):
        result = run(case)
        results.append(result)
        mark = "ok  " if result.passed else "FAIL"
        print(
            f"[{number}/{len(chosen)}] {mark} {result.name} {result.seconds:.0f} s {result.verdict}",
            flush=True,
        )
    print("\n| model or recipe | smoke sizes | seconds | result |\n|---|---|---|---|")
    for result in results:
        print(f"| {result.name} | {result.sizes} | {result.seconds:.0f} | {result.verdict} |")
    failed = [result.name for result in results if not result.passed]
    print(f"\n{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
