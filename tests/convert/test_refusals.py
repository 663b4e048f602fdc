"""What cannot be converted ends in one clear line, and nothing is taken for a checkpoint."""

from __future__ import annotations

import json
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from launcher.convert import hugging_face, manifest, resumable
from tests.support.synthetic import FAMILIES, convert, environment, publish, tensors, write_shard

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    publish(folder / "published", FAMILIES["deepseek-v3"], fp8=True)
    publish(folder / "qwen3", FAMILIES["qwen3"])
    return folder


class Attempt:
    """A conversion of a copy of the published model, to be spoilt first."""

    def __init__(self, pristine: Path, folder: Path, capsys: pytest.CaptureFixture):
        self.pristine, self.capsys = pristine, capsys
        self.source, self.target = folder / "published", folder / "made"
        shutil.copytree(pristine / "published", self.source)

    def refused(self, *words: str, family: str = "deepseek-v3", **variables: object) -> str:
        """Convert; it must fail in one line, which is returned, and make no target."""
        chosen = FAMILIES[family]
        environ = environment(
            self.pristine / f"tiny-{chosen.model}.yaml",
            chosen,
            **{"SOURCE_CKPT_PATH": self.source, "TARGET_CKPT_PATH": self.target, **variables},
        )
        before = sorted(self.target.rglob("*")) if self.target.exists() else None
        self.capsys.readouterr()
        assert convert(chosen, environ, *words) == 1
        lines = [
            line for line in self.capsys.readouterr().err.splitlines() if line.startswith("error: ")
        ]
        assert len(lines) == 1
        after = sorted(self.target.rglob("*")) if self.target.exists() else None
        assert before == after
        return lines[0].removeprefix("error: ")

    def rewrite(self, shard: str, change) -> None:
        """Write a shard and the index anew, with `change` applied to its tensors."""
        path = self.source / shard
        header = hugging_face.read_header(path)
        found = {name: tensor.read() for name, tensor in header.items()}
        change(found)
        write_shard(path, found)
        index = self.source / hugging_face.INDEX
        listed = json.loads(index.read_text())["weight_map"]
        kept = {name: file for name, file in listed.items() if file != shard}
        index.write_text(json.dumps({"weight_map": {**kept, **dict.fromkeys(found, shard)}}))


@pytest.fixture
def attempt(pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Attempt:
    return Attempt(pristine, tmp_path, capsys)


def test_truncated_shard(attempt: Attempt) -> None:
    path = attempt.source / SECOND
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 100)
    assert f"{SECOND}: cut short, {size - 100} bytes where" in attempt.refused()
    with path.open("r+b") as file:
        file.truncate(5)
    assert "not even its header" in attempt.refused()


def test_missing_shard(attempt: Attempt) -> None:
    (attempt.source / SECOND).unlink()
    assert f"{SECOND} of {hugging_face.INDEX} missing" in attempt.refused().replace(" is", "")


def test_wrong_index(attempt: Attempt) -> None:
    index = attempt.source / hugging_face.INDEX
    listed = json.loads(index.read_text())["weight_map"]
    one = next(name for name, file in listed.items() if file == FIRST)
    index.write_text(json.dumps({"weight_map": {**listed, one: SECOND}}))
    assert f"holds {one}, which {hugging_face.INDEX} places in {SECOND}" in attempt.refused()
    index.write_text(json.dumps({"weight_map": {**listed, "lm_head.bias": SECOND}}))
    assert "lm_head.bias is in" in attempt.refused()
    index.write_text("[")
    assert "no JSON" in attempt.refused()


def test_wrong_model(attempt: Attempt) -> None:
    problem = attempt.refused(family="qwen3")
    assert problem == ("config.json says model_type 'deepseek_v3'; this script is for 'qwen3_moe'")
    config = json.loads((attempt.source / "config.json").read_text())
    (attempt.source / "config.json").write_text(
        json.dumps({**config, "num_experts_per_tok": 8, "hidden_size": 7168})
    )
    problem = attempt.refused()
    assert "hidden_size 7168 in config.json, --hidden-size 64" in problem
    assert "num_experts_per_tok 8 in config.json, --moe-router-topk 4" in problem


@pytest.mark.parametrize(
    ("sizes", "words", "problem"),
    [
        ({"EP": 3}, (), "EP=3 does not divide --num-experts 8"),
        ({"TP": 3}, (), "TP=3 does not divide --num-attention-heads 4"),
        ({}, ("--expert-tensor-parallel-size", "5"), "ETP=5 does not divide --moe-ffn-hidden"),
        ({"PP": 2}, ("--pipeline-model-parallel-layout", "Et|tmL"), "the layout has 2 layers"),
        ({"FORMAT": "zarr"}, (), "FORMAT='zarr'; allowed: torch_dist, legacy"),
        ({"MTP": 2}, (), "MTP='2': 0 leaves multi-token prediction out"),
        ({"WORKERS": 0}, (), "WORKERS='0' is no number"),
        ({"TARGET_CKPT_PATH": ""}, (), "TARGET_CKPT_PATH is not set"),
        (
            {"FORMAT": "legacy"},
            ("--expert-tensor-parallel-size", "2"),
            "no file for each part of the experts at ETP=2 with TP=1",
        ),
    ],
)
def test_impossible_jobs(attempt: Attempt, sizes: dict, words: tuple, problem: str) -> None:
    assert problem in attempt.refused(*words, **sizes)


def test_release_that_adds_a_norm(attempt: Attempt) -> None:
    publish(attempt.pristine / "lite", FAMILIES["deepseek-v2-lite"])
    problem = attempt.refused(
        family="deepseek-v2-lite",
        SOURCE_CKPT_PATH=attempt.pristine / "lite",
        MCORE_RELEASE_VERSION="0.19",
    )
    assert "Megatron-Core 0.19 normalises the input of uncompressed queries" in problem


def test_target_not_empty(attempt: Attempt) -> None:
    attempt.target.mkdir()
    (attempt.target / "precious").write_text("x")
    assert "is not empty; nothing was changed" in attempt.refused()
    assert (attempt.target / "precious").read_text() == "x"
    assert "are not apart" in attempt.refused(TARGET_CKPT_PATH=attempt.source / "below")


def test_leftovers_and_gaps(attempt: Attempt) -> None:
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    shard = json.loads((attempt.source / hugging_face.INDEX).read_text())["weight_map"][name]

    def change(found: dict) -> None:
        more = "model.layers.2.mlp.experts.8.up_proj.weight"
        found[more] = torch.ones(32, 64, dtype=torch.bfloat16)
        found["model.layers.2.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # of no weight
        del found[name]

    attempt.rewrite(shard, change)
    problem = attempt.refused()
    assert f"{name} is not in the source" in problem
    assert f"{name}_scale_inv is left over" in problem
    assert "model.layers.2.mlp.experts.8.up_proj.weight is left over" in problem
    assert "inv_freq" not in problem
    assert problem.startswith("the audit found ")


def test_wrong_shapes_and_scales(attempt: Attempt) -> None:
    shard = json.loads((attempt.source / hugging_face.INDEX).read_text())["weight_map"]

    def change(found: dict) -> None:
        weight = next(name for name, t in found.items() if t.dtype == torch.bfloat16)
        found[weight] = torch.ones(3, 3, dtype=torch.bfloat16)

    attempt.rewrite(shard["model.norm.weight"], change)
    assert "is [3, 3], the model needs [" in attempt.refused()

    def strange(found: dict) -> None:
        found["model.norm.weight"] = torch.ones(64, dtype=torch.int32)

    attempt.rewrite(shard["model.norm.weight"], strange)
    problem = attempt.refused()
    assert problem.startswith(
        "the source stores weights as I32 (no quantization_config), which are"
    )
    assert "model.norm.weight is I32 [64]" in problem

    def lose(found: dict) -> None:
        del found[next(name for name in found if name.endswith("_scale_inv"))]

    attempt.rewrite(FIRST, lose)
    problem = attempt.refused()
    assert problem.startswith("the source is quantized in a way that is not dequantized here: 1: ")
    assert "is FP8 without weight_scale_inv" in problem or "scales a" in problem


def test_copies_that_differ(attempt: Attempt) -> None:
    name = "model.layers.4.embed_tokens.weight"
    shard = json.loads((attempt.source / hugging_face.INDEX).read_text())["weight_map"][name]
    attempt.rewrite(shard, lambda found: found[name].add_(1))
    assert f"{name} is not equal to model.embed_tokens.weight" in attempt.refused()


def test_mtp_left_out_on_request(attempt: Attempt) -> None:
    family = FAMILIES["deepseek-v3"]
    environ = environment(
        attempt.pristine / "tiny-DeepSeek-V3.yaml",
        family,
        MTP=0,
        SOURCE_CKPT_PATH=attempt.source,
        TARGET_CKPT_PATH=attempt.target,
    )
    assert convert(family, environ) == 0
    assert "MTP=0 and --mtp-num-layers contradict" in attempt.refused(
        "--mtp-num-layers", "1", MTP=0, TARGET_CKPT_PATH=attempt.target / "other"
    )


def test_disk_too_small(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda path: usage(1 << 20, 0, 1 << 20))
    assert "has 1.0 MB free, the conversion needs" in attempt.refused()


def test_disk_full_half_way(attempt: Attempt) -> None:
    """A limit on the size of files, which the kernel answers as it does a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        problem = attempt.refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the disk is full" in problem
    assert "run again to go on" in problem
    family = FAMILIES["deepseek-v3"]
    environ = environment(
        attempt.pristine / "tiny-DeepSeek-V3.yaml",
        family,
        SOURCE_CKPT_PATH=attempt.source,
        TARGET_CKPT_PATH=attempt.target,
    )
    assert convert(family, environ) == 0
    assert manifest.verify(attempt.target, workers=2)


def test_another_conversion_begun_there(attempt: Attempt) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        attempt.refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "was begun with another format, parallel" in attempt.refused(FORMAT="legacy", EP=2)


def test_unfinished_or_foreign_checkpoints(attempt: Attempt, pristine: Path) -> None:
    family = FAMILIES["qwen3"]
    made = attempt.target.with_name("checkpoint")
    model = pristine / "tiny-Qwen3-30B-A3B.yaml"
    forth = environment(
        model,
        family,
        SOURCE_CKPT_PATH=pristine / "qwen3",
        TARGET_CKPT_PATH=made,
        PP=2,
        FORMAT="legacy",
    )
    assert convert(family, forth) == 0
    back = {"family": "qwen3", "SOURCE_CKPT_PATH": made, "LIKE_PATH": pristine / "qwen3"}
    assert "is missing: the checkpoint has other TP, PP or EP" in attempt.refused(**back, PP=4)
    path = made / "release" / "mp_rank_00_001" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers.0.mlp.router.weight"] = torch.ones(4, 64)
    del state["model"]["decoder.layers.1.mlp.router.weight"]
    torch.save(state, path)
    problem = attempt.refused(**back, PP=2)
    assert "has no decoder.layers.1.mlp.router.weight" in problem
    assert "decoder.layers.0.mlp.router.weight is [4, 64], not [8, 64]" in problem
    path.write_bytes(path.read_bytes()[:5000])
    assert "model_optim_rng.pt cannot be read" in attempt.refused(**back, PP=2)
    (made / "latest_checkpointed_iteration.txt").write_text("metadata")
    assert "neither a number nor release" in attempt.refused(**back, PP=2)


def test_source_is_never_written(attempt: Attempt) -> None:
    before = {path: path.read_bytes() for path in attempt.source.iterdir()}
    family = FAMILIES["deepseek-v3"]
    environ = environment(
        attempt.pristine / "tiny-DeepSeek-V3.yaml",
        family,
        SOURCE_CKPT_PATH=attempt.source,
        TARGET_CKPT_PATH=attempt.target,
    )
    assert convert(family, environ) == 0
    assert before == {path: path.read_bytes() for path in attempt.source.iterdir()}
    assert len(tensors(attempt.source)) > 100
