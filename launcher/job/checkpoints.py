"""Checkpoint folders as Megatron reads and writes them; nothing of torch is needed to read one.

latest_checkpointed_iteration.txt   the tracker: an iteration, or `release`
iter_0000010/ or release/           a distributed checkpoint: metadata.json, .metadata, *.distcp;
                                    or a legacy one: mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt
run                                 a link to the run directory whose jobs save here
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from launcher.config import parallelism
from launcher.config.parallelism import Sizes
from launcher.job import weights
from launcher.job.weights import LEGACY_FILE

TRACKER = "latest_checkpointed_iteration.txt"
OWNER = "run"
RELEASE = "release"
ALONE = Sizes(1, 1, 1, 1, 1)


def legacy_folders(sizes: Sizes) -> list[str]:
    """Return a legacy checkpoint's folders, one a rank of the model, the stages varying fastest."""
    ranks = range(sizes.pipeline)
    return [_legacy_folder(sizes, pair, stage) for pair in _tensor_expert(sizes) for stage in ranks]


def last_legacy_folder(sizes: Sizes) -> str:
    """Return the last of a legacy checkpoint's folders."""
    return _legacy_folder(sizes, _tensor_expert(sizes)[-1], sizes.pipeline - 1)


def _tensor_expert(sizes: Sizes) -> list[tuple[int, int]]:
    """Return the tensor and the expert ranks that occur together."""
    kinds = parallelism.tensor_expert(sizes.tensor, sizes.expert, sizes.expert_tensor)
    return sorted({(tensor, expert) for tensor, expert, _ in kinds})


def _legacy_folder(sizes: Sizes, pair: tuple[int, int], stage: int) -> str:
    """Return the name of a rank's folder (get_checkpoint_name)."""
    tensor, expert = pair
    return (
        f"mp_rank_{tensor:02d}"
        + (f"_{stage:03d}" if sizes.pipeline > 1 else "")
        + (f"_{expert:03d}" if sizes.expert > 1 else "")
    )


def tracked(folder: Path) -> str | None:
    """Return the text of a folder's tracker, None where there is none."""
    try:
        return (folder / TRACKER).read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # nothing can be there
            return None
        raise


def is_step(text: str) -> bool:
    """Say whether a text names a checkpoint: an iteration, or the released weights."""
    return text == RELEASE or re.fullmatch(r"[0-9]+", text) is not None


def place(folder: Path, step: str) -> Path:
    """Return where the checkpoint lies that a tracker (or `--ckpt-step`) names."""
    return folder / (step if step == RELEASE else f"iter_{int(step):07d}")


def flaw(folder: Path, sizes: Sizes, step: str | None = None) -> str:
    """Return why Megatron could not load from a folder; '' when it could, as far as files tell."""
    if not os.path.isdir(folder):
        return "there is no such folder"
    step = tracked(folder) if step is None else step
    if step is None:
        return f"it has no checkpoint: there is no {TRACKER}"
    if not is_step(step):
        return f"{TRACKER} holds {step!r}, which is neither an iteration nor {RELEASE!r}"
    found = place(folder, step)
    why = incomplete(found, sizes)
    return f"{found.name} {why}" if why else ""


def incomplete(found: Path, sizes: Sizes) -> str:
    """Return why one checkpoint is not whole, or not for a job of these sizes; '' when it is."""
    if not found.is_dir():
        return "is not there"
    legacy = [path.name for path in found.glob("mp_rank_*")]
    distributed = [name for name in (".metadata", "metadata.json") if (found / name).exists()]
    if legacy and "metadata.json" not in distributed:
        return _incomplete_legacy(found, legacy, sizes)
    for name in (".metadata", "metadata.json"):
        # They are written last. Megatron's FSDP writes the first of them only.
        if name not in distributed and not (name == "metadata.json" and distributed):
            return f"has no {name}: its writing was cut off"
        if name in distributed and not (found / name).stat().st_size:
            return f"has an empty {name}: its writing was cut off"
    for name, size in _data_files(found / ".metadata").items():
        try:
            present = (found / name).stat().st_size
        except FileNotFoundError:
            return f"lacks {name}"
        if present < size:
            return f"has only {present} of {size} bytes of {name}"
    return ""


def bound_to(found: Path) -> Sizes | None:
    """Return the sizes that the optimizer's states in a distributed checkpoint belong to.

    None where there are none, where any sizes can read them, or where the sizes are not found.
    Megatron's own names tell: those of a buffer of a rank, or those of the parameters
    (sharded_param_state_dp_reshardable and …_fully_reshardable, distrib_optimizer.py).
    """
    try:
        if not any(".distributed.dp_group_idx_" in name for name in weights.tensors(found)):
            return None
        common = weights.unpickled(_common(found))
        saved = vars((common[0] if isinstance(common, list) else common)["args"])
        names = ("tensor", "pipeline", "expert")
        tp, pp, ep = (saved[f"{name}_model_parallel_size"] for name in names)
        return Sizes(tp, pp, 1, ep, saved.get("expert_tensor_parallel_size") or tp)
    except Exception:  # zipfile and pickle raise whatever the bytes lead to
        return None


def _common(found: Path) -> Path | io.BytesIO:
    """Return what torch.save wrote of a checkpoint's arguments: a file, or a part of one."""
    if (found / "common.pt").is_file():
        return found / "common.pt"
    entries = weights.index(found / ".metadata").storage_data
    (at,) = (at for key, at in entries.items() if key.fqn.startswith("common_state/"))
    with (found / at.relative_path).open("rb") as file:
        file.seek(at.offset)
        return io.BytesIO(file.read(at.length))


def newest_whole(folder: Path) -> int | None:
    """Return the newest iteration whose distributed checkpoint is whole."""
    return next(_whole(folder), None) if os.path.isdir(folder) else None


def owner(folder: Path) -> Path | None:
    """Return the run directory whose jobs saved here last, None where there is no link."""
    try:
        return Path((folder / OWNER).readlink())
    except OSError:
        return None


def claim(folder: Path, run_dir: Path) -> None:
    """Note that this run's processes save here; an OSError is left to them to meet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWNER).unlink(missing_ok=True)
    (folder / OWNER).symlink_to(run_dir)


def _whole(folder: Path) -> Iterator[int]:
    names = sorted((path.name for path in folder.glob("iter_*")), reverse=True)
    for name in names:
        number = name[len("iter_") :]
        distributed = number.isdigit() and (folder / name / "metadata.json").is_file()
        if distributed and not incomplete(folder / name, ALONE):
            yield int(number)


def _incomplete_legacy(found: Path, present: list[str], sizes: Sizes) -> str:
    wanted = legacy_folders(sizes)
    unlike = set(wanted) ^ set(present)
    if unlike:
        return (
            f"is a legacy checkpoint of {len(present)} model-parallel "
            f"rank{'s'[: len(present) > 1]} ({min(present)}{' …' if len(present) > 1 else ''}), "
            f"and {sizes} needs {len(wanted)} ({wanted[0]}{' …' if len(wanted) > 1 else ''}): "
            "convert it, or use the sizes that it was saved with"
        )
    for name in wanted:
        path = found / name / LEGACY_FILE
        if not path.is_file() or not path.stat().st_size:
            return f"lacks {name}/{LEGACY_FILE}: its writing was cut off"
    return ""


def _data_files(path: Path) -> dict[str, int]:
    """Return name → bytes of the files that a distributed checkpoint's index refers to."""
    try:
        places = weights.index(path).storage_data.values()
        ends: dict[str, int] = {}
        for each in places:
            end = each.offset + each.length
            ends[each.relative_path] = max(end, ends.get(each.relative_path, 0))
        return ends
    except (AttributeError, TypeError, FileNotFoundError):
        return {}  # another layout than the one known here: nothing is held against it
    except Exception as error:  # pickle raises whatever its bytes lead to
        return {f"a readable .metadata ({type(error).__name__})": 1}
