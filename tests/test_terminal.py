"""What is printed fits its terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys

import pytest

from launcher import terminal
from tests.support.launching import ROOT

ROWS = [
    ("run", "state", "folder"),
    ("a-rather-long-name", "RUNNING", "/a/folder/of/some/length"),
    ("b", "ENDED", "/b"),
]


def test_a_table_is_no_wider_than_asked():
    wide = terminal.table(ROWS)
    assert "a-rather-long-name  RUNNING  /a/folder/of/some/length" in wide
    narrow = terminal.table(ROWS, 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert "/a/folder/of/some/length" in narrow
    assert "b                   ENDED    /b" in narrow
    assert max(map(len, terminal.table(ROWS, 24).splitlines()[:2])) <= 24


def test_a_long_line_is_folded_at_words_and_a_bar_gives_way():
    assert terminal.fold("a b c", None) == "a b c"
    folded = terminal.fold("  memory     " + "word " * 30, 60)
    assert all(len(line) <= 60 for line in folded.splitlines())
    assert folded.splitlines()[1].startswith(" " * 13 + "word")
    assert terminal.fold("stage 0  50 GiB ████···· over", 22) == "stage 0  50 GiB over"


def test_ascii_where_the_encoding_has_no_more():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    with contextlib.redirect_stdout(stream), terminal.prepared({}):
        print("2 × 8 → 16 … ✓ é \udcff")
        sys.stdout.flush()
    assert raw.getvalue() == b"2 x 8 -> 16 ... ok \\xe9 \xff\n"


@pytest.mark.parametrize(("variables", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_errors_are_coloured_on_a_terminal(variables: dict[str, str], colour: bool):
    reader, writer = pty.openpty()
    environ = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launcher/__main__.py"), "nothing"],
        env={**environ, **variables}, stderr=writer, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    os.close(writer)
    said = os.read(reader, 10000).decode()
    os.close(reader)
    assert done.returncode == 1
    assert said.startswith("\x1b[31merror\x1b[0m: unknown" if colour else "error: unknown")
