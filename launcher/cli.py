"""The commands of `moe-zoo`, which is `python3 -m launcher`. Each imports only what it needs."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Callable

from launcher import ROOT, terminal
from launcher.desk import commands as desk
from launcher.errors import UsageError, did_you_mean
from launcher.records import dataclass

if TYPE_CHECKING:
    from launcher.job.draft import Job
    from launcher.job.request import Request

HELP = ("-h", "--help")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def main(words: Sequence[str]) -> int:
    """Run one command, return its exit status; a UsageError is one line on stderr and status 1."""
    with terminal.prepared(os.environ):
        try:
            return _run(_take_variables(words))
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            # The reader has gone, as in `… | head`, and that is no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            return 130


def _take_variables(words: Sequence[str]) -> list[str]:
    """Return the words without NAME=value and --dry-run, which become variables.

    Where a command hands words to Megatron, a value of a flag may look like NAME=value, and stays.
    """
    left: list[str] = []
    flags = False
    for place, word in enumerate(words):
        assigned = _ASSIGNMENT.fullmatch(word)
        if word == "--dry-run":
            os.environ["DRY_RUN"] = "1"
        elif assigned and not flags:
            if "\0" in word:
                raise UsageError(f"{assigned[1]} holds a NUL character, which no variable can")
            os.environ[assigned[1]] = assigned[2]
        elif word == "--":
            return [*left, *words[place:]]
        else:
            left.append(word)
            for_megatron = left[0] in COMMANDS and _FLAGS in COMMANDS[left[0]].usage
            flags = flags or (for_megatron and word.startswith("-"))
    return left


def _run(words: Sequence[str]) -> int:
    name, *rest = words or ["help"]
    if name in HELP:
        name = "help"
    if name == "--version":
        name = "version"
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UsageError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}.{hint}")
    if any(word in HELP for word in rest):
        name, rest = "help", [name]
    return COMMANDS[name].run(rest)


@dataclass(frozen=True)
class Command:
    """One command; the first line of its function's docstring is its summary."""

    run: Callable[[Sequence[str]], int]
    usage: str  # the words after its name
    examples: tuple[str, ...] = ()

    @property
    def help(self) -> tuple[str, str]:
        """The first line of its help, and the rest."""
        first, _, rest = (self.run.__doc__ or "").partition("\n")
        return first, "\n".join(line.strip() for line in rest.strip().splitlines())


def _submit(words: Sequence[str]) -> int:
    """Submit the job, or preview it with --dry-run.

    The same as `bash sbatch_benchmarking.sh`; --dry-run is the same as DRY_RUN=1. MODEL names the
    model, and CLUSTER the place where it runs. Further variables change the job, and flags go to
    Megatron as they are.
    """
    read = _request("submit", words)
    if not read.settings.DRY_RUN:
        from launcher.run import start  # a preview does without

        return start.start(read)
    from launcher import secrets
    from launcher.job import verification
    from launcher.job.build import build
    from launcher.job.script import render
    from launcher.job.summary import tell

    job = build(read)
    script = render(job)
    secrets.check(script, os.environ, "the job script")
    tell(job, verification.wanted(job))
    print(f"=== DRY RUN - SLURM Job Script ===\n{script}=== End of DRY RUN ===")
    print(
        "=== Full Training Command ===",
        shlex.join(job.command),
        "=== End of Full Training Command ===",
        sep="\n",
    )
    return 0


def _sweep(words: Sequence[str]) -> int:
    """Submit every point of a YAML grid once, or plan them with --dry-run.

    FILE is the grid (design_docs/sweeps.md); - reads it from the standard input, to be planned. The
    same command continues a sweep, and shows its results, for tools with --format. WAIT=1 stays
    until the last job has ended.
    """
    from launcher.sweep import sweep

    return sweep.sweep(words, os.environ)


def _plan(words: Sequence[str]) -> int:
    """Print what the job is, whether it can work, and how long a step takes.

    The exit status is 1 where it cannot work. --all shows every stage. PLAN_FORMAT=json prints the
    plan for tools, and VERIFY=1 asks Megatron itself too.
    """
    _own_options("plan", words, ("--all",))
    given = [word for word in words if word != "--all"]
    read = _request("plan", words, given)
    from launcher.job import verification
    from launcher.job.build import build
    from launcher.job.summary import show
    from launcher.plan.plan import too_full

    job = build(read)
    opinion = verification.wanted(job)
    show(job, opinion, sys.stdout, everything=len(given) < len(words))
    shaped = job.plan.shaped
    if job.settings.PLAN_FORMAT != "json" and shaped and too_full(shaped, job.site):
        from launcher import tune  # a job that fits does without

        print(f"  fits: {tune.nearby(read, job) or 'nothing on as many nodes'}")
    refused = opinion is not None and opinion.refuses
    return 1 if job.objections or refused else 0


def _verify(words: Sequence[str]) -> int:
    """Let Megatron-Core itself judge the job, on this machine and without GPUs.

    Its parser, its validation and its process groups see the whole job, and the model of a rank of
    each pipeline stage is built without memory. The exit status is 1 where it refuses the job. It
    installs Megatron-Core under .venv/ where that is not there.
    """
    read = _request("verify", words)
    from launcher.job import verification
    from launcher.job.build import build

    opinion = verification.ask(build(read))
    print(terminal.to_terminal("\n".join(opinion.lines())))
    return 1 if opinion.refuses else 0


def _arguments(words: Sequence[str]) -> int:
    """Print every Megatron argument of the job, with the place that set it."""
    job = _job("arguments", words)
    from launcher.job.summary import explain

    print(explain(job))
    return 0


def _argv(words: Sequence[str]) -> int:
    """Print the job for other programs, as a JSON object of argv, world_size and release.

    An argument that the release's parser would refuse is an error.
    """
    job = _job("argv", words)
    from launcher.config.arguments import argv
    from launcher.plan import flags

    release = job.settings.MCORE_RELEASE_VERSION
    for finding in flags.check(job.arguments, release):
        if finding.severity == "error":
            raise UsageError(finding.message)
    print(
        json.dumps({"argv": argv(job.arguments), "world_size": job.world_size, "release": release})
    )
    return 0


def _tune(words: Sequence[str]) -> int:
    """Print the sizes with which the job would be fastest, and write a sweep that tries them.

    It chooses TP, PP, VPP, EP, CP and MBS where neither a variable nor a flag sets them. --free all
    or --free TP,PP chooses sizes that are set, too. --keep-recompute leaves recomputation as it is.
    The sweep goes to $OUTPUT_PATH/tune.yaml, or to --sweep-file.
    """
    from launcher import tune

    wanted = tune.wish(words)
    return tune.tune(_request("tune", words, wanted.rest), wanted)


def _calibrate(words: Sequence[str]) -> int:
    """Measure this node's GPU, or read runs' step times, so that projections fit a cluster.

    A measurement takes half a minute, or as long as --seconds says. Start it on a node of the kind
    that the jobs run on. RUN is the folder of a run. Both results go to
    $OUTPUT_PATH/calibration.json, which later plans read.
    """
    from launcher import calibrate

    read = _request("calibrate", words, ()).settings
    return calibrate.calibrate(read, tuple(words))


def _settings(words: Sequence[str]) -> int:
    """Print the table of all variables, in Markdown."""
    from launcher.config import settings

    if words:
        raise UsageError(f"settings takes no words, and {' '.join(words)!r} was given")
    print(settings.table())
    return 0


def _completion(words: Sequence[str]) -> int:
    """Print the completion of commands, variables and flags for Bash or Zsh.

    In ~/.bashrc or ~/.zshrc the line of the example turns it on.
    """
    from launcher.desk import completion

    usages = {name: f"{one.usage} {one.run.__doc__}" for name, one in COMMANDS.items()}
    return completion.completion(words, usages)


def _help(words: Sequence[str]) -> int:
    """Print the commands, or how to use one of them."""
    if len(words) > 1:
        raise UsageError(f"help explains one command at a time: {' '.join(words)!r} was given")
    if words and words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS)
        raise UsageError(f"unknown command {words[0]!r}; known: {', '.join(COMMANDS)}.{hint}")
    width = terminal.width(sys.stdout)
    if words:
        command = COMMANDS[words[0]]
        summary, more = command.help
        usage = f"usage: [VARIABLE=value …] moe-zoo {words[0]} {command.usage}".rstrip()
        shown = [usage, "", summary, *([more] if more else [])]
        if command.examples:
            shown += ["", "examples:", *(f"  {example}" for example in command.examples)]
        print(terminal.fold("\n".join(shown), width, 6))
        print("\nThe variables: moe-zoo settings")
        return 0
    print("usage: [VARIABLE=value …] moe-zoo COMMAND [word …]\n")
    size = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        print(terminal.fold(f"  {name:{size}}  {command.help[0]}", width, size + 4))
    print("\nHow to use one of them: moe-zoo help COMMAND")
    print("moe-zoo is bin/moe-zoo; python3 -m launcher is the same.")
    return 0


def _report(words: Sequence[str]) -> int:
    """Print how fast runs were, whether that is good, and why not faster; `diff` compares two.

    RUN is a run directory or a bare log. Options:
      --format text|markdown|csv|json
      --window steady|last10|30-45|all|A-B  which iterations count
      --html FILE                           write one self-contained page with plots
      --expect NUMBER --tolerance 5%        end with status 1 where a run is slower
      --metric tflops|logged|tokens|step    the number that --expect is about
      --junit FILE                          write the verdicts for a pipeline
      --track                               add the numbers to the run's TensorBoard and W&B
      --gpus N --gpu H100 --model NAME --sequence N  say what a bare log does not say
    """
    from launcher.report import command, page

    page_wanted = any(word.partition("=")[0] == "--html" for word in words)
    python = str(ROOT / ".venv" / "training" / "bin" / "python")
    if page_wanted and not page.available() and python != sys.executable and os.path.isfile(python):
        # The training environment has Plotly, which draws the page.
        os.execv(python, [python, str(ROOT / "launcher" / "__main__.py"), "report", *words])
    return command.command(words)


def _diff(words: Sequence[str]) -> int:
    """Print what differs between two runs: results, arguments, settings, environment, versions.

    RUN is a run directory, its name, or the id of a job; or a bare log.
    """
    from launcher.desk import runs
    from launcher.report import command

    if len(words) != 2:
        raise UsageError(f"moe-zoo diff RUN RUN takes two runs; given: {len(words)}")
    paths = [
        word if os.path.exists(word) else str(runs.named(word, os.environ).path) for word in words
    ]
    return command.command(["diff", *paths])


_FLAGS = "[--megatron-flag value …]"
COMMANDS: Mapping[str, Command] = {
    "list": Command(
        desk.show_list,
        "[models | clusters | recipes | runs [FOLDER …]]",
        ("moe-zoo list models CLUSTER=mine", "moe-zoo list runs /scratch/me/runs"),
    ),
    "plan": Command(
        _plan,
        f"[--all] {_FLAGS}",
        ("moe-zoo plan MODEL=DeepSeek-V3 CLUSTER=mine", "moe-zoo plan MODEL=Kimi-K2 PP=16 --all"),
    ),
    "tune": Command(
        _tune,
        f"[--free SIZES] [--keep-recompute] [--sweep-file FILE] {_FLAGS}",
        ("moe-zoo tune MODEL=Qwen3-30B-A3B CLUSTER=mine --free all",),
    ),
    "verify": Command(_verify, _FLAGS, ("moe-zoo verify MODEL=DeepSeek-V3 CLUSTER=mine TP=2",)),
    "submit": Command(
        _submit,
        f"[--dry-run] {_FLAGS}",
        (
            "moe-zoo submit MODEL=DeepSeek-V3 CLUSTER=mine TP=2 --dry-run",
            "MODEL=DeepSeek-V3 CLUSTER=mine bash sbatch_benchmarking.sh --mtp-num-layers 1",
        ),
    ),
    "sweep": Command(
        _sweep,
        f"FILE [--dry-run] [--format csv|json] {_FLAGS}",
        ("moe-zoo sweep parallelism.yaml --dry-run",),
    ),
    "status": Command(desk.status, "[RUN …]", ("moe-zoo status", "moe-zoo status 4711")),
    "logs": Command(desk.logs, "[-f] [-n LINES] [RUN]", ("moe-zoo logs -f 4711",)),
    "cancel": Command(desk.cancel, "RUN [RUN …]", ("moe-zoo cancel 4711",)),
    "resume": Command(
        desk.resume, "RUN", ("moe-zoo resume DeepSeek-V3-260101_120000 CLUSTER=mine",)
    ),
    "report": Command(
        _report,
        "RUN [RUN …] | diff RUN RUN [--option …]",
        ("moe-zoo report $RUN --expect 338 --tolerance 5%",),
    ),
    "diff": Command(_diff, "RUN RUN", ("moe-zoo diff 4711 4712 CLUSTER=mine",)),
    "calibrate": Command(
        _calibrate, "[RUN …] [--seconds SECONDS]", ("moe-zoo calibrate CLUSTER=mine $RUN",)
    ),
    "init-cluster": Command(
        desk.init_cluster,
        "NAME",
        ("moe-zoo init-cluster mine CONTAINER_IMAGE=/images/mcore.sqsh OUTPUT_PATH=/scratch/me",),
    ),
    "check-cluster": Command(
        desk.check_cluster, "[--no-job]", ("moe-zoo check-cluster CLUSTER=mine",)
    ),
    "arguments": Command(_arguments, _FLAGS, ("moe-zoo arguments MODEL=Kimi-K2",)),
    "argv": Command(_argv, _FLAGS, ("moe-zoo argv MODEL=Kimi-K2 CLUSTER=mine",)),
    "settings": Command(_settings, ""),
    "completion": Command(_completion, "bash | zsh", ('eval "$(moe-zoo completion bash)"',)),
    "version": Command(desk.version, ""),
    "help": Command(_help, "[COMMAND]", ("moe-zoo help plan",)),
}


def _own_options(command: str, words: Sequence[str], own: Sequence[str]) -> None:
    """Raise UsageError for the beginning of one of a command's own options."""
    for word in words:
        begun = len(word) > 2 and word not in own
        if begun and any(option.startswith(word) for option in own):
            raise UsageError(f"{command}: {word} is no option.{did_you_mean(word, own)}")


def _job(command: str, words: Sequence[str]) -> Job:
    read = _request(command, words)
    from launcher.job.build import build

    return build(read)


def _request(command: str, words: Sequence[str], given: Sequence[str] | None = None) -> Request:
    """Return the user's request; without sourced layers, start again through the entry point.

    `given` are the words for Megatron, where some of the words are the command's own.
    """
    from launcher.config import bash_layers
    from launcher.config.settings import LAYER_ORIGINS

    if LAYER_ORIGINS not in os.environ:
        os.environ["LAUNCHER_COMMAND"] = command
        sys.stdout.flush()
        os.execvp("bash", ["bash", str(bash_layers.ENTRY), *words])
    from launcher.job import request

    read = bash_layers.settings_of(os.environ)
    return request.read(read, words if given is None else given, os.environ)
