"""Hold a run's speed against what was expected of it, for pipelines that must fail."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.errors import UsageError
from launcher.report.summary import Report

METRICS = {
    "tflops": "model TFLOPS/GPU",
    "logged": "logged TFLOPS/GPU",
    "tokens": "tokens/s/GPU",
    "step": "s a step",
}


@dataclass(frozen=True)
class Expectation:
    """What a run must reach."""

    value: float
    tolerance: float  # share
    metric: str = "tflops"


@dataclass(frozen=True)
class Verdict:
    """Whether a run reached it."""

    name: str
    passed: bool
    measured: float | None
    message: str


def read(expected: str, tolerance: str, metric: str) -> Expectation:
    """Return an expectation from the words of --expect, --tolerance and --metric.

    Raises UsageError.
    """
    if metric not in METRICS:
        raise UsageError(f"--metric {metric!r}; allowed: {', '.join(METRICS)}")
    if not re.fullmatch(r"\d+(\.\d+)?", expected) or float(expected) == 0:
        raise UsageError(f"--expect {expected!r} is no number above 0")
    share = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", tolerance)
    if not share:
        raise UsageError(
            f"--tolerance {tolerance!r} is neither a percentage (5%) nor a share (0.05)"
        )
    allowed = float(share[1]) / (100 if share[2] else 1)
    if allowed >= 1:
        raise UsageError(f"--tolerance {tolerance!r} allows any speed: write 5% or 0.05")
    return Expectation(float(expected), allowed, metric)


def judge(made: Report, expected: Expectation) -> Verdict:
    """Say whether a run reaches what is expected; a faster run passes too.

    Where our own count of FLOPs is unknown, the logged TFLOPS replace it.
    """
    measured = made.metrics
    value = {
        "tflops": measured.tflops if measured.tflops is not None else measured.logged_tflops,
        "logged": measured.logged_tflops,
        "tokens": measured.tokens,
        "step": measured.seconds,
    }[expected.metric]
    words = METRICS[expected.metric]
    if expected.metric == "tflops" and measured.tflops is None:
        words = METRICS["logged"]
    if value is None:
        return Verdict(made.subject.name, False, None, f"the log gives no {words}")
    slower = expected.metric == "step"
    bound = expected.value * (1 + expected.tolerance if slower else 1 - expected.tolerance)
    passed = value <= bound if slower else value >= bound
    change = value / expected.value - 1
    return Verdict(
        made.subject.name,
        passed,
        value,
        f"{value:,.4g} {words}, {change:+.1%} of the expected {expected.value:g} "
        f"({'allowed' if passed else 'not allowed'}: {'+' if slower else '-'}"
        f"{expected.tolerance:.1%}); {measured.window.convention}",
    )


def junit(verdicts: Sequence[Verdict], texts: Sequence[str]) -> str:
    """Return the verdicts as JUnit XML, each with its run's report as output."""
    failed = sum(not one.passed for one in verdicts)
    suite = ET.Element(
        "testsuite", name="performance", tests=str(len(verdicts)), failures=str(failed)
    )
    for one, text in zip(verdicts, texts):
        case = ET.SubElement(suite, "testcase", classname="report", name=one.name)
        if not one.passed:
            ET.SubElement(case, "failure", message=one.message)
        ET.SubElement(case, "system-out").text = _printable(f"{one.message}\n{text}")
    return ET.tostring(suite, encoding="unicode", xml_declaration=True)


def _printable(text: str) -> str:
    """Return text without what XML cannot hold."""
    return "".join(letter for letter in text if letter >= " " or letter in "\n\t")
