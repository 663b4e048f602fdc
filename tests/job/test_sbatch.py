"""What Slurm is told, and how a later start differs from the first; without Slurm."""

from __future__ import annotations

import re

import pytest

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
    seen = preview(OUTPUT_PATH="/out")
    assert "later_start=(--load /out/checkpoints --no-load-optim)\n" in seen.script


def test_nothing_follows_unless_asked():
    assert "sbatch " not in preview().script.split("set -euo pipefail")[1]
    assert 'sbatch "$run_dir/job.sh"' in preview(RESUBMIT="3").script


def test_output_that_the_container_would_lose():
    mounts = {"CONTAINER_MOUNTS": "/lustre:/lustre", "CONTAINER_IMAGE": "image"}
    lost = "is in none of CONTAINER_MOUNTS"
    assert lost in preview(OUTPUT_PATH="/scratch/out", **mounts).stderr
    assert lost not in preview(OUTPUT_PATH="/lustre/me/out", **mounts).stderr
