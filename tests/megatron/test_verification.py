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
from tests.tools import agreement, agreement_flags

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


# Flags on a small job, who refuses them, and with what words; none: what is not built.
STARTS = {
    "--te-rng-tracker --cuda-graph-impl local --cuda-graph-modules mlp"
    " --moe-layer-freq ([0]*1+[1]*7)": ("model", "has no attribute 'is_moe_layer'"),
    "--te-rng-tracker --cuda-graph-impl local": (None, ""),
    "--optimizer sgd": ("model", "Only Adam"),
    "--lr-decay-style WSD": ("model", "wsd_decay_steps is not None"),
    "--optimizer lion": (None, ""),
    "--use-precision-aware-optimizer --optimizer-cpu-offload": (None, ""),
    "--num-distributed-optimizer-instances 2": (None, ""),
    "--use-megatron-fsdp --ckpt-format fsdp_dtensor": (None, "Megatron FSDP's buffers"),
}


@pytest.mark.slow
def test_buffers_optimizer_schedule_and_graphs_are_built():
    """What Megatron refuses only there, and what it accepts; what is not built is named."""
    jobs = {}
    for flags in STARTS:
        job = jobs[flags] = agreement_flags.bases()["flat"]
        for part in flags.removeprefix("--").split(" --"):
            name, *values = part.split()
            job.set(f"--{name}", *values)
        if "fsdp" in flags:
            job.environment.clear()
    found = {verdict["name"]: verdict for verdict in agreement.verdicts(jobs)}
    assert found.keys() == STARTS.keys()
    for flags, (refused_by, words) in STARTS.items():
        verdict = found[flags]
        assert verdict["refused_by"] == refused_by, verdict
        assert verdict["accepted"] == (refused_by is None)
        said = verdict["message"] if refused_by else " ".join(verdict["not_built"])
        assert words in said if words else not said
