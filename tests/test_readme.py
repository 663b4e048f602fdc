"""What the README states is what the code says."""

from __future__ import annotations

import re

import pytest

from launcher.config import model_file, settings
from tests.support.launching import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_of_variables():
    assert settings.table() in README


def test_models_are_named():
    for name in model_file.names(ROOT):
        assert name in README, name


def test_design_variables_are_declared_once():
    """The variables that users of the zoo know, by the design's groups."""
    known = (
        "MODEL CLUSTER TRAINING_PARAMS_PATH TRAINING_SCRIPT_PATH TRAINING_PARAMS MEGATRON_PATH CONTAINER_IMAGE "
        "MCORE_RELEASE_VERSION TP PP EP CP VPP PP_FIRST PP_LAST LAYERS_PER_VP NUM_LAYERS MBS GBS SEQ_LEN NNODES "
        "RUN_TIME PRETRAIN DATASET DISPATCHER MOE_TOKEN_DISPATCHER MOE_GROUPED_GEMM PR A2A_OVERLAP OPTIMIZER_OFFLOAD "
        "PROFILE BINDPCIE_PATH ACCOUNT PARTITION RUN_NAME CONTAINER_MOUNTS GB200_CLUSTER SEGMENT OUTPUT_PATH DATA_PATH "
        "TOKENIZER_MODEL LOAD_PATH WANDB_API_KEY WANDB_PROJECT WANDB_MODE COMMENT DRY_RUN SMOKE FORCE"
    )
    assert set(known.split()) <= set(settings.FIELDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(path: str):
    if not path.startswith("http"):
        assert (ROOT / path).exists()
