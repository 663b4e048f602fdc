"""How long a dry run takes, against starting Python with the two libraries it uses.

    python tests/benchmarks/dry_run.py [rounds]

Whole processes and their processor time, measured in turns, so the ratios mean something on any
machine. The first `python3` on PATH should be an interpreter, not a shim of a version manager. What
the plan costs is shown by a dry run whose plan is empty: nothing is checked, counted or printed.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ENVIRONMENT = {
    **os.environ,
    "PYTHONDONTWRITEBYTECODE": "",
    "MODEL": "DeepSeek-V3",
    "DRY_RUN": "1",
    "TIMESTAMP": "260101_120000",
}

UNPLANNED = """
import sys
from launcher import cli
from launcher.job import build
from launcher.plan.plan import Plan
build.plan = lambda *_: Plan(None, ())
sys.exit(cli.main(["submit"]))
"""
# The projection's modules are imported as they would be, were there none of it: not at all.
UNPROJECTED = """
import sys, types
lines = types.ModuleType("launcher.plan.projection.report")
lines.lines = lambda *_: []
lines.as_data = lines.nearest = lambda *_: None
sys.modules["launcher.plan.projection.report"] = lines
import launcher.plan.projection
launcher.plan.projection.report = lines
from launcher import cli
sys.exit(cli.main(["submit"]))
"""
# What decides how a job starts and what it inherits: the checks of checkpoints and of the shell.
UNCHECKED = """
import sys
from launcher import cli
from launcher.job import build, checkpoints, loading, shell
loading.decide = lambda draft: draft
loading.hold_weights = lambda draft, made: draft
shell.compare = lambda draft, environ: draft
checkpoints.last_legacy_folder = lambda sizes: "mp_rank_00"
sys.exit(cli.main(["submit"]))
"""
PLANNED = """
import sys
from launcher import cli
sys.exit(cli.main(["submit"]))
"""


def seconds(command: list[str]) -> float:
    """Return the processor time of a process, which other work of the machine changes little."""
    start = _of_children()
    subprocess.run(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    return _of_children() - start


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_process(times: int) -> float:
    """Return the seconds that `times` jobs take to build and render in one process."""
    from launcher.config.settings import from_environment
    from launcher.job import build, request, script

    environ = layered()
    start = time.perf_counter()
    for _ in range(times):
        script.render(build.build(request.read(from_environment(environ), [], environ)))
    return time.perf_counter() - start


def layered() -> dict[str, str]:
    """Return the environment that the layers leave to the launcher."""
    from launcher.config import bash_layers

    return bash_layers.source(bash_layers.ENTRY, [], ENVIRONMENT)[0]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    imports = ["python3", "-c", "import yaml, jinja2"]
    dry_run = ["bash", str(ROOT / "sbatch_benchmarking.sh")]
    pairs = [(seconds(imports), seconds(dry_run)) for _ in range(rounds)]
    base, dry = (statistics.median(column) for column in zip(*pairs))
    ENVIRONMENT.update(layered(), PYTHONPATH=str(ROOT))
    programs = (UNPLANNED, UNPROJECTED, UNCHECKED, PLANNED)
    codes = [["python3", "-c", code] for code in programs]
    turns = [[seconds(code) for code in codes] for _ in range(rounds)]
    without, unprojected, unchecked, plan = (statistics.median(column) for column in zip(*turns))
    print(f"import yaml, jinja2   {base * 1000:6.0f} ms")
    print(f"dry run               {dry * 1000:6.0f} ms   {dry / base:.2f} times the import")
    print(f"its Python, no plan   {without * 1000:6.0f} ms")
    print(
        f"its Python            {plan * 1000:6.0f} ms   {plan / without:.2f} times without a plan"
    )
    print(
        f"without a projection  {unprojected * 1000:6.0f} ms   with one "
        f"{plan / unprojected:.2f} times that"
    )
    print(
        f"no check of starts    {unchecked * 1000:6.0f} ms   with them {plan / unchecked:.2f} times that"
    )
    print(f"1,000 renders in one process   {in_process(1000):.2f} s")


if __name__ == "__main__":
    main()
