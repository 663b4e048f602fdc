"""The plan of one job as a sheet of text: stages, parameters, FLOPs, memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from launcher.config.gpus import GPUS
from launcher.plan import architectures, flops, memory, parameters, stages
from launcher.plan.data import MEMORY
from launcher.plan.plan import Shaped, Site
from launcher.plan.projection import report as projected

BAR = 24  # characters of a full GPU
ROWS = 9  # of stages, where not all are asked for


def sheet(made: Shaped, site: Site, everything: bool = False) -> list[str]:
    """Return the plan's lines: ranks, batch, model, stages, memory, published result, projection.

    `everything` adds each stage with its memory by terms, and the assumptions of the numbers.
    """
    try:
        lines = [*structure(made, site), *_size(made), *_needs(made, site, everything)]
        if "FLOPs" not in made.unknown and not made.refused:
            lines += _published(made, site)
        return [*lines, *projected.lines(made, site, everything)]
    except (ValueError, ArithmeticError, LookupError) as error:
        return [f"warning: no plan could be made: {error}"]


def _size(made: Shaped) -> list[str]:
    """Return the model's parameters and FLOPs, as far as they are known."""
    return [] if "parameters" in made.unknown else [f"model      {_model(made)}"]


def _needs(made: Shaped, site: Site, everything: bool) -> list[str]:
    """Return the stages and their memory, as far as they are known."""
    if "parameters" in made.unknown:
        return []
    if "memory" in made.unknown:
        return [
            f"stage {numbers:<5}{content}  {size}"
            for numbers, content, size, _ in _runs(made, None)
        ]
    rows = list(_every_stage(made)) if everything else _stages(made, site.gpu)
    assumed = [f"assumed    {line}" for line in made.assumptions() if everything]
    return [*rows, f"memory     {_fullest(made, site.gpu)}", *assumed]


def structure(made: Shaped, site: Site) -> list[str]:
    """Return the lines of the ranks and of the batch."""
    shape = made.shape
    parallel, training = shape.parallel, shape.training
    virtual = parallel.virtual

    def spread(ranks: int) -> str:
        """Say how many nodes consecutive ranks lie on."""
        if ranks <= site.tasks_per_node:
            return "within a node"
        return f"over {-(-ranks // site.tasks_per_node)} nodes"

    # Ranks count through TP, then CP or EP, then DP, then PP (initialize_model_parallel's order).
    where = [f"TP {spread(parallel.tensor)}"] if parallel.tensor > 1 else []
    where += [f"CP {spread(parallel.tensor * parallel.context)}"] if parallel.context > 1 else []
    where += (
        [f"EP {spread(parallel.expert_tensor * parallel.expert)}"] if parallel.expert > 1 else []
    )
    where += (
        [f"a stage {spread(parallel.world // parallel.pipeline)}"] if parallel.pipeline > 1 else []
    )
    micro_batches = training.global_batch / (training.micro_batch * parallel.data)
    idle = (parallel.pipeline - 1) / (virtual * micro_batches)
    return [
        f"ranks      TP{parallel.tensor} CP{parallel.context} DP{parallel.data} "
        f"PP{parallel.pipeline} VPP{virtual}; experts ETP{parallel.expert_tensor} "
        f"EP{parallel.expert} EDP{parallel.expert_data}" + "".join(f"; {one}" for one in where),
        f"batch      {training.global_batch} sequences of {training.sequence} tokens = "
        f"DP{parallel.data} × {micro_batches:g} micro-batches of {training.micro_batch}"
        + (
            f"; at the start {training.first_batch} sequences"
            if training.first_batch != training.global_batch
            else ""
        )
        # Narayanan et al., arXiv:2104.04473, section 2.2.2.
        + (f"; pipeline bubble {idle:.1%} of the ideal step" if parallel.pipeline > 1 else ""),
    ]


def _model(made: Shaped) -> str:
    model = parameters.whole(made.shape.model)
    mtp = f" and {_billions(model.mtp)} of MTP" if model.mtp else ""
    share = flops.iteration(made.shape) / made.shape.parallel.world
    return (
        f"{_billions(model.total)} parameters, {_billions(model.active)} active{mtp}; "
        f"{flops.per_token(made.shape) / 1e9:.1f} GFLOP a token, {share / 1e12:,.0f} TFLOP a GPU "
        "and step (Megatron's count)"
    )


def _stages(made: Shaped, gpu: str | None) -> list[str]:
    """Return a line for each run of pipeline stages that hold the same, the fullest's memory."""
    totals = [one.total / memory.GIB for one in made.memory]
    capacity = GPUS[gpu].memory if gpu else max(totals)
    rows = list(_runs(made, totals))
    width = max(len(row[1]) for row in rows)
    lines = [
        f"stage {numbers:<5}{content:<{width}}  {size:>6}  {full:4.0f} GiB {_bar(full / capacity)}"
        for numbers, content, size, full in rows
    ]
    if len(lines) <= ROWS:
        return lines
    fullest = max(range(len(rows)), key=lambda row: rows[row][3])
    ends = {*range(ROWS // 2), *range(len(rows) - ROWS // 2, len(rows)), fullest}
    shown = [line for row, line in enumerate(lines) if row in ends]
    return [*shown, f"           {len(lines) - len(shown)} more: python3 -m launcher plan --all"]


def _runs(made: Shaped, totals: Sequence[float] | None) -> Iterator[tuple[str, str, str, float]]:
    """Yield each run of stages that hold the same: its numbers, content, size, most memory."""
    held = zip(made.stages, made.counts)
    for (content, size), run in groupby(
        held, key=lambda one: (stages.describe(one[0]), _billions(one[1].total))
    ):
        ranks = [stage.pipeline_rank for stage, _ in run]
        numbers = f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        yield numbers, content, size, max(totals[rank] for rank in ranks) if totals else 0.0


def _every_stage(made: Shaped) -> Iterator[str]:
    for stage, count, one in zip(made.stages, made.counts, made.memory):
        yield (
            f"stage {stage.pipeline_rank:<5}{stages.describe(stage)}; {_billions(count.dense)} "
            f"dense and {_billions(count.routed)} expert parameters; in flight "
            + ", ".join(map(str, one.in_flight))
        )
        yield f"           {one.total / memory.GIB:.1f} GiB = {_terms(one)}"


def _fullest(made: Shaped, gpu: str | None) -> str:
    """Return the fullest rank's memory by terms, and whether it fits."""
    worst = memory.worst(made.memory)
    limit = f" of {GPUS[gpu].memory:.0f} ({gpu})" if gpu else ""
    return (
        f"stage {worst.pipeline_rank} is fullest: {worst.total / memory.GIB:.1f} GiB{limit} = "
        f"{_terms(worst)} (estimate)"
    )


def _terms(rank: memory.Rank) -> str:
    sizes = [(name, getattr(rank, name) / memory.GIB) for name in MEMORY]
    return ", ".join(f"{name} {size:.1f}" for name, size in sizes if size >= 0.05)


def _published(made: Shaped, site: Site) -> list[str]:
    """Return the lines of the nearest published result, and the step time at its rate."""
    known = architectures.name(made.shape.model)
    found = projected.nearest(made, site)
    if found is None:
        return [f"published  nothing for {known or 'this model'} on {site.gpu}"] if site.gpu else []
    share = flops.iteration(made.shape) / made.shape.parallel.world
    seconds = share / 1e12 / found.tflops
    tokens = made.shape.training.global_batch * made.shape.training.sequence
    rate = tokens / made.shape.parallel.world / seconds
    unlike = "; ".join(found.differences)
    return [
        f"published  {found.tflops:,.0f} TFLOPS/GPU on {found.sizes}; at that rate {seconds:.1f} s "
        f"a step, {rate:,.0f} tokens/s/GPU",
        f"           {found.settings['software']}: {found.settings['source']}",
        *([f"           this job has {unlike}"] if unlike else []),
    ]


def _bar(share: float) -> str:
    filled = min(BAR, round(share * BAR))
    return "█" * filled + "·" * (BAR - filled) + (" over" if share > 1 else "")


def _billions(number: int) -> str:
    return f"{number / 1e9:.1f}B"
