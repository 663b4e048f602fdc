"""What the tests share."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# A shell's background jobs ignore Ctrl-C, and all that they start; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def yaml_model(tmp_path: Path):
    """Return a function that writes a model YAML and gives its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
