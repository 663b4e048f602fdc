"""The page in a real browser: no error, no request, no overflow, at desktop and phone width."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.report import page, subject, summary, trace
from tests.report.runs import make, steady_log

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEMORY = "[Rank {}] (after {} iterations) memory (MB) | allocated: 30000.0 | max allocated: {}.0 | reserved: 41000.0 | max reserved: 62000.0\n"
# Errors are collected from the first line on; what the page measures of itself goes to the frame.
SEEN = "<script>seen=[];onerror=m=>{seen.push(String(m))};console.error=(...a)=>{seen.push(a.join(' '))}</script>"
PROBE = """<script>addEventListener('load',()=>setTimeout(()=>{const d=document.documentElement,
box=e=>e.getBoundingClientRect();parent.postMessage(JSON.stringify({errors:seen,
width:innerWidth,overflow:d.scrollWidth-d.clientWidth,
plots:[...document.querySelectorAll('figure')].map(f=>f.querySelector('.main-svg')!==null),
wide:[...document.querySelectorAll('figure')].filter(f=>box(f.querySelector('.main-svg')).right
>box(f).right+1).length,requests:performance.getEntriesByType('resource').map(r=>r.name),
ink:getComputedStyle(document.body).color,
tick:getComputedStyle(document.querySelector('.xtick text')).fill}),'*')},300))</script>"""
FRAMES = """<body style="margin:0">%s<script>onmessage=e=>{const p=document.createElement('pre');
p.className='found';p.textContent=e.data;document.body.append(p)}</script>"""


def look(folder: Path, pages: Sequence[tuple[str, int]], dark: bool) -> list[dict]:
    """Open pages in frames of their widths, and return what each says of itself, by width."""
    frames = ""
    for number, (text, width) in enumerate(pages):
        text = text.replace("<head>", f"<head>{SEEN}", 1).replace("</body>", f"{PROBE}</body>")
        (folder / f"page{number}.html").write_text(text)
        frames += f'<iframe src="page{number}.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (folder / "frames.html").write_text(FRAMES % frames)
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-quic", "--disable-sync",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            "--virtual-time-budget=8000", "--dump-dom", f"file://{folder / 'frames.html'}",
        ],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    found = re.findall(r'<pre class="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert len(found) == len(pages), done.stderr[-2000:]
    return sorted((json.loads(html.unescape(one)) for one in found), key=lambda one: one["width"])


def report(folder: Path, name: str, **changed: object) -> summary.Report:
    flags = {"--pipeline-model-parallel-size": 2, "--expert-model-parallel-size": 8}
    log = steady_log(21.0, 60) + "".join(
        MEMORY.format(rank, after, 60_000 + after) for rank in (0, 8) for after in (1, 2, 30)
    )
    return summary.report(subject.read(make(folder / name, log, {**flags, **changed})))


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(tmp_path: Path, dark: bool):
    pytest.importorskip("plotly")
    reports = [report(tmp_path, f"a-run-with-a-rather-long-name-{n}") for n in range(2)]
    one, two = page.html(reports[:1]), page.html(reports)
    phone, desktop = look(tmp_path, [(two, 1280), (one, 390)] if dark else [(one, 1280), (two, 390)], dark)  # fmt: skip
    assert (phone["width"], desktop["width"]) == (390, 1280)
    for seen, runs in ((phone, 1 if dark else 2), (desktop, 2 if dark else 1)):
        assert seen["errors"] == []
        assert seen["requests"] == []
        assert seen["overflow"] <= 0
        assert seen["wide"] == 0
        # Step time, throughput, TFLOPS, losses, gradient norm, memory; stages and schedule of each.
        assert seen["plots"] == [True] * (6 + 2 * runs)
        ink = "rgb(230, 233, 238)" if dark else "rgb(29, 36, 48)"
        assert (seen["ink"], seen["tick"]) == (ink, ink)


@pytest.mark.slow
def test_names_cannot_become_markup_and_nothing_comes_from_elsewhere(tmp_path: Path):
    pytest.importorskip("plotly")
    text = page.html([report(tmp_path, "<img src=x onerror=alert(1)>")])
    outside = "".join(part.partition("</script>")[2] for part in text.split("<script"))
    assert "Stage memory" in text
    assert "<img src=x" not in text
    assert not re.search(r"(src|href)=.https?:", outside)


def test_a_profile(tmp_path: Path):
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 600},
        {"ph": "X", "cat": "kernel", "name": "ncclDevKernel_AllGather", "ts": 500, "dur": 300},
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 900, "dur": 100},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 5000},
    ]
    path = tmp_path / "rank0.pt.trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert trace.find(tmp_path) == [path]
    found = trace.read(path)
    assert found.kernels[0] == ("gemm", pytest.approx(700e-6), 2)
    assert (found.span, found.communication) == (pytest.approx(1e-3), pytest.approx(300e-6))
    assert found.exposed == pytest.approx(200e-6)
    assert "exposed 20.0%" in trace.lines(found)[0]
    assert "waits for the CPU" not in "".join(trace.lines(found))


def test_a_profile_of_small_kernels(tmp_path: Path):
    kernel = {"ph": "X", "cat": "kernel", "name": "add", "dur": 4}
    events = [{**kernel, "ts": 10 * number} for number in range(100)]
    path = tmp_path / "rank0.pt.trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    found = trace.read(path)
    assert found.idle == pytest.approx(1 - 400 / 994)
    assert "half of its 100 kernels take less than 4 µs" in trace.lines(found)[1]
