"""The plan accepts what Megatron does, on stored jobs that were drawn by flags, not by recipes.

Megatron-Core 0.19.2 judged them with its parser, validation, configuration and process groups; no
model was built. The draws cover two thirds of the catalogue once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import agreement, agreement_flags

SAMPLE = Path(__file__).parent / "judged_flags.jsonl.gz"
# Accepted by the plan and refused by Megatron, and why.
ELSEWHERE = "a file that only the machine which trains has"
KNOWN = {
    "1-378": f"--yaml-cfg: {ELSEWHERE}",
    "1-456": f"--nccl-communicator-config-path: {ELSEWHERE}",
    "1-527": f"--heterogeneous-layers-config-path: {ELSEWHERE}",
    "1-501": "weight shards need Transformer Engine 2.19, which the plan says in a warning",
}


@pytest.fixture(scope="module")
def compared():
    start, records = agreement.load(SAMPLE)
    judged = [one for one in records.values() if not agreement_flags.packaged(one)]
    return agreement.compare(start, judged)


def test_what_megatron_refuses_is_refused_or_known(compared):
    missed = {
        one.record["name"] for one in compared if not one.record["accepted"] and not one.agrees
    }
    assert missed == KNOWN.keys()


def test_nothing_is_refused_that_megatron_accepts(compared):
    assert [one.record["name"] for one in compared if one.record["accepted"] and one.errors] == []


def test_the_sample_is_mixed(compared):
    assert len(compared) >= 500
    accepted = sum(one.record["accepted"] for one in compared)
    assert 0.5 < accepted / len(compared) < 0.9
    assert len({flag for one in compared for flag in one.record["changed"]}) > 500
