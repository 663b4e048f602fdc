"""The entry point as a user meets it: layers, previews, values that arrive, mistakes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from launcher import cli
from launcher.config import bash_layers, model_file
from tests.support.launching import ROOT, STAMP, launch, preview

MODELS = model_file.names(ROOT)
NASTY = "a  b'c\"d $HOME `touch pwned` $(touch pwned) ;touch pwned; *|(x) \\ \n# new line"


def test_every_model_previews():
    with ThreadPoolExecutor(4) as pool:
        for name, seen in zip(MODELS, pool.map(lambda name: preview(MODEL=name), MODELS)):
            assert seen.script.startswith("#!/bin/bash\n#SBATCH "), name
            assert seen.flag("--num-layers"), name


def test_readme_example_arrives_intact():
    seen = preview(
        ["--recompute-granularity", "selective", "--recompute-modules", "mla_up_proj", "layernorm"],
        TP="2", PP="8", EP="64", VPP="1", RUN_TIME="00:60:00", NNODES="64",
    )  # fmt: skip
    assert seen.flag("--recompute-modules") == ["mla_up_proj", "layernorm"]
    assert seen.flag("--tensor-model-parallel-size") == ["2"]
    assert "#SBATCH --time=00:60:00\n" in seen.script
    assert "#SBATCH --nodes=64\n" in seen.script


def test_layout_arrives_intact_and_replaces_the_knobs():
    layout = "Et|(tt|)*30mL"
    seen = preview(["--pipeline-model-parallel-layout", layout], TP="2", PP="8", VPP="4")
    assert seen.flag("--pipeline-model-parallel-layout") == [layout]
    assert seen.flag("--num-virtual-stages-per-pipeline-rank") is None
    assert seen.flag("--decoder-first-pipeline-num-layers") is None


def test_script_runs_the_argv_of_the_command_line(tmp_path: Path):
    """Run the script with a stand-in srun that reports its argv: it must equal the printed line."""
    path = tmp_path / "with space"
    path.mkdir()
    seen = preview(["--save", NASTY], COMMENT=NASTY, OUTPUT_PATH=str(path))
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(
        "#!/bin/bash\nif [[ $1 == --help ]]; then exec echo --container-image; fi\n"
        "if [[ $1 == --mpi=list ]]; then exec echo none; fi\n"
        'while [[ $1 != task ]]; do shift; done\nshift\nprintf "%s\\0" "$@" >argv\n'
    )
    (srun.parent / "scontrol").write_text("#!/bin/bash\necho node1\necho node2\n")
    for stand_in in srun.parent.iterdir():
        stand_in.chmod(0o755)
    run_dir = Path(re.search(r"run directory (.*)", seen.stderr)[1])
    run_dir.mkdir(parents=True)
    (run_dir / "job.sh").write_text(seen.script)
    variables = {"JOB_ID": "1", "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2"}
    variables |= {"CLUSTER_NAME": "here", "JOB_PARTITION": "batch"}
    subprocess.run(
        ["bash", str(run_dir / "job.sh")],
        cwd=tmp_path,
        env={
            "PATH": f"{srun.parent}:{os.environ['PATH']}",
            **{f"SLURM_{name}": value for name, value in variables.items()},
        },
        check=True,
    )
    assert (tmp_path / "argv").read_text().split("\0")[:-1] == seen.command
    assert seen.flag("--save") == [NASTY]
    assert seen.command[seen.command.index("--wandb-exp-name") + 1].endswith(NASTY)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("where", ["variable", "yaml", "command line", "TRAINING_PARAMS"])
def test_values_arrive_unchanged_and_are_not_executed(where: str, tmp_path: Path, yaml_model):
    quoted = "'" + NASTY.replace("'", "'\\''") + "'"
    text = f"MODEL_ARGS:\n  --num-layers: 2\n  --load: {yaml.dump(NASTY, default_style=chr(34), width=10**6).strip()}\n"
    options = {
        "variable": dict(LOAD_PATH=NASTY),
        "yaml": dict(MODEL=yaml_model(text)),
        "command line": dict(words=["--load", NASTY]),
        "TRAINING_PARAMS": dict(TRAINING_PARAMS=f"--load {quoted}"),
    }[where]
    seen = preview(options.pop("words", ()), **options)
    assert seen.flag("--load") == [NASTY]
    assert not (ROOT / "pwned").exists()


def test_flags_with_equals_repeats_and_negative_numbers():
    words = "--lr=1e-5 --seed 1 --seed 2 --log-interval -1 --wandb-entity=-x --lr 2e-5"
    seen = preview(words.split())
    assert seen.flag("--lr") == ["2e-5"]
    assert seen.flag("--seed") == ["2"]
    assert seen.flag("--log-interval") == ["-1"]
    assert "--wandb-entity=-x" in seen.command


def test_order_of_precedence():
    """Command line over knobs over TRAINING_PARAMS over the model's YAML."""
    assert preview().flag("--lr") == ["3.9e-6"]
    assert preview(TRAINING_PARAMS="--lr 1").flag("--lr") == ["1"]
    assert preview(["--lr", "2"], TRAINING_PARAMS="--lr 1").flag("--lr") == ["2"]
    knob = preview(TRAINING_PARAMS="--moe-token-dispatcher-type alltoall", DISPATCHER="deepep")
    assert knob.flag("--moe-token-dispatcher-type") == ["flex"]
    flag = preview(["--moe-token-dispatcher-type", "alltoall"], DISPATCHER="deepep")
    assert flag.flag("--moe-token-dispatcher-type") == ["alltoall"]
    assert flag.flag("--moe-flex-dispatcher-backend") is None


def test_a_flag_speaks_for_its_variable():
    seen = preview(["--tensor-model-parallel-size", "4"], TP="1")
    assert seen.flag("--tp-comm-overlap") == []
    assert "TP4" in seen.flag("--wandb-exp-name")[0]


def test_environment_wins_over_every_layer(tmp_path: Path):
    conf = tmp_path / "mine.conf"
    conf.write_text(
        "PARTITION=debug\nACCOUNT=me\nTP=4\nNCCL_IB_HCA='mlx5 0'\nOUTPUT_PATH=/out\nMEGATRON_PATH=/m\nCONTAINER_IMAGE=i.sqsh\n"
    )
    seen = preview(CLUSTER=str(conf), PARTITION="batch")
    assert "#SBATCH --partition=batch\n" in seen.script
    assert "#SBATCH --account=me\n" in seen.script
    assert "export NCCL_IB_HCA='mlx5 0'\n" in seen.script
    assert seen.flag("--tensor-model-parallel-size") == ["4"]
    assert preview(CLUSTER=str(conf), TP="2").flag("--tensor-model-parallel-size") == ["2"]
    assert "export NCCL_DEBUG=INFO\n" in preview(NCCL_DEBUG="INFO").script


def test_own_cluster_config_by_name(tmp_path: Path):
    copy = tmp_path / "zoo"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "output"))
    (copy / "cluster_configs/benchmarking/mine.conf").write_text(
        "ACCOUNT=a\nOUTPUT_PATH=/o\nMEGATRON_PATH=/m\nCONTAINER_IMAGE=i.sqsh\n"
    )
    done = launch(
        script=copy / "sbatch_benchmarking.sh",
        cwd=tmp_path,
        MODEL="Kimi-K2",
        CLUSTER="mine",
        DRY_RUN="1",
    )
    assert done.status == 0, done.stderr
    assert "YOUR_" not in done.stdout


def test_own_model_file(yaml_model):
    seen = preview(
        MODEL=yaml_model("MODEL_ARGS:\n  --num-layers: 8\n  --tensor-model-parallel-size: ${TP}\n"),
        TP="2",
    )
    assert seen.flag("--num-layers") == ["8"]
    assert seen.flag("--tensor-model-parallel-size") == ["2"]
    assert "mine" in seen.script


def test_empty_settings_leave_their_flags_out():
    seen = preview(MODEL="Mixtral-8x7B")
    assert seen.flag("--load") is None
    assert seen.flag("--tokenizer-model") is None
    assert seen.flag("--tokenizer-type") == ["NullTokenizer"]
    assert seen.flag("--mock-data") == []
    assert "mock data" in seen.stderr


def test_data_path_and_blend():
    assert preview(DATA_PATH="/my data/text").flag("--data-path") == ["/my data/text"]
    assert preview(DATA_PATH="0.3 /a 0.7 /b").flag("--data-path") == ["0.3", "/a", "0.7", "/b"]


def test_script_is_valid_bash_and_shellcheck_clean(tmp_path: Path):
    for number, seen in enumerate(
        (
            preview(["--save", NASTY], COMMENT=NASTY, RUN_NAME='it\'s $HOME "x"'),
            preview(
                GB200_CLUSTER="1",
                SEGMENT="8",
                NNODES="256",
                PROFILE="nsys",
                BINDPCIE_PATH="/opt/bind pcie",
            ),
            preview(CLUSTER="local", SMOKE="1", COMMENT=NASTY),
        )
    ):
        script = tmp_path / f"{number}.sh"
        script.write_text(seen.script)
        subprocess.run(["bash", "-n", str(script)], check=True)
        checked = subprocess.run(
            [str(Path(sys.executable).parent / "shellcheck"), str(script)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout


def test_gb200():
    seen = preview(GB200_CLUSTER="1", SEGMENT="16", NNODES="256")
    assert "#SBATCH --ntasks-per-node=4\n" in seen.script
    assert "#SBATCH --segment=16\n" in seen.script
    assert "export NVLINK_DOMAIN_SIZE=72\n" in seen.script
    assert "--segment" not in preview(SEGMENT="16").script


def test_works_from_any_directory(tmp_path: Path):
    seen = launch(
        cwd=tmp_path,
        MODEL="DeepSeek-V3",
        DRY_RUN="1",
        CLUSTER="local",
        SMOKE="1",
        OUTPUT_PATH="out",
    )
    assert seen.status == 0, seen.stderr
    assert f"run directory {tmp_path}/out/runs/" in seen.stderr
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["settings", "foo"], "settings takes no words, and 'foo' was given"),
        (["help", "plan", "tune"], "help explains one command at a time: 'plan tune' was given"),
    ],
)
def test_words_that_a_command_does_not_take(words, reason, capsys):
    assert cli.main(words) == 1
    assert capsys.readouterr() == ("", f"error: {reason}\n")


def test_what_megatron_would_refuse_is_previewed_with_its_error():
    seen = preview(TP="3")
    assert (
        "  error: world size 1024 is not a multiple of TP*PP*CP = 3*16*1 = 48: 1008 or"
        in seen.stderr
    )
    assert launch(MODEL="DeepSeek-V3", TP="3", LAUNCHER_COMMAND="plan").status == 1


def test_explain_names_the_places():
    seen = preview(["--lr", "1"], EXPLAIN="1")
    origins = dict(
        re.split(r"  +", line, maxsplit=1)
        for line in seen.stderr.splitlines()
        if line.startswith("--")
    )
    assert origins["--lr 1"] == "command line"
    assert re.fullmatch(
        r"model_configs/benchmarking/DeepSeek-V3\.yaml:\d+", origins["--num-layers 61"]
    )
    assert "--lr" not in seen.stdout.split("=== End of DRY RUN")[0].replace("--lr 1\n", "").replace(
        "--lr-", ""
    )


def test_arguments_command_prints_the_resolved_list():
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "arguments"],
        cwd=ROOT,
        env={**os.environ, "MODEL": "Kimi-K2", "TIMESTAMP": STAMP},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(
        r"^--num-experts 384 +model_configs/benchmarking/Kimi-K2.yaml:\d+$", done.stdout, re.M
    )


def test_the_launcher_without_words_prints_help():
    done = subprocess.run(
        [sys.executable, "-m", "launcher"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "words", [["help"], ["--help"], ["-h"], *([name, "--help"] for name in cli.COMMANDS)]
)
def test_help_is_printed_and_nothing_else_happens(words: list[str], capsys):
    assert cli.main(words) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    assert seen.out.startswith("usage: [VARIABLE=value …] moe-zoo ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_says_what_it_does(name: str, capsys):
    assert cli.main(["help", name]) == 0
    usage, _, summary, *_ = capsys.readouterr().out.splitlines()
    assert f"moe-zoo {name}" in usage
    assert summary.endswith(".")


def test_a_model_of_your_own_extends_one_of_the_repository_by_name(yaml_model):
    mine = yaml_model("EXTENDS: DeepSeek-V3\nMODEL_ARGS:\n  --lr: 1e-6\n")
    seen = preview(MODEL=mine)
    assert seen.flag("--lr") == ["1e-6"]
    assert seen.flag("--num-experts") == ["256"]
    seen = launch(MODEL=yaml_model("EXTENDS: DeepSeek-V33\n"), DRY_RUN="1")
    assert seen.stderr.rstrip().endswith(
        "no such file, and no model of that name. Did you mean DeepSeek-V3 or DeepSeek-V2 or DeepSeek-V3-Proxy?"
    )


def test_help_of_the_entry_needs_no_model():
    for words in (["--help"], ["--lr", "1", "-h"]):
        seen = launch(words, MODEL="", CLUSTER="nowhere")
        assert (seen.status, seen.stderr) == (0, "")
        assert "bash sbatch_benchmarking.sh" in seen.stdout


def test_help_for_an_unknown_command_is_one_line(capsys):
    assert cli.main(["help", "sumbit"]) == 1
    assert "Did you mean submit" in capsys.readouterr().err


def test_what_nodes_without_gpus_change_names_its_cause():
    seen = preview(SMOKE="1", GPU="none", CONTAINER_RUNTIME="none", EXPLAIN="1")
    (line,) = (line for line in seen.stderr.splitlines() if line.startswith("--transformer-impl"))
    assert line.endswith("GPU=none")
    assert "CLUSTER=local" not in seen.stderr


# What a shell may have left of itself; Bash itself takes IFS from nobody.
SHELL = {
    "BASHOPTS": "failglob:nocasematch",
    "BASH_FUNC_cd%%": '() { builtin cd "$@" && ls; }',
    "BASH_FUNC_dirname%%": '() { command dirname "$@"; }',
    "CDPATH": "/:/tmp",
    "ENV": "/absent",
    "GLOBIGNORE": "*",
    "IFS": "/_",
    "POSIXLY_CORRECT": "1",
    "SHELLOPTS": "nounset:noglob:posix",
}


@pytest.mark.parametrize(
    "script",
    [
        "sbatch_benchmarking.sh",
        "best_practice/Mixtral/run_mixtral_8x22b_h100.sh",
    ],
)
def test_what_the_shell_leaves_to_its_scripts_changes_nothing(script: str, tmp_path: Path):
    (tmp_path / "greeting").write_text("echo hello; unset -f cd; alias exec=false\n")
    given = {"MODEL": "Mixtral-8x7B", "DRY_RUN": "1"} if "/" not in script else {"DRY_RUN": "1"}
    clean = launch(script=Path(script), **given)
    poisoned = launch(script=Path(script), **given, **SHELL)
    assert clean.status == poisoned.status == 0, poisoned.stderr
    assert (poisoned.stdout, poisoned.stderr) == (clean.stdout, clean.stderr)
    # The layers are read from a process whose Bash may print a greeting.
    login = {name: os.environ[name] for name in ("PATH", "HOME")}
    environ = {**login, **given, **SHELL, "BASH_ENV": str(tmp_path / "greeting")}
    (left, words), (right, same) = (
        bash_layers.source(ROOT / script, ["--seed", "1"], each)
        for each in (login | given, environ)
    )
    assert words == same
    shells = {*SHELL, "BASH_ENV", "LAYER_ORIGINS", "_"}
    assert {name: text for name, text in right.items() if name not in shells} == {
        name: text for name, text in left.items() if name not in shells
    }


def test_no_program_gets_the_shells_options(tmp_path: Path):
    """A Bash script among the programs, as a Python of pyenv's is, would fail by them."""
    for name in ("python3", "python"):
        (tmp_path / name).write_text(
            '#!/bin/bash\necho "$-"; : "$UNSET_VARIABLE"; false; echo end\n'
        )
        (tmp_path / name).chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SHELLOPTS": "xtrace",
        "BASHOPTS": "extglob",
    }
    for script in ("sbatch_benchmarking.sh", "ckpt_convert_scripts/convert.sh"):
        copy = tmp_path / "copy" / script  # without the repository's own environments
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / script, copy)
        shutil.copytree(
            ROOT / "runtime_configs", tmp_path / "copy/runtime_configs", dirs_exist_ok=True
        )
        seen = launch(script=copy, MODEL="Mixtral-8x7B", **given)
        assert seen.stdout.splitlines()[-1] == "end", seen.stderr
        assert not set("eu") & set(seen.stdout.splitlines()[0])
