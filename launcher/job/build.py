"""A training job is built in steps: each step takes the draft so far and returns the next one.

Nothing here reads a file, the clock or this machine: the request holds what was found there. Only
the checkpoints are looked at on the way, since where they are is the job's own answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from launcher.config import knobs, layout, model_file, releases
from launcher.config.arguments import Argument, Arguments, merge, parse, split, value
from launcher.config.layout import expand
from launcher.config.parallelism import (
    FLAG_OF,
    LAYERS_PER_CHUNK,
    LAYOUT,
    VIRTUAL,
    virtual_stages,
)
from launcher.config.settings import FIELDS, Settings, by_layer, replace
from launcher.errors import UsageError
from launcher.job import container, cpu, loading, local, sbatch, shell, smoke, training
from launcher.job.draft import Draft, Job
from launcher.job.request import Request
from launcher.plan.plan import plan
from launcher.plan.rules import Case
from launcher.secrets import check, is_secret, within

Step = Callable[[Draft, Request], Draft]


def build(request: Request) -> Job:
    """Build a job from the user's request.

    Raises UsageError for anything that the user has to correct first. What Megatron would refuse is
    no exception: it is among the findings of the job's plan.
    """
    draft = _empty(request)
    for step in STEPS:
        draft = step(draft, request)
    made = plan(_case(draft))
    return Job(**vars(loading.hold_weights(draft, made)), plan=made)


def _empty(request: Request) -> Draft:
    settings = request.settings
    return Draft(
        settings=settings,
        written={},
        command_line={},
        arguments={},
        environment={},
        program=(),
        nodes=settings.NNODES,
        tasks_per_node=settings.TASKS_PER_NODE or (4 if settings.GB200_CLUSTER else 8),
        name="",
        run_dir=Path(),
        search_path=request.environ.get("PATH", os.defpath),
        sbatch=(),
        secrets=tuple(shell.from_configs(request.environ)),
        doubts=request.doubts,
        notes=(),
        findings=(),
    )


def _release(draft: Draft, request: Request) -> Draft:
    """Take the release from the checkout in MEGATRON_PATH, where this machine can read it."""
    settings, found = draft.settings, request.release
    stated = releases.SUPPORTED[releases.index(settings.MCORE_RELEASE_VERSION)]
    if found in (None, stated):
        return draft
    if settings.origin("MCORE_RELEASE_VERSION") == "environment":
        return draft.change(
            f"MCORE_RELEASE_VERSION={stated} (environment), although MEGATRON_PATH holds {found}"
        )
    origin = f"{settings.MEGATRON_PATH}/megatron/core/package_info.py"
    return draft.change(
        f"MEGATRON_PATH holds Megatron-Core {found}; MCORE_RELEASE_VERSION was {stated}",
        settings=replace(settings, "MCORE_RELEASE_VERSION", found, origin),
    )


def _output_path(draft: Draft, request: Request) -> Draft:
    """Make OUTPUT_PATH absolute, because the processes start in another folder."""
    settings = draft.settings
    path = os.path.normpath(os.path.join(request.folder, settings.OUTPUT_PATH))
    origin = settings.origin("OUTPUT_PATH")
    return draft.change(settings=replace(settings, "OUTPUT_PATH", path, origin))


def _model(draft: Draft, request: Request) -> Draft:
    """Read the model's arguments, TRAINING_PARAMS and the command line."""
    command_line = _command_line(request.words)
    extra = parse(split(draft.settings.TRAINING_PARAMS or "", "TRAINING_PARAMS"), "TRAINING_PARAMS")
    # The YAML refers to variables, so a flag sets its variable before and after the YAML is read.
    above = merge(extra, command_line)
    settings = _adopt(draft.settings, above)
    published = model_file.arguments(request.model, settings, request.environ)
    adopted = _virtual(_adopt(settings, merge(published, above)), published, above)
    if adopted != settings:
        published = model_file.arguments(request.model, adopted, request.environ)
    settings = adopted
    written = merge(published, extra)
    return draft.change(
        settings=settings,
        written=written,
        command_line=command_line,
        arguments=merge(written, command_line),
        environment=model_file.environment(request.model, settings, request.environ),
    )


def _knobs(draft: Draft, request: Request) -> Draft:
    """Add what the performance variables mean, below the command line."""
    effects = {knob: knob(draft.settings, draft.arguments) for knob in knobs.KNOBS}
    environment = dict(draft.environment)
    for knob, effect in effects.items():
        origin = f"knob {knob.__name__}"
        environment.update({name: (text, origin) for name, text in effect.environment.items()})
    added = [effect.arguments for effect in effects.values()]
    return draft.change(
        *(note for effect in effects.values() for note in effect.notes),
        arguments=merge(draft.written, *added, draft.command_line),
        environment=environment,
    )


def _renames(draft: Draft, request: Request) -> Draft:
    """Give every flag the name that the release knows."""
    release = draft.settings.MCORE_RELEASE_VERSION
    return draft.change(arguments=releases.rename(draft.arguments, release))


def _depth(draft: Draft, request: Request) -> Draft:
    """Raise UsageError for a NUM_LAYERS that differs from the depth, which it cannot change."""
    settings = draft.settings
    actual = layout.counted_layers(settings, draft.arguments)
    if settings.origin("NUM_LAYERS") == "environment" and actual != settings.NUM_LAYERS:
        raise UsageError(
            f"NUM_LAYERS={settings.NUM_LAYERS} (environment), but the model has {actual} layers "
            "to split: --num-layers and --moe-layer-freq on the command line change the depth"
        )
    return draft


def _program(draft: Draft, request: Request) -> Draft:
    """Choose the words that start the training on a cluster; `local.fit` has its own."""
    if draft.is_local:
        return draft
    settings = draft.settings
    if container.has_container(settings) and not settings.CONTAINER_IMAGE:
        raise UsageError(
            "CONTAINER_IMAGE is not set: name the .sqsh file or image to run in "
            "(CONTAINER_RUNTIME=none runs without one)"
        )
    python, script = "python3", training.script(settings)
    if settings.GPU == "none":
        script = str(training.ENTRY)
        if not container.has_container(settings) and not settings.NODE_SETUP_PATH:
            python = str(request.machine.python)
    elif script is None:
        raise UsageError(
            "MEGATRON_PATH is not set: name the Megatron-LM checkout, as the container sees it"
        )
    bind = [settings.BINDPCIE_PATH] if settings.BINDPCIE_PATH else []
    return draft.change(program=(*bind, python, "-u", script))


def _smoke(draft: Draft, request: Request) -> Draft:
    """SMOKE=1: shrink the job to seconds and keep its structure."""
    if not draft.settings.SMOKE:
        return draft
    limit = local.smoke_ranks(request.machine) if draft.is_local else local.SMOKE_RANKS
    try:
        shrunk = smoke.shrink(draft.arguments, draft.command_line, limit)
    except ValueError as error:
        raise UsageError(f"SMOKE=1 cannot shrink this job: {error}") from None
    nodes = 2 if draft.nodes > 1 and shrunk.ranks % 2 == 0 else 1
    return draft.change(
        *shrunk.notes,
        arguments=shrunk.arguments,
        nodes=nodes,
        tasks_per_node=shrunk.ranks // nodes,
    )


def _machine(draft: Draft, request: Request) -> Draft:
    """Fit the job to what it runs on: this machine, or nodes without GPUs."""
    if draft.is_local:
        return local.fit(draft, request)
    if draft.settings.GPU == "none":
        draft = cpu.without_gpus(draft, "GPU=none")
        entry = training.entry_environment(draft.settings)
        return draft.change(environment={**draft.environment, **entry})
    return draft


def _name(draft: Draft, request: Request) -> Draft:
    """Name the job and its run directory."""
    settings, suffix = draft.settings, f".{request.number}" if request.number else ""
    run_name = settings.RUN_NAME or settings.MODEL_NAME
    parts = (settings.ACCOUNT, "moe", run_name, request.stamp)
    kind = "-smoke" if settings.SMOKE else ""
    folder = re.sub(r"[^\w.+-]+", "_", f"{run_name}{kind}-{request.stamp}{suffix}")
    return draft.change(
        settings=replace(settings, "TIMESTAMP", request.stamp, settings.origin("TIMESTAMP")),
        name="-".join(part for part in parts if part) + suffix,
        run_dir=Path(settings.OUTPUT_PATH) / "runs" / folder,
    )


def _profile(draft: Draft, request: Request) -> Draft:
    """PROFILE=nsys: put Nsight Systems before the program."""
    if draft.settings.PROFILE not in ("1", "nsys"):
        return draft
    options = (
        "nsys profile --sample=none --cpuctxsw=none -t cuda,nvtx --capture-range=cudaProfilerApi "
        "--capture-range-end=stop --cuda-graph-trace=node -f true -x true -o"
    )
    report = f"{draft.run_dir}/nsys-rank%q{{RANK}}"
    return draft.change(program=(*options.split(), report, *draft.program))


def _environment(draft: Draft, request: Request) -> Draft:
    """Let the user's environment win, and add what the cluster config sets beyond the settings."""
    environ = request.environ
    from_layers: dict[str, str] = {}
    for layer, names in by_layer(environ).items():
        from_layers.update({name: layer for name in names if name not in FIELDS})
    merged = {
        name: (environ[name], from_layers.get(name, "environment")) if environ.get(name) else entry
        for name, entry in draft.environment.items()
    }
    merged.update(
        {
            name: (environ[name], layer)
            for name, layer in from_layers.items()
            if not is_secret(name, environ[name])
        }
    )
    merged.update(shell.passed_on(draft, environ))
    merged["WANDB_MODE"] = (environ.get("WANDB_MODE", "disabled"), "setting")
    notes = []
    if draft.secrets:
        notes.append(
            f"{', '.join(draft.secrets)} reaches the training processes by the environment, and "
            "stands in no file: `sbatch job.sh` by hand needs it set"
        )
    return draft.change(*notes, environment=merged)


def _secrets(draft: Draft, request: Request) -> Draft:
    """Raise UsageError where a secret's value is part of what would be printed and written."""
    texts = {
        "the job script": "\n".join(
            (draft.name, str(draft.run_dir), *draft.program, *draft.sbatch)
        ),
        **{f"{one.flag} ({one.origin})": " ".join(one.values) for one in draft.arguments.values()},
        **{f"{name} ({origin})": text for name, (text, origin) in draft.environment.items()},
    }
    if within("\n".join(texts.values()), request.environ):
        for where, text in texts.items():
            check(text, request.environ, where)
    return draft


def _loading(draft: Draft, request: Request) -> Draft:
    """Decide where the first start begins, and object to what it would overwrite."""
    return loading.decide(draft)


def _sbatch(draft: Draft, request: Request) -> Draft:
    """Choose sbatch's options, arrange that the job saves in time, and tell what it inherits."""
    if draft.is_local:
        return draft
    return sbatch.arrange(shell.compare(draft, request.environ))


STEPS: tuple[Step, ...] = (
    _release,
    _output_path,
    _model,
    _knobs,
    _renames,
    _depth,
    _program,
    _smoke,
    _machine,
    _name,
    _profile,
    _environment,
    _loading,
    _sbatch,
    _secrets,
)


def _command_line(words: Sequence[str]) -> Arguments:
    """Read the command line. A lone `--` separates a recipe's own flags from the user's."""
    if "--" not in words:
        return parse(words, "command line")
    end = list(words).index("--")
    return merge(parse(words[:end], "recipe"), parse(words[end + 1 :], "command line"))


def _adopt(settings: Settings, given: Arguments) -> Settings:
    for name, flag in FLAG_OF.items():
        text = value(given, flag)
        if text is not None and text != str(getattr(settings, name)):
            settings = replace(settings, name, text, f"{flag}, {given[flag].origin}")
    return settings


def _virtual(settings: Settings, published: Arguments, above: Arguments) -> Settings:
    """Set VPP to what a layout, a flag or LAYERS_PER_VP results in, so that names tell the truth.

    Raises UsageError where the environment's VPP differs.
    """
    given = merge(published, above)
    flag = next((flag for flag in (LAYOUT, LAYERS_PER_CHUNK) if flag in given), None)
    origin = f"{flag}, {given[flag].origin}" if flag else "LAYERS_PER_VP"
    if not flag:
        if not settings.LAYERS_PER_VP or VIRTUAL in given:
            return settings
        words = (str(settings.LAYERS_PER_VP),)
        given = {**given, LAYERS_PER_CHUNK: Argument(LAYERS_PER_CHUNK, words, origin)}
    try:
        chunks = len(expand(value(given, LAYOUT) or ""))
        runs = virtual_stages(given, settings.PP)
    except ValueError:
        return settings  # the plan has an error for it
    if flag == LAYOUT and chunks % settings.PP:
        return settings
    if runs == settings.VPP:
        return settings
    if settings.origin("VPP") == "environment":
        raise UsageError(
            f"VPP={settings.VPP} (environment), but {origin} makes {runs} virtual "
            "stages on each pipeline rank: drop one of them"
        )
    return replace(settings, "VPP", str(runs), origin)


def _case(draft: Draft) -> Case:
    """Return the job as the plan's rules see it."""
    settings = draft.settings
    theirs = bool(settings.MEGATRON_PATH or settings.TRAINING_SCRIPT_PATH)
    return Case(
        arguments=draft.arguments,
        world_size=draft.world_size,
        release=releases.SUPPORTED[releases.index(settings.MCORE_RELEASE_VERSION)],
        environment=draft.environment,
        gpu=None if draft.is_local else settings.GPU,
        tasks_per_node=draft.tasks_per_node,
        segment=settings.SEGMENT,
        own_training=draft.is_local and not theirs,
    )
