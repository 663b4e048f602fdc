"""The commands of `python3 -m launcher`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from launcher import ROOT
from launcher.config import bash_layers, settings
from launcher.config.arguments import argv
from launcher.config.settings import LAYER_ORIGINS
from launcher.errors import UsageError, did_you_mean
from launcher.job import request, verification
from launcher.job.build import build
from launcher.job.draft import Job
from launcher.job.request import Request
from launcher.job.script import check_secrets, render
from launcher.job.summary import explain, report, tell
from launcher.plan import flags
from launcher.plan.plan import too_full

HELP = ("-h", "--help")


def main(words: Sequence[str]) -> int:
    """Run one command, return its exit status; a UsageError is one line on stderr and status 1."""
    name, *rest = words or ["help"]
    try:
        if name in HELP:
            name = "help"
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS)
            raise UsageError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}.{hint}")
        if any(word in HELP for word in rest):
            name, rest = "help", [name]
        return COMMANDS[name].run(rest)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has gone, as in `… | head`, and that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True)
class Command:
    """One command; the first line of its function's docstring is its summary."""

    run: Callable[[Sequence[str]], int]
    usage: str  # the words after its name

    @property
    def help(self) -> tuple[str, str]:
        """The first line of its help, and the rest."""
        first, _, rest = (self.run.__doc__ or "").partition("\n")
        return first, "\n".join(line.strip() for line in rest.strip().splitlines())


def _submit(words: Sequence[str]) -> int:
    """Submit the job, or preview it with DRY_RUN=1.

    The same as `bash sbatch_benchmarking.sh`. MODEL names the model, and CLUSTER the place where it
    runs. Further variables change the job, and flags go to Megatron as they are:

    MODEL=DeepSeek-V3 CLUSTER=mine TP=2 bash sbatch_benchmarking.sh --mtp-num-layers 1
    """
    read = _request("submit", words)
    if not read.settings.DRY_RUN:
        from launcher.run import start  # a preview does without

        return start.start(read)
    job = build(read)
    script = render(job)
    check_secrets(script, os.environ)
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
    """Submit every point of a YAML grid once, or plan them with DRY_RUN=1.

    FILE is the grid (design_docs/sweeps.md). The same command continues a sweep, and shows its
    results. WAIT=1 stays until the last job has ended.
    """
    from launcher.sweep import sweep  # other commands do without

    return sweep.sweep(words, os.environ)


def _plan(words: Sequence[str]) -> int:
    """Print what the job is, whether it can work, and how long a step takes.

    The exit status is 1 where it cannot work. --all shows every stage. PLAN_FORMAT=json prints the
    plan for tools, and VERIFY=1 asks Megatron itself too.
    """
    given = [word for word in words if word != "--all"]
    read = _request("plan", words, given)
    job = build(read)
    opinion = verification.wanted(job)
    print(report(job, opinion, everything=len(given) < len(words)))
    shaped = job.plan.shaped
    if job.settings.PLAN_FORMAT != "json" and shaped and too_full(shaped, job.site):
        from launcher import tune  # a job that fits does without

        print(f"  fits: {tune.nearby(read, job) or 'nothing on as many nodes'}")
    refused = opinion is not None and opinion.refuses
    return 1 if job.objections or refused else 0


def _arguments(words: Sequence[str]) -> int:
    """Print every Megatron argument of the job, with the place that set it."""
    print(explain(_job("arguments", words)))
    return 0


def _argv(words: Sequence[str]) -> int:
    """Print the job for other programs, as a JSON object of argv, world_size and release.

    An argument that the release's parser would refuse is an error.
    """
    job = _job("argv", words)
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
    from launcher import tune  # other commands do without

    wanted = tune.wish(words)
    return tune.tune(_request("tune", words, wanted.rest), wanted)


def _calibrate(words: Sequence[str]) -> int:
    """Measure this node's GPU, or read runs' step times, so that projections fit a cluster.

    A measurement takes half a minute, or as long as --seconds says. Start it on a node of the kind
    that the jobs run on. RUN is the folder of a run. Both results go to
    $OUTPUT_PATH/calibration.json, which later plans read.
    """
    from launcher import calibrate  # other commands do without

    read = _request("calibrate", words, ()).settings
    return calibrate.calibrate(read, tuple(words))


def _settings(words: Sequence[str]) -> int:
    """Print the table of all variables, in Markdown."""
    if words:
        raise UsageError(f"settings takes no words, and {' '.join(words)!r} was given")
    print(settings.table())
    return 0


def _help(words: Sequence[str]) -> int:
    """Print the commands, or how to use one of them."""
    if len(words) > 1:
        raise UsageError(f"help explains one command at a time: {' '.join(words)!r} was given")
    if words and words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS)
        raise UsageError(f"unknown command {words[0]!r}; known: {', '.join(COMMANDS)}.{hint}")
    if words:
        command = COMMANDS[words[0]]
        summary, more = command.help
        usage = f"usage: [VARIABLE=value …] python3 -m launcher {words[0]} {command.usage}".rstrip()
        print(usage, "", summary, *([more] if more else []), sep="\n")
        print("\nThe variables: python3 -m launcher settings")
        return 0
    print("usage: [VARIABLE=value …] python3 -m launcher COMMAND [word …]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:10} {command.help[0]}")
    print("\nHow to use one of them: python3 -m launcher help COMMAND")
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
    from launcher.report import command, page  # other commands do without

    page_wanted = any(word.partition("=")[0] == "--html" for word in words)
    python = str(ROOT / ".venv" / "training" / "bin" / "python")
    if page_wanted and not page.available() and python != sys.executable and os.path.isfile(python):
        # The training environment has Plotly, which draws the page.
        os.execv(python, [python, str(ROOT / "launcher" / "__main__.py"), "report", *words])
    return command.command(words)


_FLAGS = "[--megatron-flag value …]"
COMMANDS: Mapping[str, Command] = {
    "submit": Command(_submit, _FLAGS),
    "sweep": Command(_sweep, f"FILE {_FLAGS}"),
    "report": Command(_report, "RUN [RUN …] | diff RUN RUN [--option …]"),
    "plan": Command(_plan, f"[--all] {_FLAGS}"),
    "tune": Command(_tune, f"[--free SIZES] [--keep-recompute] [--sweep-file FILE] {_FLAGS}"),
    "calibrate": Command(_calibrate, "[RUN …] [--seconds SECONDS]"),
    "arguments": Command(_arguments, _FLAGS),
    "argv": Command(_argv, _FLAGS),
    "settings": Command(_settings, ""),
    "help": Command(_help, "[COMMAND]"),
}


def _job(command: str, words: Sequence[str]) -> Job:
    return build(_request(command, words))


def _request(command: str, words: Sequence[str], given: Sequence[str] | None = None) -> Request:
    """Return the user's request; without sourced layers, start again through the entry point.

    `given` are the words for Megatron, where some of the words are the command's own.
    """
    if LAYER_ORIGINS not in os.environ:
        os.environ["LAUNCHER_COMMAND"] = command
        os.execvp("bash", ["bash", str(bash_layers.ENTRY), *words])
    read = bash_layers.settings_of(os.environ)
    return request.read(read, words if given is None else given, os.environ)
