"""The smoke sweep covers every model and every recipe."""

from __future__ import annotations

import subprocess
import sys

from launcher.config import model_file
from tests.support.launching import ROOT
from tests.tools import smoke_sweep


def test_every_model_and_recipe_is_a_case():
    names = [case.name for case in smoke_sweep.cases()]
    assert len(names) == len(set(names))
    golden = {path.stem for path in (ROOT / "tests" / "golden").glob("*.sh")}
    assert set(names) == golden | set(model_file.names(ROOT))


def test_a_word_that_names_nothing():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/tools/smoke_sweep.py"), "nothing-like-this"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "nothing is named nothing-like-this\n")
