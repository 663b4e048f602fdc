"""What differs between two runs: results first, then arguments, environment and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.config.arguments import quote
from launcher.report.subject import Subject
from launcher.report.summary import Report, data

RESULTS = {
    "step_seconds": "step time, s",
    "tokens_per_second_per_gpu": "tokens/s/GPU",
    "tflops_per_gpu": "TFLOPS/GPU",
    "logged_tflops_per_gpu": "logged TFLOPS/GPU",
    "mfu": "MFU",
    "memory": "max allocated, bytes",
    "goodput": "goodput",
    "loss": "lm loss",
    "iteration": "iteration",
}
# These name the run, so they always differ.
OWN = {"TIMESTAMP", "--wandb-exp-name", "--tensorboard-dir", "--save", "--load", "--wandb-save-dir"}


def diff(first: Report, second: Report) -> str:
    """Return the differences, one on each line, with the second run's change in percent."""
    lines = [f"a  {first.subject.path}", f"b  {second.subject.path}"]
    for title, found in (
        ("results", _results(first, second)),
        ("arguments", _changes(_arguments(first.subject), _arguments(second.subject))),
        ("settings", _changes(first.subject.settings, second.subject.settings)),
        ("environment", _changes(first.subject.environment, second.subject.environment)),
        ("versions", _changes(first.subject.versions, second.subject.versions)),
    ):
        lines += [title, *(f"  {line}" for line in found or ["the same"])]
    return "\n".join(lines)


def _results(first: Report, second: Report) -> list[str]:
    before, after = data(first), data(second)
    lines = []
    for key, title in RESULTS.items():
        a, b = before[key], after[key]
        if a is None and b is None:
            continue
        change = f"  {b / a - 1:+.1%}" if a and b is not None else ""
        lines.append(f"{title:22}{_number(a):>16} → {_number(b)}{change}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"


def _arguments(subject: Subject) -> Mapping[str, str]:
    return {
        flag: " ".join(quote(word) for word in one.values) or "on"
        for flag, one in subject.arguments.items()
    }


def _changes(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    return list(_lines(first, second))


def _lines(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name, "-"), second.get(name, "-")
        if a != b and name not in OWN:
            yield f"{name}  {a} → {b}"
