"""The training entry that torchrun starts; without a GPU it trains on the CPU.

TRAINING_SCRIPT_PATH, if that file exists, is run as it is (usually $MEGATRON_PATH/pretrain_gpt.py).
Otherwise the GPT training below runs, with megatron from $MEGATRON_PATH or as it is installed.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

_STARTED = time.time()


def main() -> None:
    """Run the training script that the environment names, or Megatron's GPT training."""
    script = Path(os.environ.get("TRAINING_SCRIPT_PATH", "")).absolute()
    has_script = script.is_file()
    _set_search_path(os.environ.get("MEGATRON_PATH", ""), script.parent if has_script else None)

    if not has_script or script.name == "pretrain_gpt.py":
        _leave_out_unused_packages()

    from launcher.megatron import cpu_device

    cpu_device.install()
    try:
        if has_script:
            sys.argv[0] = str(script)
            runpy.run_path(str(script), run_name="__main__")
        else:
            from launcher.megatron import gpt

            gpt.train(_STARTED)
    except SystemExit as end:  # Megatron leaves so at --exit-interval and the like
        if end.code:
            raise
    _leave_process_group()


def _set_search_path(megatron: str, script_folder: Path | None) -> None:
    """Put $MEGATRON_PATH first, then the script's folder, and this repository last.

    The folder of this file, which Python puts first, would hide nothing but serves no import.
    """
    own = Path(__file__).resolve().parent
    rest = [entry for entry in sys.path if Path(entry or ".").resolve() != own]
    first = [megatron] if megatron and Path(megatron).is_dir() else []
    sys.path[:] = [*first, *([str(script_folder)] if script_folder else []), *rest]
    if str(own.parents[1]) not in sys.path:
        sys.path.append(str(own.parents[1]))


def _leave_out_unused_packages() -> None:
    """Hide packages that Megatron imports where it finds them, when the job cannot use them.

    Together they cost every rank a second, which counts when a job is a few iterations long.
    """
    if not any(argument.startswith("--wandb-project") for argument in sys.argv):
        sys.modules.setdefault("wandb", None)
    if "NullTokenizer" in sys.argv:
        sys.modules.setdefault("transformers", None)


def _leave_process_group() -> None:
    """Destroy the process group, which otherwise complains when the interpreter ends."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
