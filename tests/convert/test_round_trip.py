"""Whole conversions of tiny models, there and back, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launcher.convert import manifest
from tests.support.synthetic import FAMILIES, convert, environment, equal, publish, tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

# Every family in one format, and those with most to them in both, at odd parallelism.
CASES = [
    ("mixtral", "torch_dist", {"PP": 2}, ()),
    ("qwen2", "legacy", {"TP": 2, "EP": 4}, ("--expert-tensor-parallel-size", "1")),
    ("qwen3", "legacy", {"TP": 2, "PP": 2, "EP": 2, "VPP": 2}, ()),
    ("qwen3-next", "torch_dist", {}, ()),
    ("qwen3-next", "legacy", {"TP": 2, "PP": 2}, ()),
    ("deepseek-v2", "torch_dist", {}, ()),
    ("deepseek-v2-lite", "legacy", {"PP": 2, "PP_FIRST": 3, "PP_LAST": 1, "EP": 2}, ()),
    ("deepseek-v3", "torch_dist", {}, ()),
    (
        "deepseek-v3",
        "legacy",
        {"TP": 2, "PP": 2, "EP": 2, "VPP": 2},
        (
            "--pipeline-model-parallel-layout",
            "Ett|t|t|mL",
            "--expert-tensor-parallel-size",
            "2",
        ),
    ),
    ("gpt-oss", "torch_dist", {}, ()),
    ("gpt-oss", "legacy", {"TP": 2, "PP": 2, "EP": 4}, ()),
]


@pytest.mark.parametrize(("name", "form", "sizes", "words"), CASES)
def test_there_and_back(name: str, form: str, sizes: dict, words: tuple, tmp_path: Path) -> None:
    family = FAMILIES[name]
    published, checkpoint, back = (tmp_path / part for part in ("published", "made", "back"))
    model = publish(published, family, fp8=name == "deepseek-v3")
    forth = environment(
        model, family, SOURCE_CKPT_PATH=published, TARGET_CKPT_PATH=checkpoint, FORMAT=form, **sizes
    )
    assert convert(family, forth, *words) == 0
    assert (checkpoint / "latest_checkpointed_iteration.txt").read_text() == "release"
    again = environment(
        model,
        family,
        SOURCE_CKPT_PATH=checkpoint,
        TARGET_CKPT_PATH=back,
        LIKE_PATH=published,
        **sizes,
    )
    assert convert(family, again, *words) == 0
    assert equal(tensors(published), tensors(back))
    assert (back / "tokenizer.json").is_file()
    assert "quantization_config" not in json.loads((back / "config.json").read_text())
    assert not list(tmp_path.glob("*.incomplete"))
    assert manifest.verify(checkpoint, workers=2)
    assert manifest.verify(back, workers=2)


def test_legacy_ranks_hold_their_parts(tmp_path: Path) -> None:
    """The gate's half of a split linear_fc1 stays with the up projection's, and experts apart."""
    family = FAMILIES["qwen3"]
    published = tmp_path / "published"
    model = publish(published, family)
    target = tmp_path / "made"
    environ = environment(
        model,
        family,
        SOURCE_CKPT_PATH=published,
        TARGET_CKPT_PATH=target,
        FORMAT="legacy",
        TP=2,
        PP=2,
        EP=2,
    )
    assert convert(family, environ, "--expert-tensor-parallel-size", "2") == 0
    path = target / "release" / "mp_rank_01_001_001" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    source = tensors(published)
    # Pipeline rank 1 has layers 2 and 3, which it calls 0 and 1; expert rank 1 has 4 to 7.
    expert = "model.layers.3.mlp.experts.6"
    fc1 = state["model"]["decoder.layers.1.mlp.experts.linear_fc1.weight2"]
    gate, up = (source[f"{expert}.{part}_proj.weight"] for part in ("gate", "up"))
    assert torch.equal(fc1, torch.cat([gate[16:], up[16:]]))
    fc2 = state["model"]["decoder.layers.1.mlp.experts.linear_fc2.weight2"]
    assert torch.equal(fc2, source[f"{expert}.down_proj.weight"][:, 16:])
    # 2 query groups over 2 ranks: this one has the second group's 2 queries, key and value.
    attention = "model.layers.2.self_attn"
    parts = [source[f"{attention}.{part}_proj.weight"] for part in "qkv"]
    expected = torch.cat([parts[0][32:], parts[1][16:], parts[2][16:]])
    assert torch.equal(
        state["model"]["decoder.layers.0.self_attention.linear_qkv.weight"], expected
    )
    assert state["model"]["output_layer.weight"].shape == (256, 64)
    assert not state["model"]["output_layer.weight"][244:].any()
    assert "embedding.word_embeddings.weight" not in state["model"]


def test_changed_bytes_are_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    family = FAMILIES["mixtral"]
    published, target = tmp_path / "published", tmp_path / "made"
    model = publish(published, family)
    environ = environment(model, family, SOURCE_CKPT_PATH=published, TARGET_CKPT_PATH=target)
    assert convert(family, environ) == 0
    path = target / "release" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (target / "release" / "common.pt").unlink()
    from launcher.convert.__main__ import main

    capsys.readouterr()
    assert main(["--verify", str(target)], {}) == 1
    problems = capsys.readouterr().err
    assert "release/__0_0.distcp has other content" in problems
    assert "release/common.pt is missing" in problems
    path.write_bytes(data[:-1])
    (target / "release" / "more").touch()
    assert main(["--verify", str(target)], {}) == 1
    problems = capsys.readouterr().err
    assert f"__0_0.distcp has {len(data) - 1} bytes, not {len(data)}" in problems
    assert "release/more is not in the manifest" in problems
    (target / "manifest.json").write_text("{")
    assert main(["--verify", str(target)], {}) == 1
    assert "manifest.json is damaged: it lists no files" in capsys.readouterr().err
