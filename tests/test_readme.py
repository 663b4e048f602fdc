"""What the pages state is what the code says, and every link leads somewhere."""

from __future__ import annotations

import re

import pytest

from launcher.config import model_file, settings
from tests.support.launching import ROOT
from tests.test_style import tracked
from tests.tools import pages

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(tracked("*.md"))


@pytest.mark.parametrize("name", pages.PARTS)
def test_generated_parts_are_up_to_date(name: str):
    page = pages.PARTS[name].page
    assert page.read_text(encoding="utf-8") == pages.renewed(name), (
        "renew it: python tests/tools/pages.py"
    )


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_models_are_named():
    for name in model_file.names(ROOT):
        assert f"| {name} |" in README, name


def test_every_design_page_is_in_the_index():
    index = (ROOT / "design_docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "design_docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


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


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


FOLDERS = "launcher|tests|[a-z_]+_configs|ckpt_convert_scripts|design_docs"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*\w/?)`")
MADE_BY_THE_READER = re.compile("mine|NAME|RELEASE")


@pytest.mark.parametrize("name", sorted({*PAGES} - {"CHANGELOG.md"}))
def test_files_that_pages_name_are_there(name: str):
    named = PATH.findall((ROOT / name).read_text(encoding="utf-8"))
    kept = [path for path in named if not MADE_BY_THE_READER.search(path)]
    assert [path for path in kept if not (ROOT / path).exists()] == []
