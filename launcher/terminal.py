"""What is printed: in colour on a terminal, as wide as it is, in its encoding, without secrets."""

from __future__ import annotations

import codecs
import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher import secrets

COLOURS = {"error": "31", "warning": "33", "FAILED": "31", "✗": "31", "✓": "32"}
_BAR = re.compile(r" +[█·]+( over)?$")
_MARK = re.compile(r"^(\s*)(error|warning|FAILED|✗|✓)(?=:| |$)", re.MULTILINE)
# What stands for a character that a terminal's encoding does not have.
PLAIN = {
    "×": "x",
    "→": "->",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
    "·": ".",
    "█": "#",
    "–": "-",
    "✓": "ok",
    "✗": "no",
    "−": "-",
    "“": '"',
    "”": '"',
    "’": "'",
    "│": "|",
    "─": "-",
}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what an encoding lacks; a byte that was never text stays the byte that it was."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error("plain", _plain)


class _Stream:
    """A stream whose text is without secrets and, on a terminal, in colour."""

    def __init__(self, stream: Any, environ: Mapping[str, str]) -> None:
        self._stream, self._environ = stream, environ
        self._coloured = stream.isatty() and not environ.get("NO_COLOR")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")

    def write(self, text: str) -> int:
        shown = secrets.hidden(text, self._environ)
        if self._coloured:
            shown = _MARK.sub(_in_colour, shown)
        self._stream.write(shown)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _in_colour(mark: re.Match[str]) -> str:
    return f"{mark[1]}\x1b[{COLOURS[mark[2]]}m{mark[2]}\x1b[0m"


@contextlib.contextmanager
def prepared(environ: Mapping[str, str]) -> Iterator[None]:
    """Within this, everything printed is without the secrets of an environment."""
    stdout, stderr = _Stream(sys.stdout, environ), _Stream(sys.stderr, environ)
    # A stream in both senses but for its class.
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):  # type: ignore[type-var]
        yield


def width(stream: Any) -> int | None:
    """Return the columns of a stream's terminal; None where it is no terminal."""
    if not stream.isatty():
        return None
    import shutil  # only for people

    return shutil.get_terminal_size().columns


def table(rows: Sequence[Sequence[str]], most: int | None = None) -> str:
    """Return rows as columns, no wider than `most`: the last column then follows on lines below.

    The first row has the names of the columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    if most is None or sum(widths) + 2 * len(widths) - 2 <= most:
        lines = ["  ".join(f"{cell:{size}}" for cell, size in zip(row, widths)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)
    first, last = [row[:-1] for row in rows], [row[-1] for row in rows]
    room = most - sum(widths[:-1]) - 2 * (len(widths) - 2)
    if room < 0:  # the widest column gives way
        widest = max(range(len(widths) - 1), key=widths.__getitem__)
        kept = max(8, widths[widest] + room)
        first = [[*row[:widest], _cut(row[widest], kept), *row[widest + 1 :]] for row in first]
    lines = []
    for line, rest in zip(table(first).splitlines(), last):
        size = sum(max(map(len, column)) + 2 for column in zip(*first))
        if size + len(rest) <= most:
            lines.append(f"{line:{size}}{rest}".rstrip())
        elif not lines:
            lines.append(line)  # the names of the columns
        else:
            lines += [line, *fold(f"    {rest}", most, 4).splitlines()]
    return "\n".join(lines)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def fold(text: str, most: int | None, indent: int = 13) -> str:
    """Return lines no longer than `most`, later ones of a paragraph indented; words stay whole."""
    if most is None:
        return text
    import textwrap  # only for people

    lines = []
    for line in text.splitlines():
        if len(line) > most:
            line = _BAR.sub(r"\1", line)  # a picture gives way first
        if len(line) <= most:
            lines.append(line)
            continue
        lines += textwrap.wrap(
            line, max(most, 2 * indent), subsequent_indent=" " * indent,
            break_long_words=False, break_on_hyphens=False, drop_whitespace=True,
        )  # fmt: skip
    return "\n".join(lines)


def to_terminal(text: str, stream: Any = None) -> str:
    """Return a text folded to the terminal of a stream (stdout); unchanged for a file or a pipe."""
    return fold(text, width(stream or sys.stdout))
