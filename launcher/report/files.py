"""The report that is left in a run's directory: report.txt, report.json, report.html."""

from __future__ import annotations

import subprocess
from pathlib import Path

from launcher import ROOT
from launcher.report import page, subject, summary, trace, trackers


def write(run: Path, python: Path) -> list[str]:
    """Write a run's report into its directory; return the lines for the terminal.

    The numbers are added to TensorBoard and W&B where the run has them on. `python` does both, and
    draws the page, where this Python has no Plotly. A report that fails is only a warning, because
    the run itself is over and its exit status stands.
    """
    try:
        made = summary.report(subject.read(run))
        text = summary.text(made)
        (run / "report.json").write_text(summary.as_json([made]) + "\n", encoding="utf-8")
        lines = [f"  {line}" for line in text.splitlines()]
        for path in trace.find(run)[:1]:
            profile = trace.read(path)
            if profile is not None:
                lines += [f"  {line}" for line in trace.lines(profile)]
        (run / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if page.available():
            (run / "report.html").write_text(page.html([made]), encoding="utf-8")
            lines += [f"  {line}" for line in trackers.record(made)]
        elif not _finished_by(python, run):
            lines.append("  note: report.html is drawn by Plotly, which is not installed here")
    except Exception as error:
        return [f"warning: no report: {error}"]
    return lines


def _finished_by(python: Path, run: Path) -> bool:
    if not python.is_file():
        return False
    words = [str(python), str(ROOT / "launcher" / "__main__.py"), "report", str(run)]
    done = subprocess.run(
        [*words, "--html", str(run / "report.html"), "--track"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
