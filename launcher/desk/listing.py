"""`moe-zoo list`: models, clusters, recipes and runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher import ROOT, terminal
from launcher.config import bash_layers, model_file
from launcher.config.settings import placeholders
from launcher.errors import UsageError, did_you_mean
from launcher.job import request
from launcher.job.build import build
from launcher.job.draft import Job
from launcher.plan import memory, parameters
from launcher.plan.plan import too_full

KINDS = ("models", "clusters", "recipes", "runs")
CLUSTERS = ROOT / "cluster_configs" / "benchmarking"
RECIPES = ROOT / "best_practice"
# Only a launch means these; a list has rows of its own.
_LAUNCHES = ("MODEL", "SMOKE", "TIMESTAMP", "TRAINING_PARAMS_PATH")


def show(words: Sequence[str]) -> int:
    """Print one table, or all but that of the runs."""
    kind, *rest = words or [""]
    if kind and kind not in KINDS:
        raise UsageError(
            f"list {kind!r} is unknown; known: {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}"
        )
    if kind == "runs":
        from launcher.desk import status  # the others read no log

        return status.table(rest)
    if rest:
        raise UsageError(f"list {kind} takes no further words; given: {' '.join(rest)}")
    environ = {name: text for name, text in os.environ.items() if name not in _LAUNCHES}
    tables = {"models": _models, "clusters": _clusters, "recipes": _recipes}
    for number, name in enumerate([kind] if kind else tables):
        print("\n" * bool(number), end="")
        print(terminal.table(list(tables[name](environ)), terminal.width(sys.stdout)))
    if not kind:
        print("\nyour runs: moe-zoo list runs [FOLDER …]")
    return 0


def _models(environ: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """Yield a row for each model, as the runtime config has it, on CLUSTER's GPU."""
    yield ("model", "parameters", "active", "GPU", "ranks", "GiB", "plan")
    names = model_file.names(ROOT)
    jobs = _jobs([(bash_layers.ENTRY, {**environ, "MODEL": name}) for name in names])
    for name, job in zip(names, jobs):
        if isinstance(job, str):
            yield (name, "-", "-", "-", "-", "-", f"refused: {job}")
            continue
        shaped = job.plan.shaped
        whole = parameters.whole(shaped.shape.model) if shaped else None
        sizes = [f"{size / 1e9:.1f}B" for size in (whole.total, whole.active)] if whole else "--"
        yield (name, *sizes, *_row(job))


def _recipes(environ: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """Yield a row for each published recipe."""
    yield ("recipe", "GPU", "ranks", "GiB", "plan")
    scripts = sorted(RECIPES.glob("*/run_*.sh"))
    jobs = _jobs([(script, environ) for script in scripts])
    for script, job in zip(scripts, jobs):
        name = str(script.relative_to(ROOT))
        yield (
            (name, "-", "-", "-", f"refused: {job}") if isinstance(job, str) else (name, *_row(job))
        )


def _row(job: Job) -> tuple[str, str, str, str]:
    """Return GPU, ranks, memory of the fullest rank, and whether the job can work."""
    shaped = job.plan.shaped
    gib, verdict = "-", "fits"
    if shaped and "memory" not in shaped.unknown:
        gib = f"{memory.worst(shaped.memory).total / memory.GIB:.0f}"
    if job.objections:
        verdict = f"refused: {job.objections[0]}"
    elif shaped and too_full(shaped, job.site):
        verdict = "seems not to fit"
    elif gib == "-":
        verdict = "memory unknown"
    elif not job.gpu:
        verdict = "ok"
    return job.gpu or "-", str(job.world_size), gib, verdict


def _clusters(environ: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """Yield a row for each cluster config."""
    yield ("cluster", "partition", "account", "GPU", "containers", "still to fill in")
    names = sorted(path.stem for path in CLUSTERS.glob("*.conf"))
    kept = {name: text for name, text in environ.items() if name not in ("PARTITION", "ACCOUNT")}
    for name in names:
        try:
            given = {**kept, "CLUSTER": name, "MODEL": "Mixtral-8x7B"}
            layers, _ = bash_layers.source(bash_layers.ENTRY, [], given)
            settings = bash_layers.settings_of(layers)
        except UsageError as error:
            yield (name, "-", "-", "-", "-", str(error))
            continue
        if name == "local":
            yield (name, "-", "-", "this machine's", "none", "")
            continue
        left = "; ".join(line.partition(" for ")[2] for line in placeholders(settings))
        cells = (settings.PARTITION, settings.ACCOUNT, settings.GPU, settings.CONTAINER_RUNTIME)
        shown = ("-" if not cell or cell.startswith("YOUR_") else cell for cell in cells)
        yield (name, *shown, left)


def _jobs(launches: Sequence[tuple[Path, Mapping[str, str]]]) -> list[Job | str]:
    """Return the job of each script and environment, or why there is none."""

    def layers(launch: tuple[Path, Mapping[str, str]]) -> tuple[dict[str, str], list[str]] | str:
        try:
            return bash_layers.source(launch[0], [], launch[1])
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sourced = list(pool.map(layers, launches))
    found: list[Job | str] = []
    for each in sourced:
        if isinstance(each, str):
            found.append(each)
            continue
        environ, words = each
        try:
            found.append(build(request.read(bash_layers.settings_of(environ), words, environ)))
        except UsageError as error:
            found.append(str(error))
    return found
