"""The cluster configs that ship: each previews as its comments say."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.config import model_file, settings
from launcher.job.script import render
from tests.support.launching import ROOT, Launched, job, launch, preview

FOLDER = ROOT / "cluster_configs" / "benchmarking"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("example-*.conf"))
USER = {"USER": "me"}


def options(seen: Launched) -> dict[str, str]:
    """Return the #SBATCH lines of a preview."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", seen.script, re.MULTILINE)
    return dict(found)


def test_every_model_previews_with_every_example():
    pairs = [(name, example) for example in EXAMPLES for name in model_file.names(ROOT)]
    with ThreadPoolExecutor(2) as pool:
        seen = pool.map(lambda pair: job(MODEL=pair[0], CLUSTER=pair[1]), pairs)
        for pair, each in zip(pairs, seen):
            assert settings.placeholders(each.settings) == [], pair
            assert "--num-layers" in each.arguments, pair
            assert render(each).startswith("#!/bin/bash\n#SBATCH "), pair


def test_h100():
    seen = preview(CLUSTER="example-h100", **USER)
    assert options(seen)["nodes"] == "128"
    assert options(seen)["ntasks-per-node"] == "8"
    assert "segment" not in options(seen)
    assert "--container-image=/lustre/images/megatron-h100.sqsh" in seen.script
    assert re.search(r"^export NCCL_IB_HCA='mlx5_0,", seen.script, re.MULTILINE)
    assert seen.flag("--data-path") == ["/lustre/data/corpus/deepseek_text_document"]
    assert "error: " not in seen.stderr


@pytest.mark.parametrize(("nodes", "segment"), [("256", "16"), ("8", "8"), ("20", None)])
def test_gb200(nodes: str, segment: str | None):
    seen = preview(CLUSTER="example-gb200", NNODES=nodes, **USER)
    assert options(seen)["ntasks-per-node"] == "4"
    assert options(seen).get("segment") == segment
    assert "export NVLINK_DOMAIN_SIZE=72\n" in seen.script
    assert seen.command[0] == "/scratch/tools/bindpcie"
    assert ("error: " in seen.stderr) == (nodes != "256")


def test_apptainer():
    seen = preview(CLUSTER="example-apptainer", **USER)
    assert options(seen)["qos"] == "large"
    assert options(seen)["mail-type"] == "END,FAIL"
    assert "\n  apptainer exec " in seen.script
    assert "--container-image" not in seen.script
    assert "export NODE_SETUP_PATH=/shared/me/modules.sh\n" in seen.script
    assert "error: " not in seen.stderr


def test_cpu():
    seen = preview(CLUSTER="example-cpu", **USER)
    assert (options(seen)["nodes"], options(seen)["ntasks-per-node"]) == ("2", "2")
    assert "account" not in options(seen)
    assert "container" not in "".join(seen.command)
    assert seen.flag("--distributed-backend") == ["gloo"]
    assert "error: " not in seen.stderr


def test_the_template_explains_every_setting_of_a_cluster():
    text = (FOLDER / "template.conf").read_text(encoding="utf-8")
    for name, field in settings.FIELDS.items():
        if field.metadata["group"] in ("cluster", "paths"):
            assert f"${{{name}:=" in text, name


def test_a_config_may_say_that_its_cluster_is_gb200(tmp_path):
    """Though the layers before it know the variable too."""
    mine = tmp_path / "mine.conf"
    template = (FOLDER / "template.conf").read_text(encoding="utf-8")
    mine.write_text(template.replace("{GB200_CLUSTER:=0}", "{GB200_CLUSTER:=1}"))
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", CLUSTER=str(mine))
    assert options(seen)["ntasks-per-node"] == "4"
