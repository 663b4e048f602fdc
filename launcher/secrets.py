"""Secrets: which variables hold one, and the check before anything is printed or written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping

from launcher.errors import UsageError

SECRETS = ("WANDB_API_KEY", "HF_TOKEN")  # never written to a file, a log or the terminal
SHORTEST = 8  # characters; a shorter text is too common to be looked for
# NCCL_IB_PKEY and TOKENIZER_MODEL are none.
_LIKE = re.compile(
    r"(^|_|API|ACCESS|PRIVATE)(KEY|TOKEN|SECRET|CREDENTIAL|JWT)S?(_ID)?$|(^|_)SECRETS?_|PASSW(OR)?D|PASSPHRASE",
    re.IGNORECASE,
)

# What a job's own account of its environment leaves out: a variable with one of these in its name.
WORDS = ("KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL", "JWT")
# A user's name or password in a URL, or before the host of a proxy; extended syntax, as sed has it.
IN_URL = "(://)([^/@[:space:]]*|[^@[:space:]]*:[^[:space:]]*)@"
IN_PROXY = "^([[:alnum:]_]*_[pP][rR][oO][xX][yY]=)[^/]*@"
_CLASSES = {"[:space:]": r"\s", "[:alnum:]": "0-9A-Za-z"}  # of sed's syntax, in Python's


def is_secret(name: str, text: str = "") -> bool:
    """Say whether a variable's name, or a URL in its value, tells that it must stand in no file."""
    if name in SECRETS or _LIKE.search(name):
        return True
    if "@" not in text:
        return False
    return any(re.search(_python(pattern), f"{name}={text}") for pattern in (IN_URL, IN_PROXY))


def _python(pattern: str) -> str:
    for theirs, ours in _CLASSES.items():
        pattern = pattern.replace(theirs, ours)
    return pattern


def values(environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the forms in which each secret of an environment may stand in a text.

    A path is no secret, unless its variable is one of SECRETS.
    """
    return {
        name: _forms(text)
        for name, text in environ.items()
        if len(text) >= SHORTEST and is_secret(name)
        if name in SECRETS or not text.startswith(("/", "~"))
    }


def _forms(text: str) -> tuple[str, ...]:
    """Return a text as it is, and as JSON, Python and a shell quote it."""
    written = (text, json.dumps(text)[1:-1], repr(text)[1:-1], shlex.quote(text).strip("'"))
    return tuple(dict.fromkeys(written))


def within(text: str, environ: Mapping[str, str]) -> str | None:
    """Return the name of a secret whose value is part of a text."""
    for name, forms in values(environ).items():
        if any(form in text for form in forms):
            return name
    return None


def check(text: str, environ: Mapping[str, str], where: str) -> None:
    """Raise UsageError where a text holds the value of a secret; `where` says what the text is."""
    name = within(text, environ)
    if name:
        raise UsageError(
            f"the value of {name} would become part of {where}; keep it in the environment only"
        )


def hidden(text: str, environ: Mapping[str, str]) -> str:
    """Return a text with the names of secrets in the place of their values."""
    for name, forms in values(environ).items():
        for form in forms:
            text = text.replace(form, f"<{name}>")
    return text
