"""Running a conversion as its scripts do, but in this process: imports cost more than tiny models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.convert.__main__ import main
from tests.support.tiny_models import MODELS, yaml_name


def convert(
    source: Path, target: Path, yaml: Path, kind: str, words: Sequence[str] = (), **sizes: str
) -> None:
    """Convert a published model to Megatron's "torch_dist" or "legacy" format; it must succeed.

    The job is a cluster's, so the names are those of Transformer Engine's modules.
    """
    _run(yaml, words, SOURCE_CKPT_PATH=source, TARGET_CKPT_PATH=target, FORMAT=kind, **sizes)


def convert_back(
    source: Path, target: Path, like: Path, yaml: Path, words: Sequence[str] = (), **sizes: str
) -> None:
    """Convert a Megatron checkpoint to Hugging Face's format, with the small files of `like`."""
    _run(yaml, words, SOURCE_CKPT_PATH=source, TARGET_CKPT_PATH=target, LIKE_PATH=like, **sizes)


def _run(yaml: Path, words: Sequence[str], **variables: object) -> None:
    (tiny,) = (tiny for name, tiny in MODELS.items() if yaml_name(name) == yaml.name)
    environ = {
        **{key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ},
        "MODEL": str(yaml),
        "MCORE_RELEASE_VERSION": tiny.release,
        "OUTPUT_PATH": "/output",
        **{key: str(value) for key, value in variables.items()},
    }
    assert main([tiny.table, *words], environ) == 0, "its error is on stderr"
