"""What Slurm is told, and how a later start differs from the first; without Slurm."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from launcher import secrets
from launcher.job import sbatch
from tests.support.launching import launch, preview


def sbatch_lines(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def test_further_options_are_added_and_replacements_are_said():
    options = "--qos=high --comment='it is \"quoted\"' --no-requeue --dependency=afterok:7"
    seen = preview(SBATCH_OPTIONS=options)
    given = sbatch_lines(seen.script)
    assert {"--qos=high", "--comment='it is \"quoted\"'", "--no-requeue"} <= set(given)
    assert "--dependency=singleton,afterok:7" in given
    assert "--requeue" not in given
    assert "SBATCH_OPTIONS: --no-requeue replaces --requeue" in seen.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nodes=3", "--nodes is set by NNODES"),
        ("--array=1-3", "--array would change what the job script relies on"),
        ("-N3", "'-N3' is not --option or --option=value"),
        ("--qos high", "'high' is not --option or --option=value"),
        ("--qos='x", "cannot be split into arguments"),
        ("--comment='a\nb'", "Slurm reads it from one line"),
    ],
)
def test_options_that_cannot_be(options: str, message: str):
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", SBATCH_OPTIONS=options)
    assert (seen.status, len(seen.stderr.splitlines())) == (1, 1), seen.stderr
    assert message in seen.stderr


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("40", 2400), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-00:30:00", 88200)],
)
def test_time_limits(limit: str, seconds: int):
    assert sbatch.seconds(limit) == seconds


def test_it_saves_before_the_limit_only_where_it_saves_at_all():
    assert "--signal=URG@300" in sbatch_lines(preview(RUN_TIME="4:00:00").script)
    assert "--signal=URG@150" in sbatch_lines(preview(RUN_TIME="10").script)
    assert "--signal=TERM@150" in sbatch_lines(
        preview(RUN_TIME="10", MCORE_RELEASE_VERSION="0.15").script
    )
    smoke = preview(SMOKE="1")
    assert not any(option.startswith("--signal") for option in sbatch_lines(smoke.script))
    assert smoke.flag("--exit-signal-handler") is None


def test_a_later_start_reads_its_own_checkpoint_whole():
    seen = preview(MODEL="Mixtral-8x7B", LOAD_PATH="/converted weights", OUTPUT_PATH="/out")
    assert seen.flag("--load") == ["/converted weights"]
    first = re.search(r"^first_start=\((.*)\)$", seen.script, re.MULTILINE)[1]
    later = re.search(r"^later_start=\((.*)\)$", seen.script, re.MULTILINE)[1]
    assert "--load '/converted weights'" in first
    assert "--finetune" in first
    assert later == "--load /out/checkpoints"
    common = seen.script.split("training_command=(")[1].split("\n)")[0]
    assert not {"--load", "--finetune"} & set(common.split())


def test_what_was_not_saved_is_not_read():
    whole = preview(OUTPUT_PATH="/out")
    assert "later_start=(--load /out/checkpoints)\n" in whole.script
    assert "each later start" not in whole.stderr
    seen = preview(["--no-save-optim"], OUTPUT_PATH="/out")
    assert "later_start=(--load /out/checkpoints --no-load-optim)\n" in seen.script
    assert (
        "note: --no-save-optim (command line): each later start begins anew with the optimizer's "
        "state and the learning-rate schedule" in seen.stderr
    )


def test_nothing_follows_unless_asked():
    assert "sbatch " not in preview().script.split("set -euo pipefail")[1]
    assert 'sbatch "$run_dir/job.sh"' in preview(RESUBMIT="3").script


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SEGMENT": "20", "NNODES": "40"}, "error: SEGMENT=20 (environment): an NVL72 domain has 18"),
        ({"SEGMENT": "16", "NNODES": "20"}, "error: SEGMENT=16 (environment) does not divide NNODES=20"),
        ({"SEGMENT": "16", "GB200_CLUSTER": "0"}, "note: SEGMENT=16 (environment) has no effect"),
        ({"NNODES": "16"}, "note: SEGMENT is not set: Slurm may spread the 16 nodes"),
    ],
)  # fmt: skip
def test_segments_of_nvl72(given: dict[str, str], said: str):
    assert said in preview(**{"GB200_CLUSTER": "1", **given}).stderr


def test_tasks_have_the_cpus_that_the_job_has():
    """srun does not inherit --cpus-per-task, nor does it place ranks as the job asks."""
    seen = preview(SBATCH_OPTIONS="--cpus-per-task=8 --distribution=plane=2")
    assert "\n  --cpus-per-task=8 \\\n" in seen.script
    assert "\n  --distribution=plane=2 \\\n" in seen.script
    assert "\n  --distribution=block \\\n" in preview().script


def test_a_secret_is_not_passed_on():
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", PASS_ENV="AWS_*", AWS_SECRET_ACCESS_KEY="x")
    assert seen.status == 1
    assert "PASS_ENV (environment): AWS_SECRET_ACCESS_KEY may be a secret" in seen.stderr


@pytest.mark.parametrize(
    ("name", "text", "secret"),
    [
        ("WANDB_API_KEY", "x", True),
        ("SLURM_JWT", "x", True),
        ("db_password", "x", True),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("http_proxy", "http://user:pass@host:3128", True),
        ("HTTPS_PROXY", "http://user:p/a:s@host", True),
        ("all_proxy", "user:pass@host:3128", True),
        ("no_proxy", "localhost,10.0.0.0/8", False),
        ("INDEX", "https://token@host/simple", True),
        ("INDEX", "https://host:8443/simple", False),
        ("IMAGE", "registry:5000/team/image@sha256:0123", False),
    ],
)
def test_what_counts_as_a_secret(name: str, text: str, secret: bool):
    assert secrets.is_secret(name, text) == secret
    script = preview().script
    masked = script.split("\nmasked() ", 1)[1].splitlines()[0]
    done = subprocess.run(
        ["bash", "-c", f"masked() {masked}\nmasked"], input=f"{name}={text}\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    in_value = secret and text != "x"
    assert ("***@" in done.stdout) == in_value, done.stdout
    assert done.stdout == f"{name}={text}\n" or (in_value and "pass" not in done.stdout)


def test_a_cluster_config_with_a_secret(tmp_path: Path):
    mine = tmp_path / "mine.conf"
    mine.write_text(
        "https_proxy=http://me:secret@proxy:3128\nOUTPUT_PATH=/o\nCONTAINER_RUNTIME=none\nMEGATRON_PATH=/m\n"
    )
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", CLUSTER=str(mine))
    assert seen.status == 0, seen.stderr
    assert "https_proxy reaches the training processes by the environment" in seen.stderr
    assert "me:secret" not in seen.stdout + seen.stderr


def test_output_that_the_container_would_lose():
    mounts = {"CONTAINER_MOUNTS": "/lustre:/lustre", "CONTAINER_IMAGE": "image"}
    lost = "is in none of CONTAINER_MOUNTS"
    assert (
        f"  error: OUTPUT_PATH=/scratch/out {lost}"
        in preview(OUTPUT_PATH="/scratch/out", **mounts).stderr
    )
    assert lost not in preview(OUTPUT_PATH="/lustre/me/out", **mounts).stderr
