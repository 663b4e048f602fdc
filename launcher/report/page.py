"""The report as one HTML page with plots, complete in itself: drawn by Plotly, nothing fetched."""

from __future__ import annotations

import html as escaping
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.errors import UsageError
from launcher.plan.memory import GIB
from launcher.plan.projection import report as projected
from launcher.report import summary
from launcher.report.lines import Iteration
from launcher.report.summary import Report

COLOURS = ("#3b7dd8", "#d9822b", "#3f9c5a", "#b0579b", "#8a6d3b", "#5f6bb3", "#c2504d", "#3aa0a0")
POINTS = 4000  # of a line; more are thinned
BARS = 3000  # of a schedule


def available() -> bool:
    """Say whether the library that draws is installed."""
    return importlib.util.find_spec("plotly") is not None


def html(reports: Sequence[Report]) -> str:
    """Return the page of one or several runs. Raises UsageError where Plotly is not installed."""
    if not available():
        raise UsageError(
            "the page is drawn by Plotly, which this Python does not have: "
            "python3 -m pip install plotly"
        )
    from plotly.offline import get_plotlyjs

    title = ", ".join(made.subject.name for made in reports)[:200]
    charts = "".join(_charts(reports))
    several = f'<div class="wide">{_table_of_runs(reports)}</div>' if len(reports) > 1 else ""
    return _PAGE.format(
        title=escaping.escape(title),
        style=_STYLE,
        script=get_plotlyjs().replace("</script", "<\\/script"),
        several=several,
        runs="".join(map(_run, reports)),
        charts=charts,
    )


def _iterations(made: Report) -> Sequence[Iteration]:
    return made.subject.log.iterations


def _run(made: Report) -> str:
    known = summary.data(made)
    cards = "".join(
        f"<div class=card><b>{escaping.escape(value)}</b><span>{escaping.escape(name)}</span></div>"
        for name, value in _cards(known)
    )
    table = "".join(
        f"<tr><th>{escaping.escape(name)}</th><td>{escaping.escape(words)}</td></tr>"
        for name, words in summary.rows(made)
    )
    found = "".join(
        f"<li><b>{escaping.escape(one.what)}</b> <i>{escaping.escape(one.gain)}</i>"
        f"<p>{escaping.escape(one.evidence)}</p><small>{escaping.escape(one.source)}</small></li>"
        for one in made.findings
    )
    reasons = f"<h3>Why not faster</h3><ol>{found}</ol>" if found else ""
    return (
        f"<section><h2>{escaping.escape(made.subject.name)}</h2><div class=cards>{cards}</div>"
        f'<div class="wide"><table>{table}</table></div>{reasons}</section>'
    )


def _cards(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, key, form in (
        ("tokens/s/GPU", "tokens_per_second_per_gpu", ",.0f"),
        ("model TFLOPS/GPU", "tflops_per_gpu", ",.4g"),
        ("MFU", "mfu", ".1%"),
        ("s a step", "step_seconds", ",.3f"),
        ("goodput", "goodput", ".1%"),
    ):
        if known[key] is not None:
            yield name, format(known[key], form)
    if known["memory"]:
        yield "GiB at most", f"{known['memory'] / GIB:.1f}"


def _table_of_runs(reports: Sequence[Report]) -> str:
    lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in summary.side_by_side(reports, as_markdown=True).splitlines()
    ]
    head = "".join(f"<th>{escaping.escape(cell)}</th>" for cell in lines[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escaping.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines[2:]
    )
    return f"<table class=runs><tr>{head}</tr>{body}</table>"


def _charts(reports: Sequence[Report]) -> Iterator[str]:
    """Draw every plot that the runs have data for."""
    yield _figure("Step time, s", _step_time(reports))
    yield _figure("Throughput, tokens/s/GPU", _throughput(reports))
    yield _figure("TFLOPS/GPU, as logged", _series(reports, lambda one: one.tflops))
    yield _figure("Losses", _losses(reports))
    yield _figure("Gradient norm", _series(reports, lambda one: one.fields.get("grad norm")))
    rates = {one.fields.get("learning rate") for made in reports for one in _iterations(made)}
    if len(rates) > 2:
        rate = _series(reports, lambda one: one.fields.get("learning rate"))
        yield _figure("Learning rate", rate)
    yield _figure("Memory at most, GiB", _memory(reports))
    for made in reports:
        name = f": {made.subject.name}" if len(reports) > 1 else ""
        yield _figure(f"Stage memory, GiB{name}", _stage_memory(made), x="pipeline stage")
        traces, axis = _schedule(made)
        yield _figure(f"Pipeline schedule{name}", traces, x=axis, bars=True)


def _figure(title: str, traces: list[Any], x: str = "iteration", bars: bool = False) -> str:
    if not traces:
        return ""
    from plotly import graph_objects as go
    from plotly import io

    figure = go.Figure(traces)
    figure.update_layout(
        height=340,
        margin={"l": 56, "r": 12, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="closest",
        barmode="overlay" if bars else "group",
        bargap=0.15,
    )
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(automargin=True)
    if bars:
        figure.update_yaxes(title="stage", autorange="reversed", dtick=1)
    drawn = io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        default_width="100%",
        config={"responsive": True, "displaylogo": False, "displayModeBar": False},
    )
    return f"<figure><figcaption>{escaping.escape(title)}</figcaption>{drawn}</figure>"


def _line(x: list[Any], y: list[Any], name: str, place: int, **more: Any) -> Any:
    from plotly import graph_objects as go

    step = max(1, len(x) // POINTS)
    return go.Scatter(
        x=x[::step], y=y[::step], name=name, mode="lines",
        line={"color": COLOURS[place % len(COLOURS)], "width": 1.6}, **more,
    )  # fmt: skip


def _step_time(reports: Sequence[Report]) -> list[Any]:
    from plotly import graph_objects as go

    traces = []
    for place, made in enumerate(reports):
        iterations = made.subject.log.iterations
        excluded = made.metrics.window.excluded
        timed = [(at, one) for at, one in enumerate(iterations) if one.seconds is not None]
        counted = [one for at, one in timed if at not in excluded]
        left_out = [(excluded[at], one) for at, one in timed if at in excluded]
        name = made.subject.name if len(reports) > 1 else "counted"
        if counted:
            traces.append(
                _line(
                    [one.number for one in counted], [one.seconds for one in counted], name, place
                )
            )
        if left_out:
            traces.append(
                go.Scatter(
                    x=[one.number for _, one in left_out],
                    y=[one.seconds for _, one in left_out],
                    text=[why for why, _ in left_out],
                    hovertemplate="%{x}: %{y:.3f} s, %{text}<extra></extra>",
                    name="left out",
                    mode="markers",
                    marker={
                        "symbol": "x-thin-open",
                        "size": 8,
                        "color": COLOURS[(place + (len(reports) == 1)) % len(COLOURS)],
                    },
                    showlegend=place == 0,
                )
            )
    return traces


def _throughput(reports: Sequence[Report]) -> list[Any]:
    def rate(made: Report, one: Iteration) -> float | None:
        step, gpus = made.metrics.tokens_a_step, made.subject.gpus
        if one.tokens is not None:
            return one.tokens
        return step / one.seconds / gpus if step and gpus and one.seconds else None

    return [
        trace
        for place, made in enumerate(reports)
        for trace in _drawn(made, place, len(reports), lambda one, made=made: rate(made, one))
    ]


def _series(reports: Sequence[Report], read: Any) -> list[Any]:
    return [
        trace
        for place, made in enumerate(reports)
        for trace in _drawn(made, place, len(reports), read)
    ]


def _drawn(made: Report, place: int, runs: int, read: Any, name: str = "") -> list[Any]:
    pairs = [(one.number, read(one)) for one in made.subject.log.iterations]
    pairs = [(x, y) for x, y in pairs if y is not None]
    # A flat line of zeros (a CPU's TFLOPS) says nothing.
    if not any(y for _, y in pairs):
        return []
    title = name or made.subject.name
    shown = bool(name) or runs > 1
    return [_line([x for x, _ in pairs], [y for _, y in pairs], title, place, showlegend=shown)]


def _losses(reports: Sequence[Report]) -> list[Any]:
    traces: list[Any] = []
    for made in reports:
        names = dict.fromkeys(
            name
            for one in made.subject.log.iterations[:100]
            for name in one.fields
            if "loss" in name and name != "loss scale"
        )
        if any(one.loss is not None for one in made.subject.log.iterations[:100]):
            names.setdefault("lm loss")
        for name in names:
            title = f"{made.subject.name}: {name}" if len(reports) > 1 else name

            def value(one: Iteration, name: str = name) -> float | None:
                return one.fields.get(name, one.loss if name == "lm loss" else None)

            traces += _drawn(made, len(traces), len(reports), value, title)
    return traces


def _memory(reports: Sequence[Report]) -> list[Any]:
    traces = []
    for place, made in enumerate(reports):
        found = sorted((at, peak / GIB) for at, peak in made.subject.log.memory.items() if peak)
        if found:
            name = made.subject.name if len(reports) > 1 else "measured"
            traces.append(
                _line([x for x, _ in found], [y for _, y in found], name, place, showlegend=True)
            )
            traces[-1].mode = "lines+markers"
    return traces


def _stage_memory(made: Report) -> list[Any]:
    from plotly import graph_objects as go

    stages_ = made.metrics.memory_by_stage
    if not stages_:
        return []
    x = list(range(len(stages_)))
    traces = [
        go.Bar(
            x=x, y=[planned / GIB for _, planned in stages_], name="planned",
            marker={"color": COLOURS[0]},
        )
    ]  # fmt: skip
    if any(measured for measured, _ in stages_):
        traces.append(
            go.Bar(
                x=x, y=[measured / GIB if measured else None for measured, _ in stages_],
                name="measured", marker={"color": COLOURS[1]},
            )
        )  # fmt: skip
    return traces


def _schedule(made: Report) -> tuple[list[Any], str]:
    """Return the plot of the pipeline's schedule and the name of its axis."""
    from plotly import graph_objects as go

    planned = made.subject.planned
    if planned is None or planned.shape.parallel.pipeline < 2:
        return [], ""
    try:
        spans, unit = projected.timeline(planned, made.subject.site, BARS)
    except (ValueError, ArithmeticError, LookupError):
        return [], ""
    traces = []
    for backward, name, colour in ((False, "forward", COLOURS[0]), (True, "backward", COLOURS[2])):
        chosen = [one for one in spans if one.backward == backward]
        traces.append(
            go.Bar(
                x=[one.end - one.start for one in chosen],
                y=[one.rank for one in chosen],
                base=[one.start for one in chosen],
                customdata=[[one.micro_batch, one.chunk] for one in chosen],
                hovertemplate="micro-batch %{customdata[0]}, chunk %{customdata[1]}"
                f"<extra>{name}</extra>",
                orientation="h",
                name=name,
                marker={"color": colour, "line": {"width": 0}},
            )
        )
    return traces, f"time, in {unit}"


_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--quiet:#5b6675;--paper:#fff;--card:#f3f5f8;
--grid:#dde2e9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--quiet:#a3adba;--paper:#14181e;
--card:#1e242c;--grid:#343c47}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1240px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.2em 0 .6em}h2{font-size:1.15rem}h3{font-size:1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px}
.card{background:var(--card);border-radius:8px;padding:10px 12px}
.card b{display:block;font-size:1.35rem}.card span{color:var(--quiet);font-size:.85rem}
.wide{overflow-x:auto;margin:14px 0}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:4px 10px 4px 0;border-bottom:1px solid var(--grid)}
th{color:var(--quiet);font-weight:600;white-space:nowrap}
table.runs{white-space:nowrap;font-size:.85rem}
li{margin-bottom:.6em}li p{margin:.1em 0}li i{color:var(--quiet);font-style:normal}
small{color:var(--quiet)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:16px}
figure{margin:0;background:var(--card);border-radius:8px;padding:10px;min-width:0;overflow:hidden}
figcaption{font-weight:600;margin-bottom:4px}
.js-plotly-plot .xtick text,.js-plotly-plot .ytick text,.js-plotly-plot .xtitle,
.js-plotly-plot .ytitle,.js-plotly-plot .legendtext{fill:var(--ink)!important}
.js-plotly-plot .gridlayer path,.js-plotly-plot .zerolinelayer path{stroke:var(--grid)!important}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style><script>{script}</script></head>
<body><h1>Training report</h1>{several}{runs}<div class="charts">{charts}</div></body></html>
"""
