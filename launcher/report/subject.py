"""The subject of a report: a run directory or a bare log, with everything known of its job."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.config import releases
from launcher.config.arguments import Argument, Arguments, value
from launcher.config.gpus import GPUS
from launcher.errors import UsageError
from launcher.plan import architectures, flags
from launcher.plan.plan import Shaped, Site, plan
from launcher.plan.projection import calibration
from launcher.plan.rules import Case
from launcher.plan.shape import Shape
from launcher.plan.stages import Stage
from launcher.report import training_log
from launcher.report.last_words import last_words
from launcher.report.training_log import Log

DUMP = "the log's argument dump"


@dataclass(frozen=True)
class Given:
    """What the command line adds to a log that lacks it."""

    gpus: int | None = None
    gpu: str | None = None
    model: str | None = None
    sequence: int | None = None


@dataclass(frozen=True)
class Subject:
    """One run, with everything that is known of it."""

    path: Path
    log: Log
    arguments: Arguments = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)  # plan.json
    model: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    sequence: int | None = None  # tokens
    planned: Shaped | None = None  # None where the arguments do not determine a job
    tasks_per_node: int = 8
    smoke: bool = False
    status: int | None = None  # the exit status, where it is known

    @property
    def shape(self) -> Shape | None:
        """Its sizes."""
        return self.planned.shape if self.planned else None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its pipeline stages."""
        return self.planned.stages if self.planned else ()

    @property
    def site(self) -> Site:
        """Where it ran, as the plan sees it."""
        return Site(
            self.model or "",
            max(1, (self.gpus or 1) // self.tasks_per_node),
            self.tasks_per_node,
            self.gpu,
            bound=bool(self.settings.get("BINDPCIE_PATH")),
            calibration=Path(self.settings["OUTPUT_PATH"]) / calibration.FILE
            if "OUTPUT_PATH" in self.settings
            else None,
        )

    @property
    def name(self) -> str:
        """What the run is called in a table."""
        return self.path.name if self.path.is_dir() else self.path.stem

    def on(self, flag: str) -> bool:
        """Say whether a flag was given."""
        return flag in self.arguments

    def value(self, flag: str) -> str | None:
        """Return a flag's single value."""
        return value(self.arguments, flag)


def read(path: Path, given: Given | None = None) -> Subject:
    """Read a run directory or a training log. Raises UsageError where the path is neither."""
    given = given or Given()
    if path.is_dir():
        return _run(path, given)
    if not path.exists():
        raise UsageError(f"{path}: there is no such run directory or log")
    log = training_log.read(path)
    says_nothing = log == training_log.Log() and path.stat().st_size > 0  # an empty log may grow
    if says_nothing and "Traceback" not in last_words(path):
        raise UsageError(f"{path} is no training log: no line of it is one of a training run's")
    return _completed(Subject(path, log), _dumped(log), given)


def _run(path: Path, given: Given) -> Subject:
    logs = sorted(path.glob("log.[0-9]*"), key=lambda one: int(one.name[4:] or 0))
    reader = training_log.Reader()
    if not logs and not (path / "log").exists():
        raise UsageError(f"{path} has no log: the job has not started, or it is no run directory")
    for one in logs or [path / "log"]:
        reader.read(one)
    reader.finish()
    written = _yaml(path / "arguments.yaml").get("arguments")
    arguments = {
        flag: Argument(flag, tuple(map(str, one.get("values", ()))), str(one.get("origin", "")))
        for flag, one in (written if isinstance(written, dict) else {}).items()
        if isinstance(one, dict)
    }
    environment = _yaml(path / "environment.yaml")
    settings = _values(environment.get("settings"))
    submission = _yaml(path / "submission.yaml")
    status = submission.get("status")
    subject = Subject(
        path=path,
        log=reader.log,
        environment=_values(environment.get("environment")),
        settings=settings,
        versions=_flat(_yaml(path / "versions.yaml")),
        plan=_json(path / "plan.json"),
        smoke=settings.get("SMOKE") in ("True", "1", "true"),
        status=status if isinstance(status, int) else None,
    )
    return _completed(subject, arguments or _dumped(reader.log), given)


def _completed(subject: Subject, arguments: Arguments, given: Given) -> Subject:
    """Return a subject with everything that follows from its parts."""
    log, preview = subject.log, subject.plan
    world = given.gpus or log.world or _number(log.arguments.get("world_size"))
    if world is None and preview:
        world = _product(preview.get("nodes"), preview.get("tasks_per_node"))
    planned = preview.get("gpu")
    gpu: str | None = given.gpu or (planned.get("name") if isinstance(planned, dict) else None)
    tasks = preview.get("tasks_per_node")
    if not isinstance(tasks, int) or tasks < 1:
        tasks = GPUS[gpu].tasks_per_node if gpu and gpu in GPUS else 8
    made = None
    if arguments and world:
        environment = {name: (text, "") for name, text in subject.environment.items()}
        case = Case(arguments, world, _release(preview), environment, gpu, tasks)
        made = plan(case).shaped
        if made:  # it ran, whatever the plan has against it
            made = dataclasses.replace(made, refused=False)
    model = given.model or preview.get("model") or (made and architectures.name(made.shape.model))
    sequence = given.sequence or _number(value(arguments, "--seq-length"))
    return Subject(
        **{
            **vars(subject),
            "arguments": arguments,
            "model": model or log.arguments.get("wandb_exp_name"),
            "gpu": gpu,
            "gpus": world,
            "tasks_per_node": tasks,
            "sequence": sequence or _number(log.arguments.get("seq_length")),
            "planned": made,
        }
    )


def _release(preview: Mapping[str, Any]) -> str:
    """Return the release that a plan names; the newest where it names none that is known."""
    try:
        return releases.SUPPORTED[releases.index(str(preview.get("megatron_core")))]
    except UsageError:
        return releases.SUPPORTED[-1]


def _dumped(log: Log) -> dict[str, Argument]:
    """Return the arguments that a log's dump stands for, under the newest release's flags.

    The dump has every setting with its value. What is not the default counts: a default is no flag
    that somebody gave.
    """
    if not log.arguments:
        return {}
    found: dict[str, Argument] = {}
    catalogue = flags.load(flags.SUPPORTED[-1])
    for flag in catalogue.entries:
        known = catalogue.get(flag)
        if known is None or known.dest not in log.arguments or "alias" in catalogue.entries[flag]:
            continue
        text = log.arguments[known.dest]
        if flag in _COPIES or text in ("None", "[]", "", str(known.default)):
            continue
        if known.switch is not None:
            if text == str(known.switch):
                found[flag] = Argument(flag, (), DUMP)
            continue
        words = _words(text, known.nargs is not None)
        if words != (str(known.default),):
            found[flag] = Argument(flag, words, DUMP)
    return found


# What Megatron writes the depth and the sequence into, too (validate_args).
_COPIES = {"--encoder-num-layers", "--encoder-seq-length"}
_TYPES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def _words(text: str, several: bool) -> tuple[str, ...]:
    if several and text.startswith("["):
        try:
            return tuple(str(word) for word in ast.literal_eval(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return tuple(re.findall(r"[\w.-]+", text))
    if re.fullmatch(r"\[[01](, [01])*\]", text):  # a layer pattern
        return (text.replace(" ", ""),)
    member = re.fullmatch(r"[A-Z]\w*\.([A-Za-z]\w*)", text)  # of an enumeration: AttnBackend.auto
    return (member[1] if member else _TYPES.get(text, text),)


def _values(content: object) -> dict[str, str]:
    if not isinstance(content, dict):
        return {}
    return {
        str(name): str(one["value"])
        for name, one in content.items()
        if isinstance(one, dict) and one.get("value") is not None
    }


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, one in content.items():
        if isinstance(one, dict):
            found.update(_flat(one, f"{before}{name} "))
        elif one is not None:
            found[f"{before}{name}"] = str(one)
    return found


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return content if isinstance(content, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,12}", text) else None


def _product(*numbers: object) -> int | None:
    made = 1
    for number in numbers:
        if not isinstance(number, int):
            return None
        made *= number
    return made
