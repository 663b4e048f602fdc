"""Every change of value is seen: counted where it rounds, refused where it breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launcher.convert import hugging_face
from launcher.convert.values import Changes, summary
from launcher.errors import UsageError
from tests.support.synthetic import FAMILIES, convert, environment, publish, write_shard

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
FAMILY = FAMILIES["qwen3"]
B, H, F, D = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("value", "before", "after", "relative"),
    [
        (1 + 2**-10, H, B, 2**-10 / (1 + 2**-10)),
        (1e-9, B, H, 1.0),
        (1 / 3, F, B, 2**-9),
        (1 / 3, F, H, 2**-11),
        (1 / 3, D, F, 2**-24),
        (0.5, H, B, None),
        (0.5, F, H, None),
        (1e-9, B, F, None),
        (1e-9, B, B, None),
    ],
)
def test_rounding_is_measured(value: float, before, after, relative: float | None) -> None:
    changes = Changes()
    source = torch.tensor([0.0, 1.0, value], dtype=before)
    result = changes.cast(source, after, "weight")
    assert result.dtype == after
    found = changes.as_json()
    if relative is None:
        assert found == []
        assert torch.equal(result.to(D), source.to(D))
    else:
        (change,) = found
        assert (change["values"], change["total"]) == (1, 3)
        assert relative / 3 < change["relative"] <= relative * 1.01


def test_what_several_files_hold_counts_once() -> None:
    changes = Changes()
    changes.cast(torch.tensor([1 + 2**-10, 1], dtype=H), B, "one")
    changes.cast(torch.tensor([1e-7, 1], dtype=H).float() / 3, B, "two", part=1)
    record = {"details": {"changes": changes.as_json()}}
    lines = list(summary([record, record]))
    assert len(lines) == 2
    assert lines[0].startswith("1 tensor changed from float16 to bfloat16: 1 of 2 values, by 0.00")
    assert lines[0].endswith("(in one)")
    assert "from float32 to bfloat16: 1 of 2 values" in lines[1] or "2 of 2" in lines[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [B, H, F])
def test_nan_and_infinity_are_refused(value: float, dtype: torch.dtype) -> None:
    source = torch.tensor([[1.0, value], [2.0, 3.0]], dtype=dtype)
    with pytest.raises(UsageError, match=r"layer\.weight: 1 of 4 values in the source are NaN or"):
        Changes().cast(source, B, "layer.weight")


def test_overflow_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"w: 1 of 2 values, up to 9.98e\+04, become infinite in fl"
    ):
        Changes().cast(torch.tensor([1e5, 1.0], dtype=B), H, "w")


def test_a_conversion_says_what_it_changed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An F16 source becomes BF16; then a NaN in it, and in the checkpoint, are errors."""
    published = tmp_path / "published"
    model = publish(published, FAMILY, shards=1)
    path = next(published.glob("*.safetensors"))
    found = {n: t.read().half() for n, t in hugging_face.read_header(path).items()}
    write_shard(path, found)
    environ = environment(
        model,
        FAMILY,
        SOURCE_CKPT_PATH=published,
        TARGET_CKPT_PATH=tmp_path / "made",
        FORMAT="legacy",
        EP=2,
    )
    # Random BF16 values are exact in F16 but for the smallest, and back; 1/3 in F16 is not.
    found["model.norm.weight"].fill_(1 / 3)
    write_shard(path, found)
    assert convert(FAMILY, environ) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "changed from float16 to bfloat16" in notes[0]
    assert "(in model.norm.weight)" in notes[0] or "by 0.0" in notes[0]
    assert json.loads((tmp_path / "made" / "manifest.json").read_text())["files"]

    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    found[name][3, 4] = float("nan")
    write_shard(path, found)
    again = {**environ, "TARGET_CKPT_PATH": str(tmp_path / "other")}
    assert convert(FAMILY, again) == 1
    assert f"error: {name}: 1 of 2048 values in the source are NaN" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
