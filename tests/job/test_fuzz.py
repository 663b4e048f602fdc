"""Random launches end in a job or in one line: never in a traceback, never in a hang."""

from __future__ import annotations

import pytest

from tests.tools import fuzz


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return fuzz.Fuzz(tmp_path_factory.mktemp("fuzz"))


def tried(fuzzer: fuzz.Fuzz, seed: int, count: int) -> None:
    failed = [
        f"{launch}\n{said}" for launch in fuzz.launches(seed, count) if (said := fuzzer.run(launch))
    ]
    assert not failed, "\n".join(failed)


def test_a_sample(fuzzer):
    tried(fuzzer, seed=20260101, count=150)


@pytest.mark.slow
def test_five_thousand(fuzzer):
    tried(fuzzer, seed=20260102, count=5000)


@pytest.mark.slow
def test_cluster_files_through_the_entry(tmp_path):
    assert list(fuzz.through_the_entry(20260103, 20, tmp_path)) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--hierarchical-context-parallel-sizes", "2,4"),
        ("--mtp-num-layers", "1.0"),
        ("--moe-expert-capacity-factor", "inf"),
        ("--moe-expert-capacity-factor", "nan"),
        ("--optimizer-cpu-offload", "--optimizer-offload-fraction", "nan"),
        ("--num-experts", "9" * 400),
        ("--pipeline-model-parallel-layout", "Et*10000000000|L"),
        ("--pipeline-model-parallel-layout", "E(t|)*10000000000L"),
        ("--num-layers", "10000000000"),
        ("--moe-layer-freq", "([1]*10000000000)"),
    ],
)
def test_seen_before(fuzzer, words):
    """What ended in a traceback or in minutes once."""
    for release in ("0.15", "0.19", "dev"):
        launch = fuzz.Launch("DeepSeek-V3", {"MCORE_RELEASE_VERSION": release}, words, None)
        assert fuzzer.run(launch) == ""
