"""Real runs of Megatron-Core: the logs of five releases, and one that is made here."""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path

import pytest

from launcher.report import metrics, subject
from tests.support.launching import launch

# `SMOKE=1 CLUSTER=local MODEL=DeepSeek-V3 MEGATRON_PATH=…` with the branch core_r0.N.0, on the CPU.
LOGS = sorted((Path(__file__).parent / "logs").glob("*.log.gz"))


@pytest.mark.parametrize("packed", LOGS, ids=lambda path: path.name.removesuffix(".log.gz"))
def test_the_log_of_a_release(packed: Path, tmp_path: Path):
    log = tmp_path / "train.log"
    log.write_bytes(gzip.decompress(packed.read_bytes()))
    read = subject.read(log)
    found = metrics.measure(read)
    assert [one.number for one in read.log.iterations] == list(range(1, 21))
    release = packed.name.removesuffix(".log.gz")
    losses = [one.fields["lm loss"] for one in read.log.iterations]
    # 0.18 starts from other random weights than 0.17.
    later = release in ("0.18", "0.19")
    assert (losses[0], losses[-1]) == ((6.241324, 3.433878) if later else (6.35613, 3.539704))
    steps = [one.seconds for one in found.window.counted]
    assert len(steps) >= 10
    assert found.seconds == pytest.approx(statistics.median(steps))
    # The job is rebuilt from the arguments that the log begins with.
    assert found.flops_per_token == 1_036_128
    assert found.tokens == pytest.approx(8 * 64 / found.seconds / 4)


@pytest.mark.slow
def test_a_smoke_run_leaves_its_report(tmp_path: Path):
    seen = launch(MODEL="DeepSeek-V3", CLUSTER="local", SMOKE="1", OUTPUT_PATH=str(tmp_path))
    assert seen.status == 0, seen.stderr
    (run,) = (tmp_path / "runs").iterdir()
    (found,) = json.loads((run / "report.json").read_text())
    assert found["iteration"] == found["iterations"] == found["logged_iterations"]
    assert set(found["window"]["excluded"]) == {"warm-up"}
    assert found["tokens_per_second_per_gpu"] > 0
    assert 0 < found["goodput"] < 1
    assert "step time" in seen.stderr
    assert "step time" in (run / "report.txt").read_text()
    assert "Training report" in (run / "report.html").read_text()
    assert list(tmp_path.glob("tensorboard/report/events.*"))
    whole, bare = (metrics.measure(subject.read(path)) for path in (run, run / "log"))
    assert bare.flops_per_token == whole.flops_per_token
    assert bare.tokens == whole.tokens
