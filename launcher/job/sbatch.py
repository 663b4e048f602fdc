"""What makes a training command a Slurm batch job: sbatch's options, and later starts."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.config import releases
from launcher.config.arguments import Argument, Arguments, split, value
from launcher.config.settings import Settings
from launcher.errors import UsageError
from launcher.job import container, loading
from launcher.job.draft import Draft
from launcher.plan import Finding
from launcher.records import dataclass

DOMAIN_NODES = 18  # of 4 GPUs each, in one NVL72 rack
SAVING_SIGNAL = "URG"
SAVING_SECONDS = 300  # before the time limit, to finish an iteration and write a checkpoint
OWN = {
    "nodes": "NNODES",
    "ntasks-per-node": "TASKS_PER_NODE",
    "account": "ACCOUNT",
    "partition": "PARTITION",
    "time": "RUN_TIME",
    "job-name": "RUN_NAME",
    "output": "OUTPUT_PATH",
    "segment": "SEGMENT",
}
REFUSED = ("array", "ntasks", "wrap", "parsable", "test-only", "wait", "error", "export")
_OPPOSITES = {"no-requeue": "requeue"}
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Starts:
    """A command's arguments, and those that differ between a run's first start and later ones."""

    common: Arguments
    first: Arguments
    later: Arguments


def arrange(draft: Draft) -> Draft:
    """Return a draft with sbatch's options, its arguments in the script's order.

    Raises UsageError for options that cannot be.
    """
    draft = draft.change(arguments=_arguments(draft))
    draft = _segment(_options(draft))
    unseen = [Finding("error", line, "container") for line in container.unseen(draft.settings)]
    return draft.change(findings=(*draft.findings, *unseen))


def _arguments(draft: Draft) -> Arguments:
    """Return the arguments of a first start, which Megatron ends by a checkpoint in time.

    Where the job saves at all, Megatron is to save and exit when the time limit comes near. The
    signal for it is one that does nothing to other processes: Slurm sends it to all of a task's,
    and the process that Megatron writes checkpoints through would not survive SIGTERM.
    """
    arguments = draft.arguments
    if "--save" in arguments and "--exit-signal-handler" not in arguments:
        asked = {"--exit-signal-handler": (), "--exit-signal": (f"SIG{SAVING_SIGNAL}",)}
        release = releases.index(draft.settings.MCORE_RELEASE_VERSION)
        if release < releases.index("0.16"):  # knows SIGTERM only
            del asked["--exit-signal"]
        origin = "before Slurm's time limit"
        added = {flag: Argument(flag, values, origin) for flag, values in asked.items()}
        arguments = {**added, **arguments}
    split = starts(arguments)
    return {**split.common, **split.first}


def _segment(draft: Draft) -> Draft:
    """Hold SEGMENT against the NVLink domains of an NVL72 rack."""
    settings, nodes = draft.settings, draft.nodes
    segment = settings.SEGMENT
    setting = f"SEGMENT={segment} ({settings.origin('SEGMENT')})"
    if draft.settings.SMOKE:
        return draft
    if not settings.GB200_CLUSTER:
        notes = [f"{setting} has no effect: GB200_CLUSTER is not 1"] if segment else []
        return draft.change(*notes)
    if segment is None:
        if nodes == 1:
            return draft
        return draft.change(
            f"SEGMENT is not set: Slurm may spread the {nodes} nodes over several NVLink domains"
        )
    if segment > DOMAIN_NODES:
        line = f"{setting}: an NVL72 domain has {DOMAIN_NODES} nodes"
    elif nodes % segment:
        line = f"{setting} does not divide NNODES={nodes}, which Slurm asks for"
    else:
        return draft
    return draft.change(findings=(*draft.findings, Finding("error", line, "sbatch")))


def _options(draft: Draft) -> Draft:
    settings, arguments = draft.settings, draft.arguments
    logs = str(Path(settings.OUTPUT_PATH) / "slurm_logs").replace("%", "%%")
    ours = {
        "nodes": str(draft.nodes),
        "ntasks-per-node": str(draft.tasks_per_node),
        "account": settings.ACCOUNT,
        "partition": settings.PARTITION,
        "time": settings.RUN_TIME,
        "job-name": draft.name,
        "dependency": "singleton",
        "output": f"{logs}/%j.log",
        "segment": str(settings.SEGMENT) if settings.GB200_CLUSTER and settings.SEGMENT else "",
    }
    chosen: dict[str, str | None] = {option: given for option, given in ours.items() if given}
    # A switch is None. Where a node fails, the job starts again, and its log goes on.
    chosen.update({"exclusive": None, "requeue": None, "open-mode": "append"})
    if "--exit-signal-handler" in arguments:
        chosen["signal"] = f"{_exit_signal(arguments)}@{_saving_seconds(settings.RUN_TIME)}"
    notes = []
    for option, given in _extra(settings).items():
        replaced = _OPPOSITES.get(option, option)
        if option == "dependency":
            given = f"singleton,{given}"
        elif replaced in chosen:
            notes.append(
                f"SBATCH_OPTIONS: {_option(option, given)} replaces "
                f"{_option(replaced, chosen.pop(replaced))}"
            )
        chosen[option] = given
    options = tuple(_option(option, given) for option, given in chosen.items())
    return draft.change(*notes, sbatch=options)


def starts(arguments: Arguments) -> Starts:
    """Split a command into what every start has and what only the first, or later ones, have."""
    save = value(arguments, "--save")
    if save is None:
        return Starts(arguments, {}, {})
    later = {"--load": save}
    # Nobody can read what a checkpoint does not hold.
    for kind in ("optim", "rng"):
        if f"--no-save-{kind}" in arguments:
            later[f"--no-load-{kind}"] = ""
    return Starts(
        common={flag: each for flag, each in arguments.items() if flag not in loading.FIRST},
        first={flag: each for flag, each in arguments.items() if flag in loading.FIRST},
        later={
            flag: Argument(flag, (given,) if given else (), "a later start")
            for flag, given in later.items()
        },
    )


def chosen(draft: Draft, option: str) -> str | None:
    """Return the value that one of sbatch's options has in SBATCH_OPTIONS; None without it."""
    return _extra(draft.settings).get(option)


def for_srun(draft: Draft) -> list[tuple[str, str | None]]:
    """Return the options of SBATCH_OPTIONS that srun does not inherit from the job."""
    extra = _extra(draft.settings)
    return [(f"--{name}", extra[name]) for name in ("cpus-per-task",) if name in extra]


def _extra(settings: Settings) -> dict[str, str | None]:
    """Read SBATCH_OPTIONS. Raises UsageError."""
    origin = f"SBATCH_OPTIONS ({settings.origin('SBATCH_OPTIONS')})"
    found: dict[str, str | None] = {}
    for word in split(settings.SBATCH_OPTIONS or "", origin):
        match = _OPTION.fullmatch(word)
        if not match:
            raise UsageError(f"{origin}: {word!r} is not --option or --option=value")
        if match[1] in OWN:
            raise UsageError(f"{origin}: --{match[1]} is set by {OWN[match[1]]}")
        if match[1] in REFUSED:
            raise UsageError(f"{origin}: --{match[1]} would change what the job script relies on")
        found[match[1]] = match[2]
    return found


def _option(name: str, given: str | None) -> str:
    return f"--{name}" if given is None else f"--{name}={_value(name, given)}"


def _value(name: str, text: str) -> str:
    if re.search(r"[\x00-\x1f]", text):
        raise UsageError(f"{text!r} cannot be sbatch's --{name}: Slurm reads it from one line")
    if re.fullmatch(r"[\w@%+:./=,-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f"'{text}'" if "'" not in text else f'"{escaped}"'


def _exit_signal(arguments: Arguments) -> str:
    return (value(arguments, "--exit-signal") or "SIGTERM").removeprefix("SIG")


def _saving_seconds(limit: str) -> int:
    """Return how long before a time limit to save; a quarter of a short one, at most."""
    return min(SAVING_SECONDS, seconds(limit) // 4)


def seconds(limit: str) -> int:
    """Return a Slurm time limit in seconds: minutes, M:S, H:M:S or D-H[:M[:S]]."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, secs = parts
    else:
        hours, (minutes, secs) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs
