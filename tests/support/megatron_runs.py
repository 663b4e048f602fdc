"""Starting Megatron for the tests of conversion: a job's arguments, and logits of many cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.launching import ROOT, preview

LOGITS = Path(__file__).with_name("megatron_logits.py")
ENTRY = str(ROOT / "launcher" / "megatron" / "pretrain.py")


@dataclass(frozen=True)
class Case:
    """A checkpoint and the job that loads it; `words` are further Megatron arguments."""

    name: str
    model: Path
    load: Path
    words: tuple[str, ...] = ()
    sizes: tuple[tuple[str, str], ...] = ()  # TP, PP, EP, VPP
    release: str = "0.19"


def arguments(case: Case, output: Path) -> list[str]:
    """The Megatron arguments of the launcher's local job, as its preview prints them."""
    # Megatron's default, and the models', is to go on without what it does not find.
    command = preview(
        (*case.words, "--dist-ckpt-strictness", "raise_unexpected"),
        MODEL=str(case.model),
        CLUSTER="local",
        OUTPUT_PATH=str(output),
        LOAD_PATH=str(case.load),
        MBS="1",
        GBS="8",
        SEQ_LEN="32",
        **dict(case.sizes),
    ).command
    return command[command.index(ENTRY) + 1 :]


def megatron_logits(
    cases: Sequence[Case], tokens: torch.Tensor, folder: Path, ranks: int
) -> dict[str, dict[str, Any]]:
    """Megatron's logits of each case by its name, from one start of that many ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tokens, folder / "tokens.pt")
    described = [
        {
            "argv": arguments(case, folder),
            "release": case.release,
            "tokens": str(folder / "tokens.pt"),
            "out": str(folder / f"{number}.pt"),
        }
        for number, case in enumerate(cases)
    ]
    (folder / "cases.json").write_text(json.dumps(described), encoding="utf-8")
    command = [sys.executable, str(LOGITS), str(ranks), str(folder / "cases.json")]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        **kept,
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    (folder / "log").write_text(done.stdout, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-8000:]
    assert "load_return" not in done.stdout, "a legacy checkpoint was loaded, but not strictly"
    return {case.name: torch.load(folder / f"{n}.pt") for n, case in enumerate(cases)}
