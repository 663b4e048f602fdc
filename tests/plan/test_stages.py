"""Which layers every pipeline stage and virtual chunk holds."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest

from launcher.config.layout import expand
from launcher.plan import stages
from launcher.plan.shape import Shape, Split
from tests.plan.test_parameters import JOBS, ROOT, shape_of

EVEN = Split(None, None, None, None, False, False)


def with_split(shape: Shape, pipeline: int, layers: int, **chosen) -> Shape:
    """The shape with another depth and split; the first layer is dense, the others are MoE."""
    virtual = chosen.pop("virtual", 1)
    if chosen.get("layout") is not None:
        virtual = max(1, len(expand(chosen["layout"])) // pipeline)
    if "layers_per_chunk" in chosen:
        virtual = max(1, layers // pipeline // chosen["layers_per_chunk"])
    return dataclasses.replace(
        shape,
        model=dataclasses.replace(
            shape.model,
            layers=layers,
            moe=(False,) + (True,) * (layers - 1),
            linear=(False,) * layers,
        ),
        parallel=dataclasses.replace(shape.parallel, pipeline=pipeline, virtual=virtual),
        split=dataclasses.replace(EVEN, **chosen),
    )


def numbers(shape: Shape) -> list[list[list[int]]]:
    """The decoder layers of every chunk of every stage."""
    return [
        [[layer.number for layer in chunk.decoder] for chunk in stage.chunks]
        for stage in stages.split(shape)
    ]


@pytest.fixture(scope="module")
def mixtral():
    return shape_of("mixtral-8x22b-h100")


@pytest.mark.parametrize("name", JOBS)
def test_every_layer_is_somewhere_once(name):
    shape = shape_of(name)
    split = stages.split(shape)
    chunks = [chunk for stage in split for chunk in stage.chunks]
    found = sorted(layer.number for chunk in chunks for layer in chunk.decoder)
    assert found == list(range(shape.model.layers))
    assert sum(len(chunk.mtp) for chunk in chunks) == shape.model.mtp
    assert [
        sum(getattr(c, what) for c in chunks) for what in ("embedding", "loss", "final_norm")
    ] == [1, 1, 1]
    assert split[0].chunks[0].embedding
    assert split[-1].chunks[-1].loss
    assert len(split) == shape.parallel.pipeline


@pytest.mark.parametrize(
    ("pipeline", "layers", "chosen", "found"),
    [
        (1, 3, {}, [[[0, 1, 2]]]),
        (2, 4, {}, [[[0, 1]], [[2, 3]]]),
        (2, 8, {"virtual": 2}, [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
        (2, 8, {"layers_per_chunk": 1}, [[[0], [2], [4], [6]], [[1], [3], [5], [7]]]),
        (3, 6, {"first": 1, "last": 1}, [[[0]], [[1, 2, 3, 4]], [[5]]]),
        (3, 5, {"last": 1}, [[[0, 1]], [[2, 3]], [[4]]]),
        (2, 5, {"first": 2, "last": 3}, [[[0, 1]], [[2, 3, 4]]]),
        (3, 8, {"first": 2, "last": 2, "virtual": 2}, [[[0], [4]], [[1, 2], [5, 6]], [[3], [7]]]),
        (2, 2, {"account_embedding": True, "account_loss": True}, [[[0]], [[1]]]),
        (
            2,
            6,
            {"account_embedding": True, "account_loss": True, "virtual": 2},
            [[[0], [3, 4]], [[1, 2], [5]]],
        ),
        (2, 3, {"layout": "E|t|tt|L"}, [[[], [1, 2]], [[0], []]]),
    ],
)
def test_split(mixtral, pipeline, layers, chosen, found):
    assert numbers(with_split(mixtral, pipeline, layers, **chosen)) == found


@pytest.mark.parametrize(
    ("pipeline", "layers", "chosen", "why"),
    [
        (2, 5, {}, "5 layers do not divide by 2 pipeline stages"),
        (2, 4, {"virtual": 3}, "2 layers do not divide by 3 virtual stages"),
        (4, 9, {"first": 2, "last": 2}, "5 layers do not divide by 2 middle stages"),
        (2, 4, {"first": 2, "last": 2, "virtual": 2}, "between the first and the last"),
        (2, 3, {"layout": "Et|tL"}, "2 layers"),
        (2, 2, {"layout": "Et|tmL"}, "1 MTP layers"),
        (2, 2, {"layout": "Et|t|L"}, "3 chunks"),
        (4, 2, {"account_embedding": True, "account_loss": True, "virtual": 2}, "do not divide"),
    ],
)
def test_split_that_cannot_be(mixtral, pipeline, layers, chosen, why):
    with pytest.raises(ValueError, match=why):
        stages.split(with_split(mixtral, pipeline, layers, **chosen))


def test_layout_of_deepseek_v3():
    split = stages.split(shape_of("dsv3-h100-4k"))
    first, last = split[0].chunks[0], split[-1].chunks[-1]
    assert [layer.kind for layer in first.layers] == ["dense"]
    assert [layer.kind for layer in last.layers] == ["MTP MoE"]
    assert (last.loss, last.embedding_copy, last.final_norm) == (True, True, False)
    # With MTP the norm follows the last decoder layer, which is on the stage before.
    assert split[6].chunks[-1].final_norm


def test_description_folds_equal_chunks():
    split = stages.split(shape_of("dsv3-h100-4k"))
    assert [stages.describe(split[rank]) for rank in (0, 1, 2, 6, 7)] == [
        "embedding, 1 dense | (2 MoE)×3",
        "2 dense | (2 MoE)×3",
        "(2 MoE)×4",
        "(2 MoE)×4",
        "(2 MoE)×3 | 1 MTP MoE, loss",
    ]


def test_description_tells_linear_attention():
    split = stages.split(shape_of("Qwen3-Next-80B-A3B MTP"))
    assert stages.describe(split[1]) == "(3 linear MoE, 1 MoE)×3"
    assert stages.describe(split[-1]).endswith("1 MTP MoE, loss")


REAL = """
import json, sys
from types import SimpleNamespace
from launcher.megatron import cpu_device
cpu_device.install()
from megatron.core import parallel_state
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

def chunks(case):
    stages, virtual = case["pipeline"], case["virtual"]
    layout = case["layout"] and PipelineParallelLayerLayout(case["layout"], stages)
    if layout:
        layout.validate_layer_layout(case["layers"], None)
        virtual = layout.virtual_pipeline_model_parallel_size
    virtual = None if virtual == 1 else virtual
    parallel_state.set_virtual_pipeline_model_parallel_world_size(virtual)
    config = SimpleNamespace(
        num_layers=case["layers"],
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=virtual,
        pipeline_model_parallel_layout=layout,
        num_layers_in_first_pipeline_stage=case["first"],
        num_layers_in_last_pipeline_stage=case["last"],
        account_for_embedding_in_pipeline_split=case["account_embedding"],
        account_for_loss_in_pipeline_split=case["account_loss"],
    )
    found = []
    for rank in range(stages):
        parallel_state.set_pipeline_model_parallel_rank(rank)
        held = []
        for stage in range(virtual or 1):
            stage = stage if virtual else None
            count = get_num_layers_to_build(config, stage, rank)
            offset = get_transformer_layer_offset(config, stage, rank)
            # More layers at the ends than there are: TransformerBlock cannot build less than none.
            assert count >= 0
            held.append(list(range(offset, min(offset + count, case["layers"]))))
        found.append(held)
    return found

found = []
for case in json.load(sys.stdin):
    try:
        found.append(chunks(case))
    except (AssertionError, ZeroDivisionError):
        found.append(None)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_random_splits_equal_megatrons(mixtral):
    draw = random.Random(4)
    cases = []
    for _ in range(3000):
        pipeline = draw.choice([2, 3, 4, 6, 8])
        case = {
            "pipeline": pipeline,
            "layers": draw.randint(pipeline, 48),
            "virtual": draw.choice([1, 1, 2, 3, 4]),
            **dict.fromkeys(("first", "last", "layout")),
            "account_embedding": False,
            "account_loss": False,
        }
        kind = draw.choice(["even", "account", "uneven", "layout"])
        if kind == "account":
            case["account_embedding"] = draw.random() < 0.7
            case["account_loss"] = draw.random() < 0.7
        elif kind == "uneven":
            case["first"] = draw.choice([None, draw.randint(0, 6)])
            case["last"] = draw.choice([None, draw.randint(0, 6)])
        elif kind == "layout":
            chunks = pipeline * case["virtual"]
            parts = ["t" * draw.randint(0, 3) for _ in range(chunks)]
            case["layers"] = max(1, sum(map(len, parts)))
            case["layout"] = "|".join(["E" + parts[0], *parts[1:-1], parts[-1] + "L"])
        cases.append(case)
    done = subprocess.run(
        [sys.executable, "-c", REAL],
        input=json.dumps(cases),
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    real = json.loads(done.stdout.splitlines()[-1])
    assert sum(found is not None for found in real) > 500
    for case, found in zip(cases, real):
        sizes = {key: case[key] for key in ("pipeline", "layers")}
        chosen = {key: text for key, text in case.items() if key not in sizes}
        try:
            ours = numbers(with_split(mixtral, **sizes, **chosen))
        except ValueError:
            ours = None
        assert ours == found, case
