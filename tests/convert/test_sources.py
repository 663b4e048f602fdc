"""Megatron sources by any door, and what is written back said truly of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from launcher.convert import hugging_face, megatron_source, to_hugging_face
from launcher.convert.tables import TABLES
from launcher.errors import UsageError
from tests.support.synthetic import FAMILIES, convert, environment, publish, tensors, write_shard

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
TRACKER = megatron_source.TRACKER
FAMILY = FAMILIES["deepseek-v3"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What a job saved, as far as finding it goes: two iterations of torch_dist, and a tracker."""
    for name in ("iter_0000004", "iter_0000012"):
        folder = tmp_path / "saved" / name
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
        (folder / ".metadata").touch()
        (folder / "__0_0.distcp").touch()
    (tmp_path / "saved" / TRACKER).write_text("12")
    return tmp_path / "saved"


def test_every_door_leads_to_an_iteration(saved: Path) -> None:
    last = saved / "iter_0000012"
    assert megatron_source.find(saved).folder == last
    assert megatron_source.find(saved / "iter_0000004").folder == saved / "iter_0000004"
    last.rename(saved / "release")
    (saved / TRACKER).write_text("release\n")
    assert megatron_source.find(saved).folder == saved / "release"
    assert megatron_source.find(saved / "release").folder == saved / "release"
    (saved / TRACKER).unlink()
    shutil.rmtree(saved / "iter_0000004")
    assert megatron_source.find(saved).folder == saved / "release"
    assert all(map(megatron_source.is_megatron, (saved, saved / "release")))


def test_what_was_not_finished(saved: Path) -> None:
    (saved / "iter_0000012" / ".metadata").unlink()
    (saved / "iter_0000012" / "metadata.json").unlink()
    for door in (saved, saved / "iter_0000012"):
        assert megatron_source.is_megatron(door)
        with pytest.raises(
            UsageError,
            match=r"iter_0000012 was not finished: 1 \*.distcp files and no .metadata, which a save "
            r"writes last; finished there: iter_0000004",
        ):
            megatron_source.find(door)
    (saved / TRACKER).unlink()  # the finished one is found without
    assert megatron_source.find(saved).folder == saved / "iter_0000004"


def test_what_cannot_be_chosen(saved: Path) -> None:
    (saved / TRACKER).write_text("13")
    with pytest.raises(
        UsageError, match=r"names iter_0000013, which is not there; iter_0000004, iter"
    ):
        megatron_source.find(saved)
    (saved / TRACKER).write_text("metadata")
    with pytest.raises(UsageError, match="neither a number nor release"):
        megatron_source.find(saved)
    (saved / TRACKER).unlink()
    with pytest.raises(
        UsageError, match=r"several iterations: name the folder of one of iter_0000004"
    ):
        megatron_source.find(saved)
    (saved / "iter_0000004" / "metadata.json").write_text('{"sharded_backend": "fsdp_dtensor"}')
    with pytest.raises(
        UsageError, match=r"is a fsdp_dtensor checkpoint; torch_dist and legacy are"
    ):
        megatron_source.find(saved / "iter_0000004")
    (saved / "iter_0000012" / "metadata.json").unlink()
    with pytest.raises(UsageError, match=r"has no metadata.json: it is PyTorch's own distributed"):
        megatron_source.find(saved / "iter_0000012")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch_dist", "legacy"])
def test_mtp_means_the_same_both_ways(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    published, made = tmp_path / "published", tmp_path / "made"
    model = publish(published, FAMILY, shards=1)
    path = next(published.glob("*.safetensors"))
    found = {n: t.read() for n, t in hugging_face.read_header(path).items()}

    def run(source: Path, target: str, **variables: object) -> int:
        variables = {"SOURCE_CKPT_PATH": source, "TARGET_CKPT_PATH": tmp_path / target, **variables}
        return convert(FAMILY, environment(model, FAMILY, FORMAT=form, **variables))

    assert run(published, "made", PP=2) == 0
    back = {"LIKE_PATH": published, "PP": 2}
    # By the iteration's own folder, and without what MTP shares or has.
    assert run(made / "release", "without", MTP=0, **back) == 0
    names = tensors(tmp_path / "without").keys()
    assert names == {name for name in found if not name.startswith("model.layers.4.")}
    config = json.loads((tmp_path / "without" / "config.json").read_text())
    assert (config["num_nextn_predict_layers"], config["torch_dtype"]) == (0, "bfloat16")
    assert "quantization_config" not in config
    assert run(tmp_path / "without", "poor") == 0
    capsys.readouterr()
    assert run(tmp_path / "without", "poorer", MTP=1) == 1
    assert "MTP=1, and the source has no multi-token prediction" in capsys.readouterr().err
    assert run(tmp_path / "poor", "none", **{**back, "MTP": 1, "PP": 1}) == 1
    assert "MTP=1, and the source has no multi-token prediction" in capsys.readouterr().err
    # LIKE_PATH has MTP, and dtypes of every kind; what the source has decides.
    found["model.norm.weight"] = found["model.norm.weight"].double()
    found["model.layers.0.self_attn.o_proj.weight"] = found[
        "model.layers.0.self_attn.o_proj.weight"
    ].half()
    write_shard(path, found)
    assert run(tmp_path / "poor", "again", **{**back, "PP": 1}) == 0
    again = tensors(tmp_path / "again")
    assert again.keys() == names
    assert again["model.norm.weight"].dtype == torch.float64
    assert json.loads((tmp_path / "again" / "config.json").read_text())["vocab_size"] == 500


def test_dtypes_that_no_weight_has(tmp_path: Path) -> None:
    kinds = {"model.norm.weight": "I32", "lm_head.weight": "BF16", "model.layers.0.x": "BOOL"}
    header = {
        name: {"dtype": kind, "shape": [0], "data_offsets": [0, 0]} for name, kind in kinds.items()
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    (tmp_path / "config.json").write_text("{}")
    there = to_hugging_face._tensors(tmp_path)
    found = to_hugging_face._dtypes(there, {"lm_head.weight"})
    assert found == {"lm_head.weight": torch.bfloat16}
    with pytest.raises(UsageError, match=r"LIKE_PATH has dtypes .* 2: model.layers.0.x is BOOL; "):
        to_hugging_face._dtypes(there, kinds.keys())


def test_the_description_is_that_of_what_is_written() -> None:
    def tensor(name: str, dtype: torch.dtype, rows: int) -> to_hugging_face.Tensor:
        return to_hugging_face.Tensor(name, (), dtype, (rows, 8))

    written = [
        tensor("model.embed_tokens.weight", torch.float16, 300),
        tensor("model.norm.weight", torch.float32, 1),
    ]
    config = {
        "vocab_size": 256,
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8"},
        "num_nextn_predict_layers": 1,
        "hidden_size": 8,
    }
    true = {"vocab_size": 300, "num_nextn_predict_layers": 0, "hidden_size": 8}
    table = TABLES["deepseek-v3"]
    assert to_hugging_face.described(config, table, written, 0) == {**true, "dtype": "float16"}
    # Absent, it is one for the class, which is not what is written.
    del config["num_nextn_predict_layers"], config["dtype"]
    assert to_hugging_face.described(config, table, written, 0) == {
        **true,
        "torch_dtype": "float16",
    }
    outer = {"model_type": "sees", "text_config": {**config, "model_type": "text"}}
    assert to_hugging_face.described(outer, table, written, 1) == {
        "model_type": "text",
        "vocab_size": 300,
        "hidden_size": 8,
        "torch_dtype": "float16",
    }
