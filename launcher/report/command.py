"""`python3 -m launcher report RUN [RUN …]` and `report diff RUN RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import UsageError
from launcher.report import difference, gate, page, steady, subject, summary, trackers
from launcher.report.summary import Report

FORMATS = ("text", "markdown", "csv", "json")


def command(words: Sequence[str]) -> int:
    """Print the report of runs, or what differs between two of them; return the exit status.

    Raises UsageError.
    """
    given = _read(words)
    runs = list(given.runs)
    differ = runs[0] == "diff"
    if differ:
        del runs[0]
        if len(runs) != 2:
            raise UsageError(f"report diff takes two runs; given: {len(runs)}")
    known = subject.Given(given.gpus, given.gpu, given.model, given.sequence)
    reports = [summary.report(subject.read(Path(run), known), given.window) for run in runs]
    expected = (
        gate.read(given.expect, given.tolerance, given.metric) if given.expect is not None else None
    )
    if given.html:
        _write(given.html, page.html(reports))
    print(difference.diff(*reports) if differ else _shown(reports, given.format))
    if given.track:
        for made in reports:
            for line in trackers.record(made):
                print(line, file=sys.stderr)
    if expected is None:
        if given.junit:
            raise UsageError(
                "--junit needs --expect NUMBER: without it there is no verdict to write"
            )
        return 0
    verdicts = [gate.judge(made, expected) for made in reports]
    for verdict in verdicts:
        word = "passed" if verdict.passed else "FAILED"
        print(f"{word}: {verdict.name}: {verdict.message}", file=sys.stderr)
    if given.junit:
        _write(given.junit, gate.junit(verdicts, [summary.text(made) for made in reports]))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _shown(reports: Sequence[Report], form: str) -> str:
    if form == "json":
        return summary.as_json(reports)
    if form == "csv":
        return summary.as_csv(reports)
    make = summary.markdown if form == "markdown" else summary.text
    parts = [make(made) for made in reports]
    if len(reports) > 1:
        parts.insert(0, summary.side_by_side(reports, form == "markdown"))
    return "\n\n".join(parts)


def _write(path: str, content: str) -> None:
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"report: {message} (python3 -m launcher report --help)")


def _read(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python3 -m launcher report",
        description="How fast a run was, whether that is good, and why it is not faster.",
        epilog="report diff RUN RUN shows what differs between two runs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run directory, or a bare log of any program")
    add("--format", choices=FORMATS, default="text")
    add(
        "--window",
        default="steady",
        help="which iterations count: "
        + "; ".join(f"{name}: {words}" for name, words in steady.CONVENTIONS.items())
        + "; A-B: median of a range",
    )
    add("--html", metavar="FILE", help="write one self-contained page with plots")
    add("--expect", metavar="NUMBER", help="exit with status 1 where a run is slower")
    add("--tolerance", default="5%", help="how much slower is allowed (default: 5%%)")
    add("--metric", default="tflops", help=f"what is expected: {', '.join(gate.METRICS)}")
    add("--junit", metavar="FILE", help="write the verdicts of --expect as JUnit XML")
    add("--track", action="store_true", help="add the numbers to the run's TensorBoard and W&B")
    add("--gpus", type=_positive, help="GPUs of a log that does not say it")
    add("--gpu", help="their kind: H100, B200, GB200 …")
    add("--model", help="the model's name, for tables")
    add("--sequence", type=_positive, help="sequence length in tokens")
    return parser.parse_args(list(words))


def _positive(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
