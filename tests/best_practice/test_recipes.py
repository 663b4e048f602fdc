"""The recipes of best_practice/: what they submit, and what the user can change about it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.launching import launch
from tests.tools import golden

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
RECIPES = golden.RECIPES
SCRIPTS = sorted({recipe.script for recipe in RECIPES.values()})
STATED = (
    *("NNODES", "TP", "PP", "VPP", "EP", "CP", "MBS", "GBS", "SEQ_LEN"),
    *("PR", "DISPATCHER", "A2A_OVERLAP", "OPTIMIZER_OFFLOAD"),
)


@pytest.fixture(scope="module")
def rendered():
    """What every recipe's dry run prints now, by id; the exception where it failed."""

    def render(recipe):
        try:
            return golden.render(recipe)
        except golden.RenderError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(RECIPES, pool.map(render, RECIPES.values())))


def sbatch_option(script: str, name: str) -> str:
    return re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)[1]


def argument(script: str, flag: str) -> str | None:
    """Everything after a flag in the training command: '' for a switch, None where it is absent."""
    found = re.search(rf"^  {re.escape(flag)}(?: (.*))?$", script, re.MULTILINE)
    return None if found is None else found[1] or ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_dry_run_equals_golden_file(rendered, recipe):
    script = rendered[recipe]
    assert isinstance(script, str), script
    kept = GOLDEN / f"{recipe}.sh"
    wanted = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    assert script == wanted, "if the change is meant: python tests/tools/golden.py"


def test_every_golden_file_belongs_to_a_recipe():
    assert sorted(path.stem for path in GOLDEN.glob("*.sh")) == sorted(RECIPES)


def test_every_script_is_in_the_recipe_list_and_the_other_way_round():
    found = sorted(
        str(path.relative_to(ROOT / "best_practice"))
        for path in (ROOT / "best_practice").rglob("*.sh")
    )
    assert found == SCRIPTS


def test_every_recipe_is_in_its_readme_and_in_the_overview():
    overview = (ROOT / "best_practice" / "README.md").read_text(encoding="utf-8")
    for name, recipe in RECIPES.items():
        script = ROOT / "best_practice" / recipe.script
        readme = (script.parent / "README.md").read_text(encoding="utf-8")
        assert f"`{name}`" in readme, f"{script.parent.name}/README.md lacks {name}"
        assert recipe.script in overview, f"best_practice/README.md lacks {recipe.script}"


def test_run_name_is_the_recipes_id(rendered):
    for name, script in rendered.items():
        assert f"-moe-{name}-" in sbatch_option(script, "job-name")


def test_recipes_state_every_size_themselves():
    # Changed defaults of runtime.conf must not change a published recipe.
    for recipe in SCRIPTS:
        text = (ROOT / "best_practice" / recipe).read_text(encoding="utf-8")
        for name in STATED:
            assert f"${{{name}:=" in text, f"{recipe} leaves {name} to the defaults"


def test_scripts_pass_the_linters():
    paths = [str(ROOT / "best_practice" / script) for script in SCRIPTS]
    for tool, *words in (["shellcheck"], ["shfmt", "-i", "2", "-d"]):
        beside = Path(sys.executable).parent / tool
        found = str(beside) if beside.is_file() else shutil.which(tool)
        if found is None:
            pytest.skip(f"{tool} is not installed")
        done = subprocess.run([found, *words, *paths], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_are_executable():
    assert [
        script for script in SCRIPTS if not os.access(ROOT / "best_practice" / script, os.X_OK)
    ] == []


def test_flags_given_to_a_script_win():
    script = golden.render(
        RECIPES["qwen3-235b-h100-4k"],
        flags=[
            "--recompute-modules",
            "layernorm",
            "--global-batch-size=512",
            "--micro-batch-size",
            "2",
        ],
    )
    assert argument(script, "--recompute-modules") == "layernorm"
    assert argument(script, "--global-batch-size") == "512"
    assert argument(script, "--micro-batch-size") == "2"
    assert argument(script, "--tensor-model-parallel-size") == "2"


def test_environment_wins_over_a_script():
    script = golden.render(
        RECIPES["dsv3-h100-64k"],
        {"TP": "8", "NNODES": "64", "PR": "bf16", "RUN_NAME": "mine", "SEQ_LEN": "65536"},
    )
    assert argument(script, "--tensor-model-parallel-size") == "8"
    assert argument(script, "--fp8-recipe") is None
    assert sbatch_option(script, "nodes") == "64"
    assert "-moe-mine-" in sbatch_option(script, "job-name")


def test_data_given_in_the_environment_replaces_mock_data():
    script = golden.render(RECIPES["kimi-k2-gb200-128k"], {"DATA_PATH": "/data/text_document"})
    assert argument(script, "--data-path") == "/data/text_document"
    assert argument(script, "--mock-data") is None


def test_another_working_directory_changes_nothing(rendered, tmp_path):
    name = "mixtral-8x22b-h100"
    assert golden.render(RECIPES[name], folder=tmp_path) == rendered[name]


@pytest.mark.parametrize(
    ("recipe", "name", "value", "allowed"),
    [
        ("dsv3-h100-16k", "SEQ_LEN", "8192", "4096, 16384, 32768, 65536, 131072, 262144"),
        ("qwen3-235b-h100-16k", "SEQ_LEN", "16k", "16384, 32768, 65536, 131072"),
        ("qwen3-30b-h100-4k", "RECOMPUTE", "selective", "none, full"),
        ("mixtral-8x22b-h100", "VARIANT", "balance d", "dropless, balanced, fp8, drop"),
    ],
)
def test_a_wrong_parameter_is_one_line_that_lists_the_allowed_values(recipe, name, value, allowed):
    done = golden.start(RECIPES[recipe].script, {name: value})
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr == f"error: {name}='{value}' is not allowed: {allowed}\n"


def test_dev_only_flags_need_the_dev_branch():
    for name in ("dsv3-gb200-4k", "kimi-k2-gb200-128k"):
        for release, there in (("0.19", False), ("dev", True)):
            script = golden.render(RECIPES[name], {"MCORE_RELEASE_VERSION": release})
            assert (argument(script, "--offload-optimizer-states") is not None) == there


def test_every_script_previews_a_smoke_run_on_this_machine(tmp_path):
    smoke = {"CLUSTER": "local", "SMOKE": "1", "OUTPUT_PATH": str(tmp_path)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = dict(zip(SCRIPTS, pool.map(lambda script: golden.start(script, smoke), SCRIPTS)))
    assert {script: each.stderr for script, each in done.items() if each.returncode} == {}
    assert list(tmp_path.iterdir()) == []


def test_older_releases_get_their_own_flag_names():
    script = golden.render(RECIPES["dsv3-gb300-4k"], {"MCORE_RELEASE_VERSION": "0.17"})
    assert argument(script, "--cuda-graph-scope") == "attn moe_router moe_preprocess"
    assert argument(script, "--cuda-graph-modules") is None


def test_sizes_fit_the_world(rendered):
    for name, script in rendered.items():
        sizes = [
            int(argument(script, f"--{size}-parallel-size"))
            for size in ("tensor-model", "pipeline-model", "context", "expert-model")
        ]
        tp, pp, cp, ep = sizes
        world = int(sbatch_option(script, "nodes")) * int(sbatch_option(script, "ntasks-per-node"))
        assert world % (tp * pp * cp) == 0, name
        assert world % (ep * pp) == 0, name
        data_parallel = world // (tp * pp * cp)
        batch = int(argument(script, "--micro-batch-size")) * data_parallel
        assert int(argument(script, "--global-batch-size")) % batch == 0, name


def test_nothing_machine_specific_in_the_golden_files():
    for path in GOLDEN.glob("*.sh"):
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text
        assert set(re.findall(r'(?<![\w/."])/(\w+)', text)) <= {
            "bin",
            "dev",
            "etc",
            "proc",
            "output",
            "workspace",
            "tmp",
        }, path.name


@pytest.mark.parametrize("recipe", RECIPES)
def test_dev_branch_knows_every_flag(recipe):
    """With its dev-only flags in place: the plan names no error."""
    script, parameters = ROOT / "best_practice" / RECIPES[recipe].script, RECIPES[recipe].parameters
    seen = launch(script=script, DRY_RUN="1", MCORE_RELEASE_VERSION="dev", **parameters)
    assert seen.status == 0, seen.stderr
    assert "error: " not in seen.stderr
