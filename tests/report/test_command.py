"""`python3 -m launcher report`: gate, files, differences, trackers."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from launcher import cli
from launcher.report import difference, gate, page, subject, summary
from tests.report.runs import make, steady_log


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = cli.main(["report", *map(str, words)])
    seen = capsys.readouterr()
    return status, seen.out, seen.err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--expect", "199"), 0),
        (("--expect", "205", "--tolerance", "5%"), 0),
        (("--expect", "205", "--tolerance", "0.01"), 1),
        (("--expect", "220"), 1),
        (("--expect", "150"), 0),
        (("--expect", "8655", "--metric", "tokens", "--tolerance", "0.1%"), 0),
        (("--expect", "29", "--metric", "step"), 0),
        (("--expect", "28", "--metric", "step"), 1),
        (("--expect", "5", "--metric", "logged"), 1),
    ],
)
def test_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple, status: int):
    path = make(tmp_path / "run", steady_log(30.29))
    junit = tmp_path / "junit.xml"
    seen, out, err = run(capsys, path, *words, "--junit", junit)
    assert seen == status
    assert "8,654 tokens/s/GPU" in out
    assert err.startswith("FAILED" if status else "passed")
    suite = ET.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", str(status))
    assert len(suite.findall("testcase/failure")) == status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "there is no such run directory or log"),
        (("README.md",), "README.md is no training log"),
        (("LOG", "--expect", "fast"), "no number"),
        (("LOG", "--expect", "1", "--tolerance", "100%"), "allows any speed"),
        (("LOG", "--expect", "1", "--metric", "speed"), "allowed: tflops"),
        (("LOG", "--window", "best"), "no convention"),
        (("LOG", "--form", "json"), "unrecognized arguments"),
        (("LOG", "--gpus", "-3"), "no whole number"),
        (("diff", "LOG"), "takes two runs"),
        ((), "RUN"),
    ],
)
def test_bad_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple, message: str):
    log = tmp_path / "a.log"
    log.write_text(steady_log(2.0))
    status, _, err = run(capsys, *(log if word == "LOG" else word for word in words))
    assert status == 1
    assert message in err
    assert err.count("\n") == 1


def test_a_log_that_says_nothing_of_its_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "a.log"
    log.write_text(steady_log(2.0))
    _, out, _ = run(capsys, log, "--gpus", 16, "--sequence", 4096, "--format", "json")
    (found,) = json.loads(out)
    assert found["tokens_per_second_per_gpu"] == pytest.approx(1024 * 4096 / 2 / 16)


def test_several_and_their_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = make(tmp_path / "first", steady_log(30.29))
    changed = {"--overlap-moe-expert-parallel-comm": None, "--micro-batch-size": 2}
    second = make(tmp_path / "second", steady_log(40.0), changed)
    _, out, _ = run(capsys, first, second)
    assert out.splitlines()[1].startswith("first")
    assert out.splitlines()[2].startswith("second")
    _, out, _ = run(capsys, "diff", first, second)
    assert "--overlap-moe-expert-parallel-comm  on → -" in out
    assert "--micro-batch-size  1 → 2" in out
    assert "30.29 → 40  +32.1%" in out
    reports = [summary.report(subject.read(path)) for path in (first, first)]
    assert difference.diff(*reports).count("the same") == 4


def test_expectations_are_read_exactly():
    assert gate.read("338", "5%", "tflops") == gate.Expectation(338.0, 0.05, "tflops")
    assert gate.read("338.5", "0.02", "tokens").tolerance == 0.02


def test_the_training_environment_draws_the_page_where_this_python_cannot(monkeypatch, tmp_path):
    """A stand-in takes the place of a Python without Plotly, and of the one that takes over."""
    python = tmp_path / ".venv" / "training" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    started = []

    def execv(path: str, words: list[str]) -> None:
        started.append((path, words))
        raise SystemExit

    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(page, "available", lambda: False)
    monkeypatch.setattr(cli.os, "execv", execv)
    with pytest.raises(SystemExit):
        cli.main(["report", "run", "--html=page.html"])
    entry = str(tmp_path / "launcher" / "__main__.py")
    assert started == [(str(python), [str(python), entry, "report", "run", "--html=page.html"])]
