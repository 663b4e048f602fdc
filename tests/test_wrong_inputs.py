"""Wrong inputs: each ends in one line that says what is wrong, where it was set, and what is right."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

import pytest

from launcher import cli
from launcher.config import bash_layers
from launcher.errors import UsageError
from tests.support.launching import ROOT, STAMP, launch

KEY = "k" * 40


MISTAKES = {
    "unknown model": (dict(MODEL="DeepSeek-V4"), [], "MODEL='DeepSeek-V4' is unknown. Did you mean DeepSeek-V3"),
    "no model": (dict(MODEL=""), [], "MODEL is not set. Known: DeepSeek-V2,"),
    "unknown cluster": (dict(CLUSTER="locale"), [], "CLUSTER='locale' is unknown. Did you mean local?"),
    "precision": (dict(PR="fp7"), [], "PR='fp7' (set by environment) is not allowed: bf16, fp8, mxfp8, nvfp4."),
    "number": (dict(TP="two"), [], "TP='two' (set by environment) is not allowed: integer ≥ 1."),
    "zero": (dict(GBS="0"), [], "GBS='0'"),
    "flag's number": (dict(), ["--seq-length", "4k"], "SEQ_LEN='4k' (set by --seq-length, command line)"),
    "time": (dict(RUN_TIME="1h"), [], "RUN_TIME='1h'"),
    "no time": (dict(RUN_TIME="00:00:00"), [], "RUN_TIME='00:00:00'"),
    "no such time": (dict(RUN_TIME="00:99:99"), [], "RUN_TIME='00:99:99'"),
    "stamp": (dict(TIMESTAMP="yesterday"), [], "TIMESTAMP='yesterday'"),
    "nodes": (dict(NNODES="1000000000000"), [], "integer ≥ 1, at most 100,000"),
    "release": (dict(MCORE_RELEASE_VERSION="0.12"), [], "MCORE_RELEASE_VERSION='0.12' is not supported"),
    "no flag": (dict(), ["fast"], "'fast' (command line) is no Megatron argument"),
    "quotes": (dict(TRAINING_PARAMS="--lr '1"), [], "TRAINING_PARAMS cannot be split"),
    "secret in a flag": (dict(WANDB_API_KEY=KEY), ["--x", KEY], "the value of WANDB_API_KEY would become part of --x (command line)"),
    "secret in a path": (dict(HF_TOKEN=KEY, LOAD_PATH=f"/x/{KEY}/y"), [], "the value of HF_TOKEN would become part of --load"),
    "secret in a name": (dict(MY_SECRET=KEY, RUN_NAME=f"a-{KEY}"), [], "the value of MY_SECRET would become part of"),
    "misspelt variable": (dict(DRYRUN="1"), [], "DRYRUN (environment) is not a variable of the launcher. Did you mean DRY_RUN?"),
    "lower case": (dict(mbs="1"), [], "mbs (environment) is not a variable of the launcher. Did you mean MBS?"),
    "long name": (dict(TENSOR_PARALLEL_SIZE="1"), [], "Did you mean TP?"),
    "switch": (dict(SMOKE="yes"), [], "SMOKE='yes' (set by environment) is not allowed: 0, 1"),
    "negative": (dict(PP="-1"), [], "PP='-1' (set by environment) is not allowed: integer ≥ 1."),
    "fraction": (dict(MBS="1.5"), [], "MBS='1.5' (set by environment) is not allowed: integer ≥ 1."),
    "dispatcher": (dict(DISPATCHER="deep"), [], "DISPATCHER='deep' (set by environment) is not allowed: alltoall, deepep,"),
    "GPU": (dict(GPU="h100"), [], "GPU='h100' (set by environment) is not allowed: H100, H200"),
    "profile": (dict(PROFILE="nsight"), [], "PROFILE='nsight' (set by environment) is not allowed: 0, 1, nsys, torch."),
    "runtime": (dict(CONTAINER_RUNTIME="docker"), [], "CONTAINER_RUNTIME='docker' (set by environment) is not allowed: pyxis, apptainer, none."),
    "W&B mode": (dict(WANDB_MODE="on"), [], "WANDB_MODE='on' (set by environment) is not allowed: online"),
    "plan's form": (dict(PLAN_FORMAT="yaml"), [], "PLAN_FORMAT='yaml' (set by environment) is not allowed: text, json."),
    "day of the stamp": (dict(TIMESTAMP="261345_000000"), [], "TIMESTAMP='261345_000000'"),
    "no model file": (dict(MODEL="no/such.yaml"), [], "MODEL='no/such.yaml': there is no such file"),
    "no parameters file": (dict(TRAINING_PARAMS_PATH="/no.yaml"), [], "TRAINING_PARAMS_PATH='/no.yaml': there is no such file"),
    "no cluster file": (dict(CLUSTER="/no/such.conf"), [], "CLUSTER='/no/such.conf' is unknown"),
    "no image": (dict(CONTAINER_IMAGE="", CLUSTER="{bare}"), [], "CONTAINER_IMAGE is not set: name the .sqsh file or image"),
    "no Megatron": (dict(CLUSTER="{bare}", CONTAINER_RUNTIME="none"), [], "MEGATRON_PATH is not set: name the Megatron-LM checkout"),
    "mount": (dict(CONTAINER_MOUNTS="a:b:c:d"), [], "CONTAINER_MOUNTS (environment): 'a:b:c:d' is no mount; write source:target"),
    "two data paths": (dict(DATA_PATH="/a /b"), [], "DATA_PATH='/a /b' names 2 paths: a blend has a weight before each"),
    "number of layers": (dict(NUM_LAYERS="60"), [], "NUM_LAYERS=60 (environment), but the model has 61 layers"),
    "sbatch's own option": (dict(SBATCH_OPTIONS="--nodes=3"), [], "SBATCH_OPTIONS (environment): --nodes is set by NNODES"),
    "sbatch's array": (dict(SBATCH_OPTIONS="--array=1-3"), [], "--array would change what the job script relies on"),
    "no sbatch option": (dict(SBATCH_OPTIONS="qos"), [], "SBATCH_OPTIONS (environment): 'qos' is not --option or --option=value"),
    "secret passed on": (dict(PASS_ENV="AWS_*", AWS_SECRET_ACCESS_KEY=KEY), [], "AWS_SECRET_ACCESS_KEY may be a secret"),
    "too many local ranks": (dict(CLUSTER="local", TP="8"), [], "ranks as it is, and this machine has no GPU: SMOKE=1 shrinks it"),
    "flag's own value": (dict(), ["--tensor-model-parallel-size", "two"], "TP='two' (set by --tensor-model-parallel-size, command line)"),
    "virtual stages twice": (dict(VPP="4"), ["--pipeline-model-parallel-layout", "Et|(tt|)*30mL"], "VPP=4 (environment), but --pipeline-model-parallel-layout"),
    "new line for Slurm": (dict(PARTITION="a\nb"), [], "'a\\nb' cannot be sbatch's --partition"),
    "vpp without pp": (dict(PP="1", VPP="2", EP="8"), [], "VPP=2 (environment) needs a pipeline"),
}  # fmt: skip


COMMANDS = {
    "unknown command": (["pln"], "unknown command 'pln'; known: "),
    "help of nothing": (["help", "plna"], "unknown command 'plna'"),
    "list what": (["list", "model"], "list 'model' is unknown; known: models, clusters, recipes, runs. Did you mean models"),
    "list more": (["list", "models", "x"], "list models takes no further words; given: x"),
    "list of no folder": (["list", "runs", "/no/such"], "/no/such: there is no such folder"),
    "status of nothing": (["status", "nothing"], "'nothing' is no run: name a run directory, its name, or the id of a job"),
    "log of two": (["logs", "a", "b"], "logs shows one run at a time; given: a, b"),
    "log's option": (["logs", "--follw"], "logs: unknown option '--follw'; known: -f, -n LINES"),
    "log's lines": (["logs", "-n", "x"], "logs: -n 'x' is no number of lines above 0"),
    "cancel nothing": (["cancel"], "moe-zoo cancel RUN [RUN …]: name a run directory"),
    "resume nothing": (["resume"], "moe-zoo resume RUN: name one run directory"),
    "diff of one": (["diff", "a"], "moe-zoo diff RUN RUN takes two runs; given: 1"),
    "report of nothing": (["report", "/no/run"], "/no/run: there is no such run directory or log"),
    "sweep of nothing": (["sweep"], "moe-zoo sweep FILE [--megatron-flag value …]: FILE is missing"),
    "no sweep": (["sweep", "/no.yaml"], "'/no.yaml': there is no such file"),
    "sweep's form": (["sweep", "x.yaml", "--format", "jsn"], "sweep: --format 'jsn' is none of csv, json. Did you mean json?"),
    "no cluster to check": (["check-cluster"], "check-cluster needs CLUSTER=NAME"),
    "check's words": (["check-cluster", "mine"], "check-cluster takes --no-job and no other words; given: mine"),
    "no name": (["init-cluster"], "moe-zoo init-cluster NAME: name the config"),
    "bad name": (["init-cluster", "a b"], "'a b' is no name for a config"),
    "name that is taken": (["init-cluster", "template"], "template.conf is there already"),
    "no such shell": (["completion", "fish"], "moe-zoo completion bash or zsh: name one shell"),
    "half an option": (["plan", "--al"], "plan: --al is no option. Did you mean --all?"),
    "version of what": (["version", "x"], "version takes no words; given: x"),
    "variable with NUL": (["plan", "MODEL=a\0b"], "MODEL holds a NUL character"),
}  # fmt: skip

YAML_MISTAKES = {
    "syntax": ("MODEL_ARGS:\n  --a: [1\n  --b: 2\n", "mine.yaml:3: not valid YAML"),
    "missing variable": ("MODEL_ARGS:\n  --a: ${DATA_PAHT}\n", "mine.yaml:2: ${DATA_PAHT} is neither a setting nor in the environment. Did you mean DATA_PATH"),
    "unknown key": ("MODEL_ARG:\n  --a: 1\n", "mine.yaml:1: unknown key 'MODEL_ARG'; allowed: EXTENDS, ENV_VARS, MODEL_ARGS. Did you mean MODEL_ARGS?"),
    "no flag": ("MODEL_ARGS:\n  --a: 1\n  num-layers: 2\n", "mine.yaml:3: 'num-layers' in MODEL_ARGS is not a flag"),
    "twice": ("MODEL_ARGS:\n  --a: 1\n  --a: 2\n", "mine.yaml:3: --a is set twice"),
    "no map": ("MODEL_ARGS: 3\n", "mine.yaml:1: MODEL_ARGS must hold"),
    "parent": ("EXTENDS: no.yaml\n", "mine.yaml:1: EXTENDS: no.yaml: there is no such file"),
    "circle": ("EXTENDS: mine.yaml\n", "mine.yaml:1: EXTENDS: mine.yaml: the files extend each other in a circle"),
    "secret": ("MODEL_ARGS:\n  --a: ${WANDB_API_KEY}\n", "mine.yaml:2: ${WANDB_API_KEY} is a secret"),
}  # fmt: skip


def one_line(status: int, said: str) -> str:
    """Return the only error line of a command that failed."""
    assert status == 1
    (line,) = [line for line in said.splitlines() if "error: " in line]
    assert "Traceback" not in said
    return line


def submit(words: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Preview a job: Bash sources the layers in a process, the launcher runs in this one."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**kept, "TIMESTAMP": STAMP, "MODEL": "DeepSeek-V3", "DRY_RUN": "1", **variables}
    try:
        environ, words = bash_layers.source(bash_layers.ENTRY, words, environ)
    except UsageError as error:
        return 1, f"error: {error}"
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        return cli.main(["submit", *words]), said.getvalue()


def test_there_are_sixty():
    assert len(MISTAKES) + len(COMMANDS) + len(YAML_MISTAKES) >= 60


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_launch(mistake: str, tmp_path: Path):
    variables, words, message = MISTAKES[mistake]
    bare = tmp_path / "bare.conf"
    bare.write_text("GPU=H100 OUTPUT_PATH=/out\n")
    given = {name: text.replace("{bare}", str(bare)) for name, text in variables.items()}
    status, said = submit(words, given)
    assert message in one_line(status, said)
    assert KEY not in said


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_wrong_command(mistake: str, capsys, monkeypatch, tmp_path: Path):
    words, message = COMMANDS[mistake]
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(
        os.environ, {"PATH": os.environ["PATH"], "OUTPUT_PATH": str(tmp_path)}, clear=True
    ):
        status = cli.main(words)
    seen = capsys.readouterr()
    assert seen.out == ""
    assert message in one_line(status, seen.err)


@pytest.mark.parametrize("mistake", YAML_MISTAKES)
def test_yaml_mistakes_name_file_and_line(mistake: str, yaml_model):
    text, message = YAML_MISTAKES[mistake]
    status, said = submit([], {"MODEL": yaml_model(text)})
    assert message in one_line(status, said)


def test_the_whole_launch_ends_in_the_same_line():
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", PR="fp7", cwd=ROOT)
    assert (seen.status, seen.stdout) == (1, "")
    assert seen.stderr.startswith("error: PR='fp7' (set by environment) is not allowed: bf16,")
