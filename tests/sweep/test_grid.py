"""A sweep's file, and the plan of its points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import bash_layers
from launcher.errors import UsageError
from launcher.sweep import grid, points
from launcher.sweep.state import State, recorded
from tests.support.launching import ROOT, preview

SWEEP = """\
variables:
  MODEL: DeepSeek-V3
  NNODES: 64
  RUN_TIME: 00:20:00
  TP: [1, 2]
  EP: [32, 64]
arguments:
  --recompute-granularity: selective
  --recompute-modules: [mlp, [mla_up_proj, layernorm], false]
  --log-throughput: true
exclude:
  - {TP: 2, --recompute-modules: [mlp, false]}
"""


@pytest.fixture
def sweep_file(tmp_path: Path):
    """Return a function that writes a sweep's file and gives its path."""

    def write(text: str = SWEEP) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def run(path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep as a user does, with a login's environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, str(ROOT / "launcher/__main__.py"), "sweep", str(path), *words],
        env={**kept, **variables}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_points(sweep_file):
    points = grid.read(sweep_file()).points()
    assert [point.label for point in points] == [
        "TP=1 EP=32 --recompute-modules=mlp",
        "TP=1 EP=32 --recompute-modules='mla_up_proj layernorm'",
        "TP=1 EP=32",
        "TP=1 EP=64 --recompute-modules=mlp",
        "TP=1 EP=64 --recompute-modules='mla_up_proj layernorm'",
        "TP=1 EP=64",
        "TP=2 EP=32 --recompute-modules='mla_up_proj layernorm'",
        "TP=2 EP=64 --recompute-modules='mla_up_proj layernorm'",
    ]
    assert points[1].words == (
        "--recompute-granularity", "selective",
        "--log-throughput",
        "--recompute-modules", "mla_up_proj", "layernorm",
    )  # fmt: skip
    assert points[2].words == ("--recompute-granularity", "selective", "--log-throughput")
    assert points[0].variables == {
        "MODEL": "DeepSeek-V3", "NNODES": "64", "RUN_TIME": "00:20:00", "TP": "1", "EP": "32",
    }  # fmt: skip
    assert len({point.key for point in points}) == len(points)


def test_a_point_stays_itself_when_the_file_grows(sweep_file):
    before = {point.key for point in grid.read(sweep_file()).points()}
    longer = SWEEP.replace("[1, 2]", "[4, 2, 1]").replace("NNODES: 64", "NNODES: 128")
    assert before < {point.key for point in grid.read(sweep_file(longer)).points()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variable: {TP: 1}", ":1: unknown key 'variable'; allowed: recipe, in_flight, variables, arguments, exclude. Did you mean variables?"),
        ("variables:\n  TP: [1, 1]", ":2: TP has the same value twice"),
        ("variables:\n  TP: []", ":2: TP has no values"),
        ("variables:\n  TP: 1\n  TP: 2", ":3: TP is set twice"),
        ("variables:\n  TP: [[1, 2]]", ":2: TP is a variable, so each of its values is one word, not a list"),
        ("variables:\n  --lr: 1", ":2: '--lr' in variables is not a variable's name"),
        ("arguments:\n  TP: 1", ":2: 'TP' in arguments is not a flag (--name)"),
        ("variables:\n  HF_TOKEN: secret", ":2: HF_TOKEN cannot be in a sweep: set it in the environment"),
        ("variables:\n  DRY_RUN: 1", ":2: DRY_RUN cannot be in a sweep: set it in the environment"),
        ("in_flight: 0", ":1: in_flight='0' is not allowed: integer ≥ 1"),
        ("in_flight: many", ":1: in_flight='many' is not allowed: integer ≥ 1"),
        ("recipe: nowhere.sh", ":1: recipe: nowhere.sh: there is no such file"),
        ("variables: {TP: [1, 2]}\nexclude: [{PP: 1}]", ":2: PP is no axis; axes: TP. Did you mean TP?"),
        ("variables: {TP: [1, 2]}\nexclude: [{TP: 3}]", ":2: TP never has the value '3'"),
        ("variables: {TP: [1, 2]}\nexclude: {TP: 1}", ":2: exclude must be a list of maps: - {TP: 2, VPP: 4}"),
        ("variables: {TP: {a: 1}}", ":1: a value is a scalar or a list, not a map"),
        ("variables: [TP]", ":1: variables must hold `name: value` lines"),
        ("variables: TP: 1", ":1: not valid YAML: "),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_line(sweep_file, text: str, message: str):
    path = sweep_file(text)
    with pytest.raises(UsageError) as caught:
        grid.read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_too_many_points(sweep_file):
    axes = "\n".join(f"  V{number}: [{', '.join(map(str, range(10)))}]" for number in range(5))
    with pytest.raises(UsageError, match="100,000 points are more than 10,000"):
        grid.read(sweep_file(f"variables:\n{axes}"))


def test_dry_run_prints_the_plan_and_writes_nothing(sweep_file, tmp_path: Path):
    path = sweep_file()
    seen = run(path, DRY_RUN="1", OUTPUT_PATH=str(tmp_path / "out"))
    assert seen.returncode == 0, seen.stderr
    header, *rows = seen.stdout.splitlines()
    assert header.split() == ["#", "point", "ranks", "GiB", "plan"]
    assert len(rows) == 8
    assert [row.split()[0] for row in rows if " refused: " in row] == ["4", "5", "6", "8"]
    assert rows[3].endswith(
        "refused: world size 512 is not a multiple of ETP*EP*PP = 1*64*16 = 1024: 1024 would be"
    )
    assert " 512 " in rows[0]
    assert " ok" in rows[0]
    assert seen.stderr == "8 points, 4 of them refused by the plan\n"
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_point_is_the_single_launch(sweep_file, tmp_path: Path):
    """The script of a planned point equals the one of the same launch by hand, to the byte."""
    from launcher.job.build import build
    from launcher.job.script import render

    recipe = "best_practice/Qwen3/run_qwen3_30b_h100.sh"
    path = sweep_file(
        f"recipe: {recipe}\nvariables:\n  GBS: [512]\narguments:\n  --lr: [2e-5]\n  --log-interval: 7\n"
    )
    environ = {
        "PATH": os.environ["PATH"],
        "OUTPUT_PATH": str(tmp_path),
        "TIMESTAMP": "260101_120000",
    }
    (planned,) = points.plan(grid.read(path), ["--eval-iters", "3"], environ)
    assert planned.refusal == ""
    by_hand = preview(
        ["--log-interval", "7", "--lr", "2e-5", "--eval-iters", "3"],
        script=ROOT / recipe,
        GBS="512",
        MODEL="",
        OUTPUT_PATH=planned.request.environ["OUTPUT_PATH"],
        RUN_NAME=planned.request.environ["RUN_NAME"],
    )
    assert render(build(planned.request)) == by_hand.script
    assert Path(planned.request.environ["OUTPUT_PATH"]).parent == tmp_path / "mine"


def test_points_share_no_directory_and_no_job_name(sweep_file):
    """Alternatives that differ only in what a file name cannot hold."""
    text = "arguments:\n  --comment: ['a b', [a, b], a/b, 'a%b']"
    read = grid.read(sweep_file(text))
    environ = {"MODEL_NAME": "m", "OUTPUT_PATH": "/o"}
    places = [points._place(read, point, environ) for point in read.points()]
    for name in ("OUTPUT_PATH", "RUN_NAME"):
        assert len({place[name] for place in places}) == 4


def test_the_environment_wins_over_fixed_values_and_not_over_axes(sweep_file):
    path = sweep_file()
    (first, *_) = points.plan(grid.read(path), [], {"PATH": os.environ["PATH"], "NNODES": "32"})
    assert first.ranks == 256
    seen = run(path, DRY_RUN="1", TP="4")
    assert seen.stderr == f"error: TP is an axis of {path}, and it is set in the environment too\n"
    seen = run(path, "--recompute-modules=moe", DRY_RUN="1")
    assert (
        seen.stderr
        == f"error: --recompute-modules is an axis of {path}, and it is set on the command line too\n"
    )


def test_placeholders_stop_a_sweep_before_the_first_point(sweep_file, tmp_path: Path):
    path = sweep_file("variables: {MODEL: DeepSeek-V2-Lite, GBS: [256, 512]}")
    (tmp_path / "sbatch").touch(mode=0o755)
    seen = run(path, OUTPUT_PATH=str(tmp_path / "out"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert seen.returncode == 1
    assert "template.conf still has placeholders" in seen.stderr
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "mine.yaml.state").read_text() == ""


def test_a_local_sweep_can_be_planned_but_not_submitted(sweep_file):
    path = sweep_file("variables: {MODEL: DeepSeek-V2-Lite, SMOKE: 1, CLUSTER: local, EP: [1, 2]}")
    assert run(path, DRY_RUN="1").returncode == 0
    seen = run(path)
    assert seen.returncode == 1
    assert seen.stdout.count("refused: CLUSTER=local runs one job at a time") == 2


def test_the_state_survives_a_torn_line(tmp_path: Path):
    path = tmp_path / "mine.yaml.state"
    state = State(path)
    state.note("a", run_dir="/runs/a")
    state.note("a", job_id="1")
    state.file.close()
    with path.open("a") as file:
        file.write('{"point": "b", "run_d')
    assert recorded(path) == {"a": {"run_dir": "/runs/a", "job_id": "1"}}
    state = State(path)
    state.note("c", run_dir="/runs/c")
    assert [json.loads(line)["point"] for line in path.read_text().splitlines()] == ["a", "a", "c"]
    with pytest.raises(UsageError, match="this sweep is running already"):
        State(path)


def test_a_file_that_is_no_state_is_left_alone(tmp_path: Path):
    path = tmp_path / "mine.yaml.state"
    path.write_text("my notes\n")
    with pytest.raises(UsageError, match=r"mine.yaml.state:1: not a line of a sweep's state"):
        recorded(path)


def test_layers_give_words_and_environment_unchanged(tmp_path: Path):
    nasty = "a\nb 'c' $HOME"
    environ, words = bash_layers.source(
        bash_layers.ENTRY,
        ["--x", nasty, ""],
        {"PATH": os.environ["PATH"], "COMMENT": nasty, "MODEL": "m"},
    )
    assert words == ["--x", nasty, ""]
    assert environ["COMMENT"] == nasty
    assert environ["MODEL_NAME"] == "m"
    assert "LAUNCHER_COMMAND" not in environ


def test_a_broken_layer_is_one_line(tmp_path: Path):
    conf = tmp_path / "mine.conf"
    conf.write_text("no_such_command\n")
    with pytest.raises(UsageError, match=r"failed while Bash read its layers: .*no_such_command"):
        bash_layers.source(
            bash_layers.ENTRY, [], {"PATH": os.environ["PATH"], "CLUSTER": str(conf)}
        )


def test_no_file():
    seen = subprocess.run(
        [sys.executable, str(ROOT / "launcher/__main__.py"), "sweep"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (seen.returncode, seen.stderr) == (
        1, "error: moe-zoo sweep FILE [--megatron-flag value …]: FILE is missing\n",
    )  # fmt: skip


def test_points_that_are_the_same_job_are_refused(sweep_file):
    path = sweep_file("variables:\n  MODEL: Qwen3-30B-A3B\n  MY_SITE: [a, b]\n  TP: [1, 2]\n")
    seen = run(path, DRY_RUN="1")
    assert seen.stdout.count("refused: the same job as point ") == 2
    assert "MY_SITE, which the launcher does not know; only a config that reads it" in seen.stderr


def test_an_axis_that_is_misspelt_is_an_error(sweep_file):
    path = sweep_file("variables:\n  MODEL: Qwen3-30B-A3B\n  NODES: [1, 2]\n")
    seen = run(path, DRY_RUN="1")
    assert (seen.returncode, seen.stdout) == (1, "")
    assert seen.stderr.endswith(":3) is not a variable of the launcher. Did you mean NNODES?\n")
