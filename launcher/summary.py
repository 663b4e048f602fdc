"""What the user reads about a job before it starts."""

from __future__ import annotations

from launcher import local
from launcher.arguments import integer, quote
from launcher.job import FLAG_OF, Job, placeholders
from launcher.plan.sheet import sheet
from launcher.plan.stages import virtual_stages


def summary(job: Job) -> str:
    """Return the job in a few lines: what, where, batch arithmetic, notes and objections."""
    settings = job.settings
    sizes = {name: integer(job.arguments, flag) for name, flag in FLAG_OF.items()}
    if job.plan.shape:
        sizes["VPP"] = virtual_stages(job.plan.shape)
    data_parallel = job.world_size / (sizes["TP"] * sizes["PP"] * sizes["CP"])
    micro_batches = sizes["GBS"] / (sizes["MBS"] * data_parallel)
    where = "this machine" if local.is_local(settings) else f"{settings.CLUSTER}: {job.nodes} nodes"
    lines = [
        f"{settings.MODEL_NAME} on {where}, {job.tasks_per_node} ranks each"
        if job.nodes > 1
        else f"{settings.MODEL_NAME} on {where}, {job.tasks_per_node} ranks",
        "  "
        + " ".join(f"{name}{sizes[name]}" for name in ("TP", "PP", "VPP", "EP", "CP"))
        + f" DP{data_parallel:g}; {settings.PR}; micro-batch {sizes['MBS']}, "
        + f"global batch {sizes['GBS']} = {micro_batches:g} micro-batches; "
        + f"sequence {sizes['SEQ_LEN']}",
        # A shrunken model's sizes tell nothing.
        *(f"  {line}" for line in ([] if settings.SMOKE else sheet(job.plan, settings.GPU))),
        f"  run directory {job.run_dir}",
        *(f"  note: {note}" for note in job.notes),
        *(f"  warning: {line}" for line in _warnings(job)),
        *(f"  error: {objection}" for objection in job.objections),
    ]
    return "\n".join(lines)


def _warnings(job: Job) -> list[str]:
    planned = [each.message for each in job.plan.findings if each.severity == "warning"]
    return [*placeholders(job), *planned]


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
