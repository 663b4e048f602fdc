"""Quantized weights and stacks of experts: each as its reference code reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.convert import audit, encodings, hugging_face
from launcher.convert.tables import TABLES
from launcher.errors import UsageError
from tests.support.synthetic import (
    FAMILIES,
    convert,
    environment,
    equal,
    publish,
    tensors,
    write_shard,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}},
}
# Packed and dequantized by compressed-tensors 0.20.0: pack_to_int32, dequantize.
PACKED = [
    [
        -252823632,
        -434865352,
        -419677620,
        -1590221642,
        1314775392,
        -403762250,
        1644223367,
        924604817,
    ],
    [
        1683235739,
        -1754673912,
        936664426,
        -2066189457,
        679368290,
        -1194520788,
        -1382176227,
        1551742330,
    ],
]
SCALES = [[0.3, -1.7e-3], [2.9e-5, 11.0]]
# fmt: off
UNPACKED = [  # bfloat16, by their bits
    -16358, 16231, -16742, -16448, 16359, 16359, -16358, 16391, 0, -16448, 16231, -16742, -16486,
    -16377, -16614, 16359, 16282, -16486, 16154, -16448, 16282, 16391, -16614, 16359, -16614,
    16231, -16486, -16409, -16742, -16448, -16377, 16154, 15455, 15199, 15427, -17369, -17397,
    15271, -17369, 15327, 15199, -17497, 15371, 15427, -17341, -17369, 15071, -17369, 15071,
    -32768, -17497, -17397, 15455, 15455, 15399, 15199, 15427, -17697, -17697, 15271, -17441,
    15427, 15071, 15371, 14518, 14323, -18152, -18122, -18189, -18250, -18189, -18317, 0, -18061,
    14616, 14579, 14323, -18317, -18445, 14323, 14451, -18317, 14616, -18250, -18189, 14616,
    -18445, -18152, 14677, -18317, -18152, -18445, 0, 14616, -18189, 0, -15740, -15952, -15952,
    -15868, 17028, -16080, 0, -15740, 16944, -15740, 17050, -15696, 16988, 16944, 0, 16900, 16988,
    -15718, 16816, 16816, 16988, 16688, 16988, 16816, 16816, -16080, -15868, 16900, 16988, -16080,
    16944, -15868,
]
# fmt: on


def decoded(folder: Path, found: dict, config: dict, table: str = "deepseek-v3"):
    """What is made of a source of these tensors and this configuration."""
    write_shard(folder / "model.safetensors", found)
    (folder / "config.json").write_text(json.dumps(config))
    return encodings.decoded(hugging_face.open_source(folder), TABLES[table])


def test_int4_is_as_compressed_tensors_reads_it(tmp_path: Path) -> None:
    found = {
        "x.weight_packed": torch.tensor(PACKED, dtype=torch.int32),
        "x.weight_scale": torch.tensor(SCALES).bfloat16(),
        "x.weight_shape": torch.tensor([2, 64]),
    }
    source = decoded(tmp_path, found, {"quantization_config": INT4})
    assert source.tensors.keys() == {"x.weight"}
    assert source.tensors["x.weight"].shape == (2, 64)
    weight = source.read("x.weight")
    assert weight.dtype == torch.bfloat16
    assert weight.view(torch.int16).flatten().tolist() == UNPACKED
    found["x.weight_shape"] = torch.tensor([2, 60])
    source = decoded(tmp_path, found, {"quantization_config": INT4})
    with pytest.raises(
        UsageError, match=r"weight_shape says \[2, 60\] of a packed weight of \[2, 64\]"
    ):
        source.read("x.weight")


def test_mxfp4_is_as_transformers_reads_it() -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 6, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (2, 6, 4), dtype=torch.uint8, generator=generator)
    theirs = mxfp4.convert_moe_packed_tensors(blocks, scales)  # [e, n, rows]
    assert torch.equal(encodings.unpack_mxfp4(blocks, scales), theirs.transpose(1, 2))


EXPERTS = "model.layers.0.mlp.experts"


def test_mxfp4_of_other_shapes_is_refused(tmp_path: Path) -> None:
    scheme = {"quantization_config": {"quant_method": "mxfp4"}}
    blocks = torch.zeros(2, 6, 4, 16, dtype=torch.uint8)
    found = {f"{EXPERTS}.down_proj_blocks": blocks}
    with pytest.raises(UsageError, match=r"down_proj_blocks has no down_proj_scales beside it"):
        decoded(tmp_path, found, scheme, "gpt-oss")
    found[f"{EXPERTS}.down_proj_scales"] = torch.zeros(2, 6, 5, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"with scales U8 \[2, 6, 5\]; U8 \[e, m, n/32, 16\] with"):
        decoded(tmp_path, found, scheme, "gpt-oss")
    with pytest.raises(UsageError, match=r"the source stores weights as U8 \(mxfp4\)"):
        decoded(tmp_path, found, scheme, "qwen3-moe")
    found = {f"{EXPERTS}.gate_up_proj_bias": torch.zeros(2, 3, 4)}
    with pytest.raises(UsageError, match=r"other shapes than gpt-oss's: 1: .*_bias is F32 \[2, 3"):
        decoded(tmp_path, found, {}, "gpt-oss")


def test_a_scale_that_is_not_a_number_is_no_value(tmp_path: Path) -> None:
    """Scale 255 is NaN in the format of the Open Compute Project."""
    found = {
        f"{EXPERTS}.down_proj_blocks": torch.full((2, 1, 1, 16), 0x20, dtype=torch.uint8),
        f"{EXPERTS}.down_proj_scales": torch.tensor([[[127]], [[255]]], dtype=torch.uint8),
    }
    source = decoded(tmp_path, found, {}, "gpt-oss")
    good, bad = (source.read(f"{EXPERTS}.{number}.down_proj.weight") for number in range(2))
    assert good.tolist() == [[0.0, 1.0] * 16]
    assert not bad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "scales", "config", "expected"),
    [
        ("_scale_inv", torch.full((2, 1), 0.25), {}, 0.25),
        ("_scale_inv", torch.full((2, 1), 2**-9).to(torch.float8_e8m0fnu), {}, 2**-9),
        ("_scale_inv", torch.full((4, 2), 4.0), {"weight_block_size": [64, 64]}, 4.0),
        ("_scale", torch.full((200, 1), 0.5).bfloat16(), {}, 0.5),
        ("_scale", torch.tensor([3.0]), {}, 3.0),
    ],
)
def test_scales_of_fp8(name: str, scales, config: dict, expected: float, tmp_path: Path) -> None:
    weight = torch.randn(200, 96, generator=torch.Generator().manual_seed(0))
    weight = weight.to(torch.float8_e4m3fn)
    found = {"x.weight": weight, f"x.weight{name}": scales}
    source = decoded(tmp_path, found, {"quantization_config": {"quant_method": "fp8", **config}})
    assert torch.equal(source.read("x.weight"), (weight.float() * expected).bfloat16())


def test_each_block_has_its_own_scale(tmp_path: Path) -> None:
    weight = torch.ones(200, 96).to(torch.float8_e4m3fn)
    scales = torch.tensor([[-9, 3], [5, 7], [2, 1], [0, -4]]).float().exp2()
    found = {"x.weight": weight, "x.weight_scale_inv": scales.to(torch.float8_e8m0fnu)}
    blocks = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    read = decoded(tmp_path, found, {"quantization_config": blocks}).read("x.weight").float()
    for row, column in ((0, 0), (63, 64), (64, 63), (199, 95), (128, 0)):
        assert read[row, column] == scales[row // 64, column // 64]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "the source is quantized: gptq, which is not deq"),
        ({"quant_method": "awq"}, "the source is quantized: awq"),
        (
            {**INT4, "config_groups": {"a": {"weights": {"num_bits": 8}}}},
            r"compressed-tensors pack-quantized \(8 bits\), which is not",
        ),
        (
            {**INT4, "config_groups": {"a": {"weights": {"num_bits": 4, "symmetric": False}}}},
            r"\(4 bits, asymmetric\)",
        ),
        ({**INT4, "format": "nvfp4-pack-quantized"}, "compressed-tensors nvfp4-pack-quantized"),
    ],
)
def test_unknown_quantization_is_named_first(config: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        decoded(tmp_path, {"x": torch.ones(1)}, {"quantization_config": config})
    assert "take the publication that is not quantized" in str(refusal.value)


def test_at_most_ten_tensors_are_named(tmp_path: Path) -> None:
    names = [f"{chr(97 + number)}.qweight" for number in range(26)]
    found = {name: torch.ones(2, 2, dtype=torch.uint8) for name in names}
    with pytest.raises(
        UsageError, match=r"the source stores weights as U8 .* 26: a.qweight"
    ) as error:
        decoded(tmp_path, found, {})
    assert str(error.value).count("qweight") == 10
    assert "and 16 more kinds" in str(error.value)
    fused = {"model.layers.0.self_attn.qkv_proj.weight": torch.ones(2, 2)}
    source = decoded(tmp_path, fused, {}, "qwen3-moe")
    with pytest.raises(UsageError, match="the source has queries, keys and values in one matrix"):
        audit.check({}, source.tensors, ())


def stacked(found: dict, table: str) -> dict:
    """The same model as transformers 5 holds it: a stack of all experts' matrices a layer."""
    block, gate, up, down = TABLES[table].experts
    made: dict[str, torch.Tensor] = {}
    starts = sorted({n.split(f"{block}.experts.")[0] for n in found if f"{block}.experts." in n})
    for start in starts:
        each = [
            [found[f"{start}{block}.experts.{e}.{part}.weight"] for part in (gate, up, down)]
            for e in range(8)
        ]
        made[f"{start}mlp.experts.gate_up_proj"] = torch.stack([torch.cat(e[:2]) for e in each])
        made[f"{start}mlp.experts.down_proj"] = torch.stack([e[2] for e in each])
    rest = {n: t for n, t in found.items() if f"{block}.experts." not in n}
    return {**{n.replace(f".{block}.", ".mlp."): t for n, t in rest.items()}, **made}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3", "deepseek-v3"])
def test_stacks_of_experts_there_and_back(name: str, tmp_path: Path) -> None:
    family, published = FAMILIES[name], tmp_path / "published"
    model = publish(published, family, shards=1)
    path = next(published.glob("*.safetensors"))
    whole = {n: t.read() for n, t in hugging_face.read_header(path).items()}
    (published / hugging_face.INDEX).unlink()
    path.unlink()
    write_shard(published / hugging_face.SINGLE, stacked(whole, family.table))
    common = {"PP": 2, "EP": 2, "FORMAT": "legacy"}
    forth = environment(
        model, family, SOURCE_CKPT_PATH=published, TARGET_CKPT_PATH=tmp_path / "made", **common
    )
    assert convert(family, forth) == 0
    back = environment(
        model,
        family,
        SOURCE_CKPT_PATH=tmp_path / "made",
        TARGET_CKPT_PATH=tmp_path / "back",
        LIKE_PATH=published,
        **common,
    )
    assert convert(family, back) == 0
    assert equal(tensors(published), whole)
    written = hugging_face.open_source(tmp_path / "back")
    assert equal({n: t.read() for n, t in written.tensors.items()}, stacked(whole, family.table))


def _int4(found: dict) -> tuple[dict, dict, dict]:
    """Kimi-K2-Thinking's way: experts' matrices packed, all else as it is."""
    made, meant = {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in found.items():
        if ".experts." not in name:
            made[name] = meant[name] = tensor
            continue
        rows, columns = tensor.shape
        values = torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int32)
        scales = (torch.rand(rows, columns // 32, generator=generator) / 50).bfloat16()
        nibbles = ((values + 8) << torch.arange(0, 32, 4).repeat(columns // 8)).view(rows, -1, 8)
        made[f"{name}_packed"] = nibbles.sum(-1, dtype=torch.int64).to(torch.int32)
        made[f"{name}_scale"] = scales
        made[f"{name}_shape"] = torch.tensor([rows, columns])
        meant[name] = (values * scales.float().repeat_interleave(32, 1)).bfloat16()
    return made, meant, INT4


def _e8m0(found: dict) -> tuple[dict, dict, dict]:
    """FP8 whose scales are powers of two."""
    made, meant = {}, {}
    for number, (name, tensor) in enumerate(found.items()):
        if "_proj" not in name or tensor.dim() != 2:
            made[name] = meant[name] = tensor
            continue
        made[name] = tensor.to(torch.float8_e4m3fn)
        blocks = [-(-size // 128) for size in tensor.shape]
        scales = torch.full(blocks, 2.0 ** (number % 7 - 9))
        made[f"{name}_scale_inv"] = scales.to(torch.float8_e8m0fnu)
        meant[name] = (made[name].float() * 2.0 ** (number % 7 - 9)).bfloat16()
    return made, meant, {"quant_method": "fp8", "weight_block_size": [128, 128]}


def _mxfp4(found: dict) -> tuple[dict, dict, dict]:
    """gpt-oss's way: the stacks of experts' matrices in blocks of 32 FP4 values, all else as it is."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    made, meant = {}, {}
    generator = torch.Generator().manual_seed(3)
    for name, tensor in found.items():
        if tensor.dim() != 3:
            made[name] = meant[name] = tensor
            continue
        experts, columns, rows = tensor.shape
        shape = (experts, rows, columns // 32)
        blocks = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 125, shape, dtype=torch.uint8, generator=generator)
        made[f"{name}_blocks"], made[f"{name}_scales"] = blocks, scales
        meant[name] = convert_moe_packed_tensors(blocks, scales)
    return made, meant, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch_dist", "legacy"])
@pytest.mark.parametrize(
    ("encode", "name"),
    [(_int4, "deepseek-v3"), (_e8m0, "deepseek-v3"), (_mxfp4, "gpt-oss")],
    ids=["INT4", "E8M0", "MXFP4"],
)
def test_what_is_quantized_is_converted(
    encode: Callable, name: str, form: str, tmp_path: Path
) -> None:
    family, published = FAMILIES[name], tmp_path / "published"
    model = publish(published, family, shards=1)
    path = next(published.glob("*.safetensors"))
    found = {n: t.read() for n, t in hugging_face.read_header(path).items()}
    made, meant, scheme = encode(found)
    (published / hugging_face.INDEX).unlink()
    path.unlink()
    write_shard(published / hugging_face.SINGLE, made)
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))
    common = {"PP": 2, "EP": 2, "FORMAT": form}
    forth = environment(
        model, family, SOURCE_CKPT_PATH=published, TARGET_CKPT_PATH=tmp_path / "made", **common
    )
    assert convert(family, forth) == 0
    back = environment(
        model,
        family,
        SOURCE_CKPT_PATH=tmp_path / "made" / "release",
        TARGET_CKPT_PATH=tmp_path / "back",
        LIKE_PATH=published,
        **common,
    )
    assert convert(family, back) == 0
    written = hugging_face.open_source(tmp_path / "back").tensors
    assert equal({name: one.read() for name, one in written.items()}, meant)
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch_dist", "legacy"])
def test_tied_embeddings_that_are_stored_twice(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An output layer equal to the embedding is dropped and written back; another is an error."""
    plain = FAMILIES["qwen3"]
    sizes = {**plain.sizes, "--untie-embeddings-and-output-weights": "false"}
    family = replace(plain, sizes=sizes, config={**plain.config, "tie_word_embeddings": True})
    published = tmp_path / "published"
    model = publish(published, family, shards=1)
    assert "lm_head.weight" in tensors(published)
    common = {"TP": 2, "PP": 2, "FORMAT": form}
    forth = environment(
        model, family, SOURCE_CKPT_PATH=published, TARGET_CKPT_PATH=tmp_path / "made", **common
    )
    assert convert(family, forth) == 0
    back = environment(
        model,
        family,
        SOURCE_CKPT_PATH=tmp_path / "made",
        TARGET_CKPT_PATH=tmp_path / "back",
        LIKE_PATH=published,
        **common,
    )
    assert convert(family, back) == 0
    assert equal(tensors(tmp_path / "back"), tensors(published))
    path = next(published.glob("*.safetensors"))
    found = {n: t.read() for n, t in hugging_face.read_header(path).items()}
    found["lm_head.weight"][7, 7] += 1
    write_shard(path, found)
    capsys.readouterr()
    assert convert(family, {**forth, "TARGET_CKPT_PATH": str(tmp_path / "other")}) == 1
    problem = "error: lm_head.weight is not equal to model.embed_tokens.weight"
    assert problem in capsys.readouterr().err
