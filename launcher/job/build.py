"""One training job, from settings and a command line to the text of its script. Pure functions."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from launcher.config import knobs, model_file, releases
from launcher.config.arguments import Arguments, argv, merge, parse, quote, split, value
from launcher.config.settings import FIELDS, LAYER_ORIGINS, SECRETS, Settings, replace
from launcher.errors import UsageError
from launcher.job import container, local, sbatch, smoke
from launcher.plan.flags import release_of
from launcher.plan.rules import Case
from launcher.plan.sheet import Plan, Site, plan

# A flag given outright speaks for its variable too, so that everything computed from it agrees.
FLAG_OF = {
    "TP": "--tensor-model-parallel-size",
    "PP": "--pipeline-model-parallel-size",
    "EP": "--expert-model-parallel-size",
    "CP": "--context-parallel-size",
    "VPP": "--num-virtual-stages-per-pipeline-rank",
    "MBS": "--micro-batch-size",
    "GBS": "--global-batch-size",
    "SEQ_LEN": "--seq-length",
}
PLACEHOLDER = re.compile(r"YOUR_[A-Z]+|your_own_[a-z]+")


@dataclass(frozen=True)
class Job:
    """What runs: everything that the script, the preview and the run directory are made from."""

    settings: Settings
    arguments: Arguments
    environment: Mapping[str, tuple[str, str]]  # name → (value, origin)
    program: tuple[str, ...]  # the words before Megatron's arguments
    name: str
    run_dir: Path
    nodes: int
    tasks_per_node: int
    notes: tuple[str, ...]  # what the user should know
    objections: tuple[str, ...]  # why it cannot work
    plan: Plan
    sbatch: tuple[str, ...]  # options of the job script

    @property
    def world_size(self) -> int:
        """Training processes, one a GPU."""
        return self.nodes * self.tasks_per_node

    @property
    def site(self) -> Site:
        """Where it runs, as the plan sees it; this machine's GPUs are unknown to the plan."""
        gpu = self.settings.GPU
        if local.is_local(self.settings) or gpu == "none":
            gpu = None
        return Site(self.settings.MODEL_NAME, self.nodes, self.tasks_per_node, gpu)

    @property
    def command(self) -> list[str]:
        """The words that each training process (or torchrun, locally) is started with."""
        return [*self.program, *argv(self.arguments)]


def build(
    settings: Settings, words: Sequence[str], environ: Mapping[str, str], suffix: str = ""
) -> Job:
    """Put a job together from the settings, the command line and the environment.

    `suffix` tells runs of the same second apart. Raises UsageError for anything the user has to
    correct first; what Megatron would refuse is returned as objections instead.
    """
    settings, notes = _release(settings)
    # Training processes may start elsewhere, so a relative path would mean another place to them.
    settings = dataclasses.replace(settings, OUTPUT_PATH=os.path.abspath(settings.OUTPUT_PATH))
    zoo_model = model_file.load(model_file.find(settings), Path(settings.WORKSPACE))
    command_line = _command_line(words)
    given = parse(split(settings.TRAINING_PARAMS or "", "TRAINING_PARAMS"), "TRAINING_PARAMS")
    settings = _adopt(settings, merge(given, command_line))
    from_model = model_file.arguments(zoo_model, settings, environ)
    present = merge(from_model, given, command_line)
    settings = _adopt(settings, present)

    effects = [knob(settings, present) for knob in knobs.KNOBS]
    arguments = merge(from_model, given, *(effect.arguments for effect in effects), command_line)
    arguments = releases.rename(arguments, settings.MCORE_RELEASE_VERSION)
    environment = model_file.environment(zoo_model, settings, environ)
    for knob, effect in zip(knobs.KNOBS, effects):
        environment.update(
            {name: (text, f"knob {knob.__name__}") for name, text in effect.environment.items()}
        )
    notes += [note for effect in effects for note in effect.notes]

    _check_depth(settings, arguments)
    nodes = settings.NNODES
    tasks_per_node = settings.TASKS_PER_NODE or (4 if settings.GB200_CLUSTER else 8)
    program = _program(settings)
    if settings.SMOKE:
        try:
            shrunk = smoke.shrink(arguments, command_line, local.ranks_at_most(settings))
        except ValueError as error:
            raise UsageError(f"SMOKE=1 cannot shrink this job: {error}") from None
        arguments = shrunk.arguments
        nodes = 2 if nodes > 1 and shrunk.ranks % 2 == 0 else 1
        tasks_per_node = shrunk.ranks // nodes
        notes = [*(note for note in notes if "mock data" not in note), *shrunk.notes]
    if local.is_local(settings):
        machine = local.fit(settings, arguments, environment)
        arguments, environment = machine.arguments, machine.environment
        nodes, tasks_per_node, program = 1, machine.ranks, machine.program
        notes += machine.notes
    elif settings.GPU == "none":
        arguments, environment, replaced = local.on_the_cpu(settings, arguments, environment)
        environment = {**environment, **local.entry_environment(settings)}
        notes += replaced

    stamp = settings.TIMESTAMP or time.strftime("%y%m%d_%H%M%S")
    run_name = settings.RUN_NAME or settings.MODEL_NAME
    name = "-".join(part for part in (settings.ACCOUNT, "moe", run_name, stamp) if part) + suffix
    folder = re.sub(
        r"[^\w.+-]+", "_", f"{run_name}{'-smoke' if settings.SMOKE else ''}-{stamp}{suffix}"
    )
    run_dir = Path(settings.OUTPUT_PATH) / "runs" / folder
    if settings.PROFILE in ("1", "nsys"):
        program = (*_nsys(run_dir), *program)
    environment = _outranked(environment, environ)
    options: list[str] = []
    if not local.is_local(settings):
        arguments = sbatch.arranged(arguments, settings.MCORE_RELEASE_VERSION)
        options, said = sbatch.options(settings, arguments, nodes, tasks_per_node, name)
        notes += [*said, *container.unseen(settings)]
    planned = plan(_case(settings, arguments, environment, nodes, tasks_per_node))
    errors = [finding.message for finding in planned.findings if finding.severity == "error"]
    return Job(
        settings=settings,
        arguments=arguments,
        environment=environment,
        program=program,
        name=name,
        run_dir=run_dir,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        notes=tuple(notes),
        objections=tuple(errors),
        plan=planned,
        sbatch=tuple(options),
    )


def render(job: Job) -> str:
    """Return the job script, the same text for the preview and the submission.

    Raises UsageError when a value cannot be part of it.
    """
    settings = job.settings
    shared = {
        "title": _title(job),
        "environment": [(name, text) for name, (text, _) in sorted(job.environment.items())],
    }
    if local.is_local(settings):
        lines = _lines(job.program, job.arguments)
        return _template("local.sh.j2").render(command_lines=lines, **shared)
    starts = sbatch.starts(job.arguments)
    return _template("slurm.sh.j2").render(
        settings=settings,
        sbatch=job.sbatch,
        command_lines=_lines(job.program, starts.common),
        first_lines=_lines((), starts.first),
        later_lines=_lines((), starts.later),
        save=value(job.arguments, "--save"),
        srun_options=container.srun_options(settings),
        prefix=container.prefix(settings),
        run_dir=str(job.run_dir),
        **shared,
    )


def check_secrets(text: str, environ: Mapping[str, str]) -> None:
    """Raise UsageError when the text of a script holds the value of a secret."""
    for name in SECRETS:
        secret = environ.get(name, "")
        if len(secret) >= 8 and secret in text:
            raise UsageError(
                f"the value of {name} would become part of the job script; "
                "keep it in the environment only"
            )


def placeholders(job: Job) -> list[str]:
    """Return a line for each config that still holds the template's YOUR_…, with the variables."""
    found: dict[str, list[str]] = {}
    for name in FIELDS:
        if PLACEHOLDER.search(str(getattr(job.settings, name) or "")):
            found.setdefault(job.settings.origin(name), []).append(name)
    return [
        f"{origin} still has placeholders for {', '.join(names)}" for origin, names in found.items()
    ]


def _release(settings: Settings) -> tuple[Settings, list[str]]:
    """Take the release from the checkout in MEGATRON_PATH, where it is here and tells one."""
    said = releases.SUPPORTED[releases.index(settings.MCORE_RELEASE_VERSION)]
    found = release_of(Path(settings.MEGATRON_PATH)) if settings.MEGATRON_PATH else None
    if found in (None, said):
        return settings, []
    if settings.origin("MCORE_RELEASE_VERSION") == "environment":
        return settings, [
            f"MCORE_RELEASE_VERSION={said} (environment), although MEGATRON_PATH holds {found}"
        ]
    origin = f"{settings.MEGATRON_PATH}/megatron/core/package_info.py"
    return replace(settings, "MCORE_RELEASE_VERSION", found, origin), [
        f"MEGATRON_PATH holds Megatron-Core {found}; MCORE_RELEASE_VERSION was {said}"
    ]


def _command_line(words: Sequence[str]) -> Arguments:
    """Read the command line: a recipe's own flags stand before a lone `--`, the user's after it."""
    if "--" not in words:
        return parse(words, "command line")
    end = list(words).index("--")
    return merge(parse(words[:end], "recipe"), parse(words[end + 1 :], "command line"))


def _adopt(settings: Settings, arguments: Arguments) -> Settings:
    for name, flag in FLAG_OF.items():
        text = value(arguments, flag)
        if text is not None and text != str(getattr(settings, name)):
            settings = replace(settings, name, text, f"{flag}, {arguments[flag].origin}")
    return settings


def _program(settings: Settings) -> tuple[str, ...]:
    """Return the words that start the training on a cluster; `local` has its own."""
    if local.is_local(settings):
        return ()
    if container.has_container(settings) and not settings.CONTAINER_IMAGE:
        raise UsageError(
            "CONTAINER_IMAGE is not set: the .sqsh file or image to run in "
            "(CONTAINER_RUNTIME=none runs without one)"
        )
    bind = [settings.BINDPCIE_PATH] if settings.BINDPCIE_PATH else []
    python, script = "python3", local.training_script(settings)
    if settings.GPU == "none":
        script = str(local.ENTRY)
        if not container.has_container(settings) and not settings.NODE_SETUP_PATH:
            python = str(local.training_python(settings)[0])
    elif script is None:
        raise UsageError(
            "MEGATRON_PATH is not set: the Megatron-LM checkout, as the container sees it"
        )
    return (*bind, python, "-u", script)


def _nsys(run_dir: Path) -> tuple[str, ...]:
    options = (
        "nsys profile --sample=none --cpuctxsw=none -t cuda,nvtx --capture-range=cudaProfilerApi"
    )
    options += " --capture-range-end=stop --cuda-graph-trace=node -f true -x true -o"
    return (*options.split(), f"{run_dir}/nsys-rank%q{{RANK}}")


def _outranked(
    environment: Mapping[str, tuple[str, str]], environ: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Let the user's environment win, and add what the cluster config sets beyond the settings."""
    from_layers: dict[str, str] = {}
    for line in environ.get(LAYER_ORIGINS, "").splitlines():
        layer, _, names = line.rpartition(":")
        from_layers.update({name: layer for name in names.split() if name not in FIELDS})
    merged = {
        name: (environ[name], from_layers.get(name, "environment")) if environ.get(name) else entry
        for name, entry in environment.items()
    }
    merged.update(
        {name: (environ[name], layer) for name, layer in from_layers.items() if name not in SECRETS}
    )
    merged["WANDB_MODE"] = (environ.get("WANDB_MODE", "disabled"), "setting")
    return merged


def _case(
    settings: Settings,
    arguments: Arguments,
    environment: Mapping[str, tuple[str, str]],
    nodes: int,
    tasks_per_node: int,
) -> Case:
    """Return the job as the plan's rules see it."""
    here = local.is_local(settings)
    theirs = bool(settings.MEGATRON_PATH or settings.TRAINING_SCRIPT_PATH)
    return Case(
        arguments=arguments,
        world_size=nodes * tasks_per_node,
        release=releases.SUPPORTED[releases.index(settings.MCORE_RELEASE_VERSION)],
        environment=environment,
        gpu=None if here else settings.GPU,
        tasks_per_node=tasks_per_node,
        segment=settings.SEGMENT,
        own_training=here and not theirs,
    )


def _check_depth(settings: Settings, arguments: Arguments) -> None:
    """Raise UsageError where NUM_LAYERS is meant to change a depth that it does not change."""
    actual = knobs.layout.counted_layers(settings, arguments)
    if settings.origin("NUM_LAYERS") == "environment" and actual != settings.NUM_LAYERS:
        raise UsageError(
            f"NUM_LAYERS={settings.NUM_LAYERS} (environment), but the model has {actual} layers "
            "to split: --num-layers and --moe-layer-freq on the command line change the depth"
        )


def _title(job: Job) -> str:
    settings = job.settings
    sizes = " ".join(
        f"{name}{value(job.arguments, flag) or 1}" for name, flag in list(FLAG_OF.items())[:4]
    )
    name = f"{settings.MODEL_NAME}{' (smoke)' if settings.SMOKE else ''}"
    words = f"{name}: {job.world_size} ranks, {sizes}"
    return re.sub(r"[^\x20-\x7e]", "?", words)


def _lines(program: Sequence[str], arguments: Arguments) -> list[str]:
    """Return a command as lines of a Bash array, one a flag."""
    lines = [list(program), *(argument.words() for argument in arguments.values())]
    return [" ".join(quote(word) for word in line) for line in lines if line]


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Bash; every value passes through `quote`
    )
    environment.filters["quote"] = quote
    return environment.get_template(name)
