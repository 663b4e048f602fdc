"""Bash layers that fail say where and why; words that are meant for the launcher reach it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.launching import ROOT, launch, preview

TEMPLATE = (ROOT / "cluster_configs/benchmarking/template.conf").read_text(encoding="utf-8")
LINE = TEMPLATE.count("\n") + 1


def conf(folder: Path, text: str) -> str:
    path = folder / "mine.conf"
    path.write_text(TEMPLATE + text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("false\n: after\n", f":{LINE}: `false` failed with status 1"),
        ("check() { grep -q x /dev/null; }\ncheck\n: after\n", "`grep -q x /dev/null` failed"),
        ("FOLDER=$(ls /nowhere)\n", f":{LINE}: `FOLDER=$(ls /nowhere)` failed with status 2"),
        ("exit 0\n", " ended the launch with status 0: a layer must not `exit`"),
        ("exit 3\n", " ended the launch with status 3: a layer must not `exit`"),
        ("FOLDER=$NOT_SET/x\n", " ended the launch with status 1: a layer must not `exit`, and it "
         "must write ${NAME:-} where NAME may be unset"),
        ("if true; then\n", " could not be read: the line above says why"),
    ],
)  # fmt: skip
def test_a_layer_that_fails_says_where(tmp_path: Path, text: str, message: str):
    path = conf(tmp_path, text)
    seen = launch(MODEL="DeepSeek-V3", CLUSTER=path, DRY_RUN="1")
    assert (seen.status, seen.stdout) == (1, "")
    last = seen.stderr.splitlines()[-1]
    assert last.startswith(f"error: {path}{message}") or (
        last.startswith(f"error: {path}:") and message in last
    )


def test_a_last_line_that_is_false_is_no_failure(tmp_path: Path):
    preview(CLUSTER=conf(tmp_path, "[[ -n ${NOT_SET:-} ]] && NCCL_DEBUG=INFO\n"))


def test_a_row_that_is_too_short_is_named(tmp_path: Path):
    for name in ("sbatch_benchmarking.sh", "launcher", "runtime_configs", "cluster_configs"):
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)
    rows = tmp_path / "runtime_configs/benchmarking/runtime.conf"
    text = rows.read_text(encoding="utf-8")
    rows.write_text(text.replace("\nKimi-K2 ", "\nMine 1 1 1\nKimi-K2 "), encoding="utf-8")
    seen = launch(script=tmp_path / "sbatch_benchmarking.sh", MODEL="Mine", DRY_RUN="1")
    assert seen.status == 1
    assert seen.stderr == (
        "error: runtime.conf: the row of Mine has 4 values, 16 or 18 are needed\n"
    )


def test_assignments_in_front_of_the_flags_are_variables():
    given = preview(["TP=2", "--lr", "1e-5"], EP="32").script
    assert given == preview(["--lr", "1e-5"], EP="32", TP="2").script


def test_an_assignment_after_a_recipe_came_too_late():
    recipe = ROOT / "best_practice/DeepSeekV3/run_deepseek_v3_h100_long_context.sh"
    seen = launch(["SEQ_LEN=4096"], script=recipe, DRY_RUN="1")
    assert seen.status == 1
    assert seen.stderr.startswith("error: SEQ_LEN=4096 stands after a recipe")


def test_dry_run_is_a_flag_too():
    seen = launch(["--dry-run"], MODEL="DeepSeek-V3")
    assert seen.status == 0
    assert "--dry-run" not in seen.command
    assert seen.script == preview().script
