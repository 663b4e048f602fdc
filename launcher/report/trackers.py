"""The report's numbers for TensorBoard and Weights & Biases, where the run has them on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from launcher.report import summary
from launcher.report.summary import Report


def record(made: Report) -> list[str]:
    """Add the numbers to the run's TensorBoard and W&B; return a line about each.

    W&B is off where WANDB_MODE is `disabled`, as it is without a key.
    """
    done = []
    folder = made.subject.value("--tensorboard-dir")
    if folder:
        done.append(_tensorboard(made, Path(folder)))
    project = made.subject.value("--wandb-project")
    if project and os.environ.get("WANDB_MODE") != "disabled":
        done.append(_wandb(made, project))
    return done


def _tensorboard(made: Report, folder: Path) -> str:
    if importlib.util.find_spec("tensorboard") is None:
        return "TensorBoard: not installed here, nothing was added"
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    events: Any = event_pb2  # classes made at import time, unknown to type checkers
    summaries: Any = summary_pb2
    numbers = summary.flat(made)
    newest = made.subject.log.newest
    value = summaries.Summary.Value
    values = [value(tag=f"report/{name}", simple_value=one) for name, one in numbers.items()]
    writer = EventFileWriter(str(folder / "report"))
    step = newest.number if newest else 0
    writer.add_event(events.Event(step=step, summary=summaries.Summary(value=values)))
    writer.close()
    return f"TensorBoard: {len(numbers)} numbers in {folder / 'report'}"


def _wandb(made: Report, project: str) -> str:
    """Add a separate W&B run, in the group of the training; online with WANDB_MODE=online."""
    if importlib.util.find_spec("wandb") is None:
        return "W&B: not installed here, nothing was added"
    import wandb

    folder = made.subject.value("--wandb-save-dir") or str(made.subject.path.parent)
    name = made.subject.value("--wandb-exp-name") or made.subject.name
    run = wandb.init(
        project=project,
        name=f"{name}-report",
        group=name,
        dir=folder,
        mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.summary.update({f"report/{key}": one for key, one in summary.flat(made).items()})
    place = Path(run.dir).parent
    run.finish()
    return f"W&B: the report's numbers in {place}"
