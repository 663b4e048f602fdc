"""Variables that were meant for the launcher and are not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import misspelt
from launcher.errors import UsageError
from tests.support.launching import ROOT, launch, preview

SURE = {
    "DRYRUN": "DRY_RUN",
    "dry_run": "DRY_RUN",
    "NNODE": "NNODES",
    "TENSOR_PARALLEL": "TP",
    "tp": "TP",
    "PARTITON": "PARTITION",  # a letter too few
    "PARTTITION": "PARTITION",  # too many
    "PARTIDION": "PARTITION",  # wrong
    "PARTIITON": "PARTITION",  # two swapped
    "OPTIMIZER_OFFLOA": "OPTIMIZER_OFFLOAD",
    "SEQLEN": "SEQ_LEN",
}
DOUBTFUL = {"NODES": "NNODES", "PRECISION": "PR", "model": "MODEL", "MODELS": "MODEL"}
OTHERS = (
    *(
        "PATH",
        "UPLOAD_PATH",
        "SLURM_JOB_ID",
        "NCCL_DEBUG",
        "CPP",
        "GPUS",
        "MPI",
        "TEMP",
        "LOADPATHS2",
    ),
    *("SOURCE_CKPT_PATH", "LIKE_PATH", "FORMAT", "MTP", "WORKERS", "INPUT_PATH", "DATA", "TIME"),
)


@pytest.mark.parametrize(("name", "meant"), SURE.items())
def test_what_can_only_be_meant_for_us_is_an_error(name: str, meant: str):
    with pytest.raises(
        UsageError, match=rf"^{name} \(environment\) is not .*\. Did you mean {meant}\?$"
    ):
        misspelt.notes({"PATH": "/bin", name: "1"})


@pytest.mark.parametrize(("name", "meant"), DOUBTFUL.items())
def test_what_others_may_read_is_a_warning(name: str, meant: str):
    (line,) = misspelt.notes({"PATH": "/bin", name: "1"})
    assert line == f"{name} (environment) has no effect here: did you mean {meant}?"


def test_names_of_other_programs_are_left_alone():
    assert misspelt.notes(dict.fromkeys(OTHERS, "1")) == []


def test_a_misspelt_dry_run_submits_nothing(tmp_path: Path):
    seen = launch(MODEL="DeepSeek-V3", OUTPUT_PATH=str(tmp_path), DRYRUN="1")
    assert (seen.status, seen.stdout) == (1, "")
    assert seen.stderr == (
        "error: DRYRUN (environment) is not a variable of the launcher. Did you mean DRY_RUN?\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_doubtful_name_is_a_warning_of_the_preview():
    warning = "  warning: NODES (environment) has no effect here: did you mean NNODES?"
    assert warning in preview(NODES="2").stderr.splitlines()


def test_what_a_config_sets_beyond_the_known_is_said(tmp_path: Path):
    template = (ROOT / "cluster_configs/benchmarking/template.conf").read_text(encoding="utf-8")
    path = tmp_path / "mine.conf"
    path.write_text(f"{template}\nNCCL_DEBUG=INFO\nMY_SITE=x\nOTHER_SITE=y\n", encoding="utf-8")
    seen = preview(CLUSTER=str(path))
    (line,) = (line for line in seen.stderr.splitlines() if "MY_SITE" in line)
    assert "sets MY_SITE, OTHER_SITE, which the launcher does not know; they reach" in line
    assert "NCCL_DEBUG" not in line
    path.write_text(f"{template}\nPARTITON=big\n", encoding="utf-8")
    seen = launch(MODEL="DeepSeek-V3", CLUSTER=str(path), DRY_RUN="1")
    assert seen.stderr == (
        f"error: PARTITON ({path}) is not a variable of the launcher. Did you mean PARTITION?\n"
    )


def test_the_shipped_configs_are_known():
    for path in sorted((ROOT / "cluster_configs/benchmarking").glob("*.conf")):
        seen = preview(CLUSTER=path.stem, MODEL="Qwen3-30B-A3B", SMOKE="1")
        assert "which the launcher does not know" not in seen.stderr, path.stem
