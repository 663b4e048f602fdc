"""The one kind of error that a user sees: a single line without a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(Exception):
    """Something the user wrote cannot work. The message says what, and where."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean A or B?' with the names nearest to `word`, or '' where none is near."""
    import difflib  # only mistakes need it

    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(lowered[name] for name in near)}?" if near else ""
