"""The one kind of failure that a user sees: a single line, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Something the user wrote cannot work; the message says what, what is allowed, and where."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean A or B?' for the names nearest to `word`, or '' when none is near."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(lowered[name] for name in near)}?" if near else ""
