"""The plan of the README: what a preview of DeepSeek-V3's recipe for H100 says first."""

from __future__ import annotations

import os
import subprocess

from tests.tools.golden import FIXED, RECIPES, SCRIPTS

RECIPE = "dsv3-h100-4k"


def text() -> str:
    """Return the plan's lines as a block of Markdown, without what only this machine has."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    shown = subprocess.run(
        ["bash", str(SCRIPTS / RECIPES[RECIPE].script)],
        env={**kept, **FIXED},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    plan, _, _ = shown.partition("  run directory ")
    return f"```\n{plan.rstrip()}\n```"
