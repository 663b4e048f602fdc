"""The report of one run as data, and as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.plan.memory import GIB
from launcher.plan.projection.anchor import Expectation
from launcher.report import metrics as measuring
from launcher.report.compare import Comparison, compare, expect, reached
from launcher.report.findings import Finding, findings
from launcher.report.metrics import Metrics, measure
from launcher.report.subject import Subject

SHOWN = 6  # findings in the text


@dataclass(frozen=True)
class Report:
    """One run with everything that is said of it."""

    subject: Subject
    metrics: Metrics
    expectation: Expectation | None
    comparison: Comparison | None
    findings: tuple[Finding, ...]


def report(subject: Subject, convention: str = "steady") -> Report:
    """Work out the report of one run. Raises UsageError where the convention is unknown."""
    measured = measure(subject, convention)
    expected = expect(subject)
    return Report(
        subject,
        measured,
        expected,
        compare(subject, measured),
        tuple(findings(subject, measured, expected)),
    )


def data(made: Report) -> dict[str, Any]:
    """Return a report for tools: seconds, bytes, tokens a second and GPU, TFLOPS a GPU."""
    subject, measured, log = made.subject, made.metrics, made.subject.log
    newest = log.newest
    return {
        "run": str(subject.path),
        "model": subject.model,
        "gpu": subject.gpu,
        "gpus": subject.gpus,
        "status": subject.status,
        "iteration": newest.number if newest else None,
        "iterations": newest.total if newest else None,
        "logged_iterations": log.logged,
        "restarts": log.life,
        "loss": newest.loss if newest else None,
        "window": {
            "convention": measured.window.convention,
            "counted": len(measured.window.counted),
            "excluded": measuring.exclusions(measured.window),
        },
        "step_seconds": measured.seconds,
        "step_seconds_p10_p90": list(measured.spread) if measured.spread else None,
        "global_batch_size": measured.batch,
        "sequence_length": subject.sequence,
        "tokens_per_second_per_gpu": measured.tokens,
        "tflops_per_gpu": measured.tflops,
        "logged_tflops_per_gpu": measured.logged_tflops,
        "flops_per_token": measured.flops_per_token,
        "logged_flops_per_token": measured.logged_flops_per_token,
        "convention": measured.convention,
        "precision": measured.precision,
        "peak_tflops": measured.peak_tflops,
        "mfu": measured.mfu,
        "hfu": measured.hfu,
        "memory": measured.memory,
        "planned_memory": measured.planned_memory,
        "gpu_memory": measured.gpu_memory,
        "wall_seconds": measured.wall,
        "goodput": measured.goodput,
        "lost_seconds": measured.lost,
        "seconds_left": measured.seconds_left,
        "tokens_left": measured.tokens_left,
        "projection": _projection(made),
        "published": _published(made.comparison),
        "findings": [
            {
                "what": one.what,
                "evidence": one.evidence,
                "gain": [one.low, one.high],
                "source": one.source,
            }
            for one in made.findings
        ],
    }


def _projection(made: Report) -> dict[str, Any] | None:
    found = made.expectation
    if found is None:
        return None
    return {
        "step_seconds": found.projection.seconds,
        "tokens_per_second_per_gpu": found.projection.tokens,
        "tflops_per_gpu": found.projection.tflops,
        "tflops_per_gpu_low_high": list(found.tflops),
        "ratio": reached(found, made.metrics),
        "by": found.projection.by,
        "anchor": found.anchor.settings["source"] if found.anchor else None,
        "warnings": list(found.warnings),
    }


def _published(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "configuration": comparison.sizes,
        "software": comparison.software,
        "source": comparison.source,
        "tflops_per_gpu": comparison.tflops,
        "tokens_per_second_per_gpu": comparison.tokens,
        "ratio": comparison.ratio,
        "differences": [one.what for one in comparison.differences],
    }


def rows(made: Report) -> list[tuple[str, str]]:
    """Return the report's table: what, and what it is in words."""
    subject, measured, log = made.subject, made.metrics, made.subject.log
    found = [("run", str(subject.path))]
    on_cpu = subject.value("--distributed-backend") == "gloo"
    unit = "ranks on the CPU" if on_cpu else subject.gpu or "GPUs"
    words = [subject.model or "", f"{subject.gpus} {unit}" if subject.gpus else ""]
    words += [measured.precision or "", _parallel(subject)]
    found.append(("job", ", ".join(word for word in words if word)))
    newest = log.newest
    if newest is None:
        return [*found, ("iterations", "none in the log")]
    again = f", {log.life} restart{'s' if log.life > 1 else ''}" if log.life else ""
    loss = f", lm loss {newest.loss:.4f}" if newest.loss is not None else ""
    found.append(("iteration", f"{newest.number} of {newest.total}{loss}{again}"))
    left_out = ", ".join(
        f"{count} {why}" for why, count in measuring.exclusions(measured.window).items()
    )
    found.append(
        (
            "step time",
            f"{_seconds(measured.seconds)}{_spread(measured)}; {measured.window.convention}, "
            f"{len(measured.window.counted)} of {len(log.iterations)} logged"
            + (f" (left out: {left_out})" if left_out else ""),
        )
    )
    if measured.tokens is not None:
        found.append(
            (
                "throughput",
                f"{measured.tokens:,.0f} tokens/s/GPU"
                + (f", GBS {measured.batch} × {subject.sequence} tokens" if measured.batch else ""),
            )
        )
    found += _tflops(measured)
    found += _memory(measured)
    found += _time(measured)
    found += _expected(made)
    found += _comparison(made)
    return found


def _tflops(measured: Metrics) -> list[tuple[str, str]]:
    words = []
    if measured.tflops is not None:
        words.append(f"{_number(measured.tflops)} model TFLOPS/GPU")
    if measured.logged_tflops is not None:
        words.append(f"the log says {_number(measured.logged_tflops)}")
    found = [("TFLOPS", "; ".join(words))] if words else []
    if measured.convention:
        found.append(("", measured.convention))
    if measured.mfu is not None:
        hardware = (
            f"; HFU {measured.hfu:.1%} with what is recomputed"
            if measured.hfu is not None and measured.hfu > measured.mfu
            else ""
        )
        found.append(
            (
                "utilization",
                f"MFU {measured.mfu:.1%} of {measured.peak_tflops:,.0f} dense "
                f"{(measured.precision or '').upper()} TFLOPS{hardware}",
            )
        )
        if measured.mfu > 1:
            found.append(("", "more than the GPU can do: the log, GPU or job is another one"))
    return found


def _memory(measured: Metrics) -> list[tuple[str, str]]:
    if not measured.memory:
        return []
    words = [f"{measured.memory / GIB:.1f} GiB at most (max allocated, fullest rank)"]
    if measured.planned_memory:
        words.append(f"the plan said {measured.planned_memory / GIB:.1f}")
    if measured.gpu_memory:
        words.append(f"the GPU has {measured.gpu_memory / GIB:.0f}")
    return [("memory", "; ".join(words))]


def _time(measured: Metrics) -> list[tuple[str, str]]:
    found = []
    if measured.goodput is not None:
        parts = ", ".join(
            f"{cause} {duration(seconds)}"
            for cause, seconds in measured.lost.items()
            if seconds >= 0.5
        )
        found.append(
            (
                "goodput",
                f"{measured.goodput:.1%} of {duration(measured.wall or 0)}"
                + (f"; lost: {parts}" if parts else ""),
            )
        )
    if measured.seconds_left:
        tokens = f", {measured.tokens_left / 1e9:,.1f}B tokens" if measured.tokens_left else ""
        end = time.strftime("%F %H:%M", time.localtime(time.time() + measured.seconds_left))
        found.append(
            ("left", f"{duration(measured.seconds_left)}{tokens}; {end} if it went on now")
        )
    return found


def _expected(made: Report) -> list[tuple[str, str]]:
    found = made.expectation
    if found is None:
        return []
    low, high = found.tflops
    ratio = reached(found, made.metrics)
    return [
        (
            "projected",
            f"{found.projection.tflops:,.0f} TFLOPS/GPU ({low:,.0f} to {high:,.0f})"
            + (f"; this run reached {ratio:.2f} of it" if ratio is not None else ""),
        ),
        *(("", f"outside of what was measured: {one}") for one in found.warnings),
    ]


def _comparison(made: Report) -> list[tuple[str, str]]:
    near, measured = made.comparison, made.metrics
    if near is None:
        if made.subject.smoke:
            return []
        missing = "" if made.subject.shape else "what the model is"
        missing = missing or ("" if made.subject.gpu else "the GPU (--gpu)")
        text = f"{missing} is not known" if missing else "nothing of this model on this GPU"
        return [("published", text)]
    ratio = f"this run has {near.ratio:.0%} of it" if near.ratio is not None else ""
    found = [
        (
            "published",
            f"{near.tokens:,.0f} tokens/s/GPU ({near.tflops:,.0f} TFLOPS) on {near.sizes}; {ratio}",
        ),
        ("", f"{near.software}: {near.source}"),
    ]
    if near.ratio is not None and measured.seconds:
        for one in near.differences:
            known = (
                f"; was worth {one.effect.low:.0%} to {one.effect.high:.0%}: {one.effect.measured}"
                if one.effect
                else ""
            )
            found.append(("", f"here {one.what}{known}"))
    return found


def text(made: Report) -> str:
    """Return the report for a terminal."""
    table = rows(made)
    width = max(len(name) for name, _ in table)
    lines = [f"{name:{width}}  {words}" for name, words in table]
    for place, one in enumerate(made.findings[:SHOWN], 1):
        head = "reasons" if place == 1 else ""
        lines.append(f"{head:{width}}  {place}. {one.what} ({one.gain}): {one.evidence}")
        lines.append(f"{'':{width}}     {one.source}")
    return "\n".join(lines)


def markdown(made: Report) -> str:
    """Return the report in Markdown."""
    lines = [f"## {made.subject.name}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(words)} |" for name, words in rows(made)]
    if made.findings:
        lines += ["", "| why not faster | expected gain | evidence | source |", "|---|---|---|---|"]
        lines += [
            f"| {one.what} | {one.gain} | {_cell(one.evidence)} | {_cell(one.source)} |"
            for one in made.findings
        ]
    return "\n".join(lines)


# The columns of a table of several runs: title, key of `data`, format.
COLUMNS: Sequence[tuple[str, str, str]] = (
    ("model", "model", ""),
    ("GPU", "gpu", ""),
    ("GPUs", "gpus", "d"),
    ("iteration", "iteration", "d"),
    ("step s", "step_seconds", ".3f"),
    ("tokens/s/GPU", "tokens_per_second_per_gpu", ",.0f"),
    ("TFLOPS/GPU", "tflops_per_gpu", ",.1f"),
    ("logged", "logged_tflops_per_gpu", ",.1f"),
    ("MFU", "mfu", ".1%"),
    ("memory GiB", "memory", "gib"),
    ("goodput", "goodput", ".1%"),
    ("loss", "loss", ".4f"),
)


def side_by_side(reports: Sequence[Report], as_markdown: bool = False) -> str:
    """Return a table of several runs, a line each."""
    table = [["run", *(title for title, _, _ in COLUMNS)]]
    for made in reports:
        known = data(made)
        table.append(
            [made.subject.name, *(_formatted(known[key], form) for _, key, form in COLUMNS)]
        )
    if as_markdown:
        lines = ["| " + " | ".join(row) + " |" for row in table]
        return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in table
    )


def as_csv(reports: Sequence[Report]) -> str:
    """Return one line a run; nested values are left to JSON."""
    known = [
        {name: one for name, one in data(made).items() if not isinstance(one, (dict, list))}
        for made in reports
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(known[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(known)
    return file.getvalue().rstrip("\n")


def as_json(reports: Sequence[Report]) -> str:
    """Return a list of the runs' data."""
    return json.dumps([data(made) for made in reports], indent=2, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Return seconds as D days H:MM:SS, H:MM:SS or M:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _parallel(subject: Subject) -> str:
    if subject.shape is None:
        return ""
    one = subject.shape.parallel
    return f"TP{one.tensor} PP{one.pipeline} CP{one.context} EP{one.expert}"


def _seconds(seconds: float | None) -> str:
    return "no step time in the log" if seconds is None else f"{seconds:.3f} s"


def _spread(measured: Metrics) -> str:
    if not measured.spread:
        return ""
    return f" (10 to 90 %: {measured.spread[0]:.3f} to {measured.spread[1]:.3f})"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _formatted(value: object, form: str) -> str:
    if value is None:
        return "-"
    if form == "gib":
        return f"{value / GIB:.1f}" if isinstance(value, (int, float)) else "-"
    return format(value, form)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def flat(made: Report) -> Mapping[str, float]:
    """Return the numbers of a report under one level of names, for trackers."""
    found = {
        name: float(one)
        for name, one in data(made).items()
        if isinstance(one, (int, float)) and not isinstance(one, bool)
    }
    found.update({f"lost_seconds/{name}": one for name, one in made.metrics.lost.items()})
    return found
