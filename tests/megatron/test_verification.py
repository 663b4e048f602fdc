"""VERIFY=1: Megatron itself reads the job, and the plan is held against its verdict."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from launcher.config import bash_layers
from launcher.job import request, verification
from launcher.job.build import build
from tests.support.launching import launch

VARIABLES = {"MODEL": "Qwen3-30B-A3B", "VERIFY": "1", "LAUNCHER_COMMAND": "plan"}


def test_only_releases_that_the_judge_knows_are_asked():
    seen = launch(MCORE_RELEASE_VERSION="0.17", **VARIABLES)
    assert seen.status == 1
    (line,) = [line for line in seen.stderr.splitlines() if line.startswith("error: ")]
    assert "VERIFY=1 asks Megatron-Core 0.19 or dev; this job is for MCORE_RELEASE_VERSION" in line


@pytest.mark.slow
def test_megatron_and_the_plan_agree():
    seen = launch(PP="2", VPP="2", **VARIABLES)
    assert seen.status == 0, seen.stdout + seen.stderr
    assert "accepts the job and has the plan's parameters on all 2 stages" in seen.stdout


@pytest.mark.slow
def test_a_refusal_is_megatrons_own_word():
    words = ["--pipeline-model-parallel-layout", "Et*20|t*27L"]  # of 48 layers
    seen = launch(words, PP="2", PLAN_FORMAT="json", **VARIABLES)
    assert seen.status == 1
    said = json.loads(seen.stdout)
    assert not said["accepted"]
    assert not said["megatron"]["accepted"]
    assert said["megatron"]["refused_by"] == "configuration"
    assert said["megatron"]["differences"] == []


@pytest.mark.slow
def test_a_wrong_plan_is_found_out():
    """A plan that miscounts one stage by one parameter is a difference."""
    environ, _ = bash_layers.source(bash_layers.ENTRY, [], {**os.environ, **VARIABLES, "PP": "2"})
    described = build(request.read(bash_layers.settings_of(environ), [], environ))
    counts = list(described.plan.shaped.counts)
    counts[1] = dataclasses.replace(counts[1], dense=counts[1].dense + 1)
    vars(described.plan.shaped)["counts"] = tuple(counts)  # where the plan keeps what it worked out
    opinion = verification.ask(described)
    assert opinion.accepted
    (difference,) = opinion.differences
    assert difference.startswith("stage 1 has ")
    assert not opinion.agrees
