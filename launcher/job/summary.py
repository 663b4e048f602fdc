"""The summary of a job before it starts: text for the user, or JSON for tools."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TextIO

from launcher import terminal
from launcher.config.arguments import quote
from launcher.config.settings import placeholders
from launcher.job.draft import Job
from launcher.job.verification import Opinion
from launcher.plan import choices, data, sheet
from launcher.plan.plan import too_full


def tell(job: Job, opinion: Opinion | None) -> None:
    """Tell the user, on stderr, what this job is."""
    show(job, opinion, sys.stderr)
    if job.settings.EXPLAIN:
        print(explain(job), file=sys.stderr)


def show(job: Job, opinion: Opinion | None, stream: TextIO, everything: bool = False) -> None:
    """Print the summary, as wide as the stream's terminal."""
    text = report(job, opinion, everything)
    for_tools = job.settings.PLAN_FORMAT == "json"
    print(text if for_tools else terminal.fold(text, terminal.width(stream)), file=stream)


def report(job: Job, opinion: Opinion | None = None, everything: bool = False) -> str:
    """Return the summary of a job, in the form that PLAN_FORMAT asks for."""
    if job.settings.PLAN_FORMAT == "json":
        return as_json(job, opinion)
    lines = opinion.lines() if opinion else []
    return "\n".join([summary(job, everything), *(f"  {line}" for line in lines)])


def summary(job: Job, everything: bool = False) -> str:
    """Return the job in a screenful: what runs where, its plan, notes and findings."""
    lines = [
        _title(job),
        *(f"  {line}" for line in _sheet(job, everything)),
        f"  run directory {job.run_dir}",
        *(f"  note: {note}" for note in job.notes),
        *(f"  warning: {line}" for line in _warnings(job)),
        *(f"  error: {objection}" for objection in job.objections),
    ]
    return "\n".join(lines)


def as_json(job: Job, opinion: Opinion | None = None) -> str:
    """Return the same for tools: one JSON object, with every stage."""
    settings = job.settings
    shaped = None if settings.SMOKE else job.plan.shaped
    content = {
        "model": settings.MODEL_NAME,
        "cluster": settings.CLUSTER,
        "megatron_core": settings.MCORE_RELEASE_VERSION,
        "nodes": job.nodes,
        "tasks_per_node": job.tasks_per_node,
        "accepted": not job.objections,
        "errors": list(job.objections),
        "warnings": _warnings(job),
        "notes": list(job.notes),
        "name": job.name,
        "run_directory": str(job.run_dir),
        **(data.as_data(shaped, job.site) if shaped else {}),
        **({"megatron": dataclasses.asdict(opinion)} if opinion else {}),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _title(job: Job) -> str:
    settings = job.settings
    where = "this machine" if job.is_local else settings.CLUSTER
    ranks = f"{job.world_size} rank{'s'[: job.world_size > 1]}"
    gpus = f" {job.site.gpu}" if job.site.gpu else ""
    return (
        f"{settings.MODEL_NAME} on {where}: {job.nodes} node{'s' if job.nodes > 1 else ''} × "
        f"{job.tasks_per_node}{gpus} = {ranks}; {choices.precision(job.arguments)}; "
        f"Megatron-Core {settings.MCORE_RELEASE_VERSION}"
    )


def _sheet(job: Job, everything: bool) -> list[str]:
    if job.plan.shaped is None:
        return []
    # The sizes of a shrunken model mean nothing.
    if job.settings.SMOKE:
        return sheet.structure(job.plan.shaped, job.site)
    return sheet.sheet(job.plan.shaped, job.site, everything)


def _warnings(job: Job) -> list[str]:
    planned = list(job.warnings)
    shaped = None if job.settings.SMOKE else job.plan.shaped
    if shaped and (full := too_full(shaped, job.site)):
        planned.append(full.message)
    return [*placeholders(job.settings), *job.doubts, *planned]


def explain(job: Job) -> str:
    """Return every argument and environment variable with the place that set it."""
    rows = [
        (" ".join(quote(word) for word in argument.words()), argument.origin)
        for argument in job.arguments.values()
    ]
    rows += [
        (f"{name}={quote(text)}", origin)
        for name, (text, origin) in sorted(job.environment.items())
    ]
    width = min(60, max(len(left) for left, _ in rows))
    return "\n".join(f"{left:{width}}  {origin}" for left, origin in rows)
