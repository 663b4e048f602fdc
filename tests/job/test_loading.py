"""What a job loads and would overwrite, held against folders as Megatron leaves them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.config.parallelism import Sizes
from launcher.job import checkpoints
from tests.run.test_start import READY
from tests.support.launching import launch, preview

MIXTRAL = {"MODEL": "Mixtral-8x7B", "TP": "1", "PP": "1", "VPP": "1", "EP": "2"}


class Size(tuple):
    """Pickled as torch.Size is."""

    def __reduce__(self):
        return Size, (tuple(self),)


def index(shapes: Mapping[str, tuple[int, ...]] | None = None, **sizes: int) -> bytes:
    """Return the bytes of a .metadata with such tensors, and so many bytes of each file."""
    records = {
        number: SimpleNamespace(relative_path=f"{name}.distcp", offset=0, length=size)
        for number, (name, size) in enumerate(sizes.items())
    }
    state = {name: SimpleNamespace(size=Size(shape)) for name, shape in (shapes or {}).items()}
    return pickle.dumps(SimpleNamespace(state_dict_metadata=state, storage_data=records))


def distributed(path: Path, size: int = 10) -> Path:
    """Make a folder that looks like a whole distributed checkpoint."""
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_bytes(b"x" * size)
    (path / ".metadata").write_bytes(index(__0_0=10))
    (path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return path


def sizes(tensor: int, pipeline: int, expert: int, expert_tensor: int | None = None) -> Sizes:
    return Sizes(tensor, pipeline, 1, expert, expert_tensor or tensor)


def legacy(path: Path, of: Sizes) -> Path:
    """Make a folder that looks like a whole legacy checkpoint."""
    for name in checkpoints.legacy_folders(of):
        (path / name).mkdir(parents=True)
        (path / name / checkpoints.LEGACY_FILE).write_text("x")
    return path


def track(folder: Path, said: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoints.TRACKER).write_text(said)


def objection(**variables: str) -> str:
    """Return the one line with which a launch ends; nothing may be written."""
    seen = launch(**{**READY, "OUTPUT_PATH": "/absent/out", **variables})
    assert (seen.status, seen.stdout) == (1, ""), seen.stderr
    (line,) = seen.stderr.splitlines()
    return line


def test_folders_of_a_legacy_checkpoint():
    def folders(*numbers: int) -> list[str]:
        return checkpoints.legacy_folders(sizes(*numbers))

    assert folders(2, 1, 1) == ["mp_rank_00", "mp_rank_01"]
    assert folders(1, 2, 1) == ["mp_rank_00_000", "mp_rank_00_001"]
    assert folders(1, 1, 2) == ["mp_rank_00_000", "mp_rank_00_001"]
    # With experts split over TP too, each rank of TP meets each rank of EP; else only its own.
    assert folders(2, 1, 2, 2) == [f"mp_rank_0{tp}_00{ep}" for tp in range(2) for ep in range(2)]
    assert folders(2, 1, 2, 1) == ["mp_rank_00_000", "mp_rank_01_001"]
    assert folders(2, 1, 4, 1) == [
        f"mp_rank_0{tp}_00{ep}" for tp, ep in ((0, 0), (0, 2), (1, 1), (1, 3))
    ]
    assert len(folders(4, 2, 2, 1)) == 8


@pytest.mark.parametrize("said", ["", "13x", "-1", "iter_0000010", "\0\0"])
def test_a_tracker_that_names_no_iteration(tmp_path: Path, said: str):
    track(tmp_path, said)
    distributed(tmp_path / "iter_0000010")
    assert "which is neither an iteration nor 'release'" in checkpoints.flaw(
        tmp_path, sizes(1, 1, 1)
    )
    assert checkpoints.newest_whole(tmp_path) == 10


def test_what_is_not_whole(tmp_path: Path):
    alone = sizes(1, 1, 1)
    assert checkpoints.flaw(tmp_path / "absent", alone) == "there is no such folder"
    assert "there is no latest_checkpointed" in checkpoints.flaw(tmp_path, alone)
    track(tmp_path, "10\n")
    assert checkpoints.flaw(tmp_path, alone) == "iter_0000010 is not there"
    path = distributed(tmp_path / "iter_0000010")
    assert checkpoints.flaw(tmp_path, alone) == ""
    assert checkpoints.flaw(tmp_path, alone, step="20") == "iter_0000020 is not there"
    (path / "__0_0.distcp").write_bytes(b"x" * 4)
    assert (
        checkpoints.flaw(tmp_path, alone) == "iter_0000010 has only 4 of 10 bytes of __0_0.distcp"
    )
    (path / "__0_0.distcp").unlink()
    assert checkpoints.flaw(tmp_path, alone) == "iter_0000010 lacks __0_0.distcp"
    (path / ".metadata").write_bytes(b"\x80\x04half")
    assert "lacks a readable .metadata" in checkpoints.flaw(tmp_path, alone)
    (path / ".metadata").write_bytes(b"")
    assert "has an empty .metadata" in checkpoints.flaw(tmp_path, alone)
    (path / ".metadata").unlink()
    assert "has no .metadata: its writing was cut off" in checkpoints.flaw(tmp_path, alone)


def test_an_index_runs_nothing(tmp_path: Path):
    path = distributed(tmp_path / "iter_0000010")
    (path / ".metadata").write_bytes(
        b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path) + b"/pwned'\ntR."
    )
    checkpoints.incomplete(path, sizes(1, 1, 1))
    assert not (tmp_path / "pwned").exists()


def test_legacy_checkpoints_belong_to_their_sizes(tmp_path: Path):
    track(tmp_path, "release")
    path = legacy(tmp_path / "release", sizes(1, 1, 2))
    assert checkpoints.flaw(tmp_path, sizes(1, 1, 2)) == ""
    said = checkpoints.flaw(tmp_path, sizes(4, 1, 1))
    assert "is a legacy checkpoint of 2 model-parallel ranks (mp_rank_00_000 …)" in said
    assert "TP4 PP1 EP1 needs 4 (mp_rank_00 …)" in said
    (path / "mp_rank_00_001" / checkpoints.LEGACY_FILE).write_text("")
    assert "lacks mp_rank_00_001/model_optim_rng.pt" in checkpoints.flaw(tmp_path, sizes(1, 1, 2))


def test_a_load_path_that_cannot_be_read_stops_the_submission(tmp_path: Path):
    mounts = {"CONTAINER_MOUNTS": f"{tmp_path}:/checkpoints", **MIXTRAL}
    origin = "LOAD_PATH from environment)"
    load = tmp_path / "load"
    line = objection(LOAD_PATH=str(load), **MIXTRAL)
    assert f"{origin}: there is no such folder" in line
    # As the container sees it.
    assert "there is no such folder" in objection(LOAD_PATH="/checkpoints/load", **mounts)
    load.mkdir()
    assert "it has no checkpoint" in objection(LOAD_PATH=str(load), **MIXTRAL)
    track(load, "")
    distributed(load / "iter_0000010")
    line = objection(LOAD_PATH="/checkpoints/load", **mounts)
    assert "holds '', which is neither" in line
    assert "(--ckpt-step 10 reads a whole one)" in line
    track(load, "release")
    legacy(load / "release", sizes(1, 1, 1))
    line = objection(LOAD_PATH=str(load), MODEL="Mixtral-8x7B", TP="4", PP="1", VPP="1", EP="1")
    assert "is a legacy checkpoint of 1 model-parallel rank (mp_rank_00)" in line


def test_a_path_that_only_the_nodes_see_is_left_to_them():
    seen = preview(LOAD_PATH="/only-there/load", **MIXTRAL)
    assert "error:" not in seen.stderr
    assert "local -r load=/only-there/load\n" in seen.script
    assert "\n  check_load\n" in seen.script


def test_how_strict_a_load_is(tmp_path: Path):
    track(tmp_path, "10")
    distributed(tmp_path / "iter_0000010")
    seen = preview(LOAD_PATH=str(tmp_path), **MIXTRAL)
    assert seen.flag("--dist-ckpt-strictness") == ["raise_unexpected"]
    assert seen.flag("--exit-on-missing-checkpoint") == []
    theirs = ["--dist-ckpt-strictness", "log_all"]
    assert preview(theirs, LOAD_PATH=str(tmp_path), **MIXTRAL).flag(theirs[0]) == ["log_all"]


def test_intentions_without_effect():
    assert "PRETRAIN=0 (environment), but LOAD_PATH is not set" in objection(
        PRETRAIN="0", **MIXTRAL
    )
    seen = preview(**MIXTRAL)
    assert "note: PRETRAIN=0 (runtime_configs/benchmarking/runtime.conf), but LOAD" in seen.stderr
    assert "has no DATA_PATH for it" in objection(DATASET="Corpus", **MIXTRAL)
    assert "DATA_PATH for it" not in preview(DATASET="C", DATA_PATH="/d", **MIXTRAL).stderr
    seen = preview(SMOKE="1", LOAD_PATH="/l", **MIXTRAL)
    assert "note: smoke: LOAD_PATH=/l is not read" in seen.stderr
    assert "PRETRAIN=1, but --load /l" in preview(PRETRAIN="1", LOAD_PATH="/l", **MIXTRAL).stderr


def test_what_the_models_flags_take_from_a_users_checkpoint():
    seen = preview(["--load", "/l"], **MIXTRAL)
    assert (
        "note: --load /l (command line) is read with the model's --finetune "
        "(model_configs/benchmarking/base/mixtral.yaml:43): iteration, learning-rate schedule, "
        "optimizer and random state begin anew" in seen.stderr
    )
    seen = preview(["--load", "/l"], MODEL="DeepSeek-V3")
    assert "optimizer and schedule, random state begin anew" in seen.stderr
    assert "begin anew" not in preview(["--load", "/l", "--finetune"], MODEL="Mixtral-8x2B").stderr


def test_a_second_launch_overwrites_nothing(tmp_path: Path):
    out = tmp_path / "out"
    save = out / "checkpoints"
    distributed(save / "iter_0000010")
    track(save, "10")
    checkpoints.claim(save, tmp_path / "runs" / "first")
    holds = f"{save} holds iteration 10 of run {tmp_path}/runs/first"
    given = {"OUTPUT_PATH": str(out), **MIXTRAL}
    assert f"{holds}: RESUME=1 continues it, another OUTPUT_PATH" in objection(**given)
    assert f"error: {holds}: RESUME=1" in preview(**given).stderr
    forced = preview(FORCE="1", **given)
    assert f"note: {holds}; FORCE=1 begins anew" in forced.stderr
    assert forced.flag("--load") is None
    resumed = preview(RESUME="1", LOAD_PATH="/weights", **given)
    assert f"note: {holds}, and this goes on from there" in resumed.stderr
    assert "RESUME=1: --load /weights" in resumed.stderr
    assert "error:" not in resumed.stderr
    assert resumed.flag("--load") == [str(save)]
    assert resumed.flag("--finetune") is None
    # The habit of naming one's own folder.
    assert preview(LOAD_PATH=str(save), **given).flag("--finetune") is None


def test_a_cut_off_save_is_passed_over(tmp_path: Path):
    save = tmp_path / "checkpoints"
    distributed(save / "iter_0000010")
    distributed(save / "iter_0000020", size=3)
    track(save, "20")
    seen = preview(RESUME="1", OUTPUT_PATH=str(tmp_path), **MIXTRAL)
    assert "error:" not in seen.stderr
    assert "the newest whole checkpoint is iteration 10" in seen.stderr


def test_nothing_to_resume(tmp_path: Path):
    given = {"OUTPUT_PATH": str(tmp_path), **MIXTRAL}
    assert "holds no checkpoint to go on from" in objection(RESUME="1", **given)
    assert "RESUME=1 needs --save" in objection(RESUME="1", SMOKE="1", **given)
    own = preview(LOAD_PATH=f"{tmp_path}/checkpoints", **given)
    assert "holds no checkpoint yet: this begins with random weights" in own.stderr
    assert own.flag("--load") is None
