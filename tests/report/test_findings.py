"""Runs that are slow for a known reason name it among their first three."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.report import compare, metrics, subject
from launcher.report.findings import findings
from tests.report.runs import make, steady_log
from tests.report.test_training_log import line


def told(path: Path) -> list[str]:
    run = subject.read(path)
    return [one.what for one in findings(run, metrics.measure(run))]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {
                "--recompute-granularity": "full",
                "--recompute-method": "uniform",
                "--recompute-num-layers": 1,
            },
            "full recomputation",
        ),
        (
            {"--moe-token-dispatcher-type": "alltoall", "--moe-flex-dispatcher-backend": None},
            "alltoall dispatcher",
        ),
        (
            {"--overlap-moe-expert-parallel-comm": None},
            "expert communication not overlapped",
        ),
        ({"--moe-router-force-load-balancing": None}, "natural routing"),
        (
            {
                "--pipeline-model-parallel-size": 8,
                "--expert-model-parallel-size": 2,
                "--global-batch-size": 16,
            },
            "pipeline bubble",
        ),
        ({"--optimizer-cpu-offload": True}, "optimizer on the CPU"),
    ],
)
def test_the_reason_is_among_the_first_three(tmp_path: Path, changed: dict, reason: str):
    assert reason not in told(make(tmp_path / "good", steady_log(21.0)))
    assert reason in told(make(tmp_path / "run", steady_log(30.0), changed))[:3]


def test_all_of_the_reasons_at_once(tmp_path: Path):
    bad = {
        "--recompute-granularity": "full", "--moe-token-dispatcher-type": "alltoall",
        "--moe-flex-dispatcher-backend": None, "--overlap-moe-expert-parallel-comm": None,
        "--moe-router-force-load-balancing": None, "--pipeline-model-parallel-size": 2,
        "--expert-model-parallel-size": 8, "--global-batch-size": 64,
    }  # fmt: skip
    found = told(make(tmp_path / "run", steady_log(9.0, batch=64), bad))
    assert {
        "full recomputation", "alltoall dispatcher", "expert communication not overlapped",
        "natural routing", "pipeline bubble",
    } <= set(found)  # fmt: skip


def test_gains_are_arithmetic(tmp_path: Path):
    changed = {
        "--pipeline-model-parallel-size": 8,
        "--expert-model-parallel-size": 2,
        "--global-batch-size": 32,
    }
    run = subject.read(make(tmp_path / "run", steady_log(9.0), changed))
    bubble = next(one for one in findings(run, metrics.measure(run)) if "bubble" in one.what)
    assert bubble.high == pytest.approx(7 / 16)  # (8 - 1) stages over 32 / (16 / 8) micro-batches
    for one in findings(run, metrics.measure(run)):
        assert one.source
        assert one.evidence
        assert 0 <= one.low <= one.high


def test_a_slow_task_and_slow_steps(tmp_path: Path):
    text = "".join(
        line(n, label=f"{rank}: ", seconds=2.4 if rank == 3 else 2.0)
        for n in range(1, 20)
        for rank in range(8)
    )
    path = tmp_path / "a.log"
    path.write_text(text)
    assert told(path)[0] == "a slow task"
    times = [9.0 if n % 10 == 0 else 2.0 for n in range(1, 61)]
    path.write_text("".join(line(n, seconds=s, at=f" [2026-09-01 00:{n:02d}:00]") for n, s in enumerate(times, 1)))  # fmt: skip
    assert "slow steps" in told(path)


def test_memory_left_over(tmp_path: Path):
    memory = "[Rank 0] (after 2 iterations) memory (MB) | allocated: 30000.0 | max allocated: 40000.0 | reserved: 41000.0 | max reserved: 42000.0\n"
    assert "memory left over" in told(make(tmp_path / "run", steady_log(21.0) + memory))


def test_a_smoke_run_is_not_judged_by_its_sizes(tmp_path: Path):
    path = make(tmp_path / "run", steady_log(21.0), {"--moe-router-force-load-balancing": None})
    (path / "environment.yaml").write_text("settings: {SMOKE: {value: '1', origin: test}}\n")
    assert told(path) == []


def test_the_nearest_published_run(tmp_path: Path):
    path = make(tmp_path / "run", steady_log(30.29), {"--moe-router-force-load-balancing": None})
    run = subject.read(path)
    near = compare.compare(run, metrics.measure(run))
    assert near is not None
    assert "H100" in near.sizes
    assert near.tokens > 1000
    assert near.ratio == pytest.approx(metrics.measure(run).tokens / near.tokens)
    known = [one.effect.high for one in near.differences if one.effect]
    assert known == sorted(known, reverse=True)
    assert any("routing" in one.what for one in near.differences)
