"""The published models' complete tensor lists, through mapping and audit; no data.

Names and shapes come from transformers' own classes on the meta device, as it would save them, and
what those leave out is added as published: DeepSeek-V3's layer 61 (MTP, with its copies of the
embedding and of the output layer), and the FP8 weights' block scales.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from launcher.convert import (
    audit,
    configuration,
    description,
    encodings,
    legacy,
    parameters,
    tables,
    to_megatron,
)
from launcher.convert import torch_dist as dist
from launcher.convert.hugging_face import Source, Tensor
from launcher.plan.parameters import stages as count_stages
from tests.support.synthetic import FAMILIES, environment

PUBLISHED = Path(__file__).parents[1] / "megatron" / "published"
# Models that no file of model_configs describes: their YAML, and what is published of them.
MORE = Path(__file__).parent / "models"
FP8 = ("DeepSeek-V3", "DeepSeek-V3.2", "Kimi-K2")
_QUANTIZED = r"(?<!\.eh)(?<!weights)_proj|\.indexer\.w(q_b|k)\."
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


@dataclass(frozen=True)
class Recipe:
    """A model and how a recipe splits it; unset sizes are those of runtime.conf."""

    model: str
    table: str
    sizes: tuple[tuple[str, int], ...] = ()
    words: tuple[str, ...] = ()
    release: str = "0.19"


RECIPES = [
    Recipe("DeepSeek-V3", "deepseek-v3"),
    Recipe(
        "DeepSeek-V3",
        "deepseek-v3",
        (("TP", 2), ("PP", 8), ("EP", 64), ("VPP", 4)),
        ("--pipeline-model-parallel-layout", "Et|(tt|)*30mL"),
    ),
    Recipe("Kimi-K2", "deepseek-v3"),
    Recipe("Qwen3-235B-A22B", "qwen3-moe"),
]
_SPLIT = (("TP", 2), ("PP", 2), ("EP", 8), ("VPP", 1))
_EXPERTS_WHOLE = ("--expert-tensor-parallel-size", "1")
FURTHER = [
    Recipe("Qwen3-Coder-480B-A35B", "qwen3-moe", _SPLIT, _EXPERTS_WHOLE),
    Recipe(
        "Moonlight-16B-A3B",
        "deepseek-v3",
        (*_SPLIT, ("PP_FIRST", 14), ("PP_LAST", 13)),
        _EXPERTS_WHOLE,
        release="0.18",
    ),
    Recipe("GLM-4.5-Air", "glm4-moe", _SPLIT, _EXPERTS_WHOLE),
    Recipe("GLM-4.6", "glm4-moe", _SPLIT, _EXPERTS_WHOLE),
    Recipe("Qwen3.5-35B-A3B", "qwen3-5-moe", _SPLIT, _EXPERTS_WHOLE),
    Recipe("DeepSeek-V3.2", "deepseek-v3.2"),
    Recipe("GLM-5", "glm-moe-dsa", _SPLIT, _EXPERTS_WHOLE),
    Recipe("gpt-oss-20b", "gpt-oss", _SPLIT, _EXPERTS_WHOLE),
    Recipe("gpt-oss-120b", "gpt-oss", _SPLIT, _EXPERTS_WHOLE),
]


@cache
def published(model: str) -> Source:
    """A model's headers, as a folder of its publication would have them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    folder = MORE if (MORE / f"{model}.json").exists() else PUBLISHED
    described = json.loads((folder / f"{model}.json").read_text())
    config = AutoConfig.for_model(**described["config"])
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    saved = revert_weight_conversion(theirs, theirs.state_dict())
    shapes = {encodings.plain_name(name): tuple(tensor.shape) for name, tensor in saved.items()}
    layers = config.num_hidden_layers
    if described["mtp_layers"]:
        qwen = config.model_type.startswith("qwen")
        last = f"model.layers.{layers - 1}."
        mtp = "mtp.layers.0." if qwen else f"model.layers.{layers}."
        shapes.update(
            {mtp + n[len(last) :]: shape for n, shape in shapes.items() if n.startswith(last)}
        )
        hidden = config.hidden_size
        if qwen:
            for norm in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
                shapes[f"mtp.{norm}.weight"] = (hidden,)
            shapes["mtp.fc.weight"] = (hidden, 2 * hidden)
        else:
            for norm in ("enorm", "hnorm", "shared_head.norm"):
                shapes[f"{mtp}{norm}.weight"] = (hidden,)
            shapes[f"{mtp}eh_proj.weight"] = (hidden, 2 * hidden)
            shapes[f"{mtp}embed_tokens.weight"] = shapes["model.embed_tokens.weight"]
            shapes[f"{mtp}shared_head.head.weight"] = shapes["lm_head.weight"]
    if config.model_type == "gpt_oss":
        shapes = dict(_mxfp4(shapes))
    tensors = {}
    for name, shape in shapes.items():
        quantized = model in FP8 and re.search(_QUANTIZED, name)
        kind = "F8_E4M3" if quantized else "F32" if "e_score" in name else "BF16"
        kind = "U8" if name.endswith(("_blocks", "_scales")) else kind
        tensors[name] = Tensor(Path("meta"), kind, shape, 0, math.prod(shape) * BYTES[kind])
        if quantized:
            blocks = tuple(-(-size // 128) for size in shape)
            size = 4 * math.prod(blocks)
            tensors[f"{name}_scale_inv"] = Tensor(Path("meta"), "F32", blocks, 0, size)
    return Source(Path("meta"), described["config"], tensors)


def _mxfp4(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors as gpt-oss is published: its stacks, [e, n, m], as blocks and scales of m rows."""
    for name, shape in shapes.items():
        if len(shape) == 3:
            experts, columns, rows = shape
            yield f"{name}_blocks", (experts, rows, columns // 32, 16)
            yield f"{name}_scales", (experts, rows, columns // 32)
        else:
            yield name, shape


def matched(recipe: Recipe) -> to_megatron.Mapped:
    """A recipe's job and the published model, audited."""
    table = tables.TABLES[recipe.table]
    source = encodings.decoded(published(recipe.model), table)
    environ = environment(Path(recipe.model), FAMILIES["deepseek-v3"], **dict(recipe.sizes))
    for name in ("TP", "PP", "EP", "VPP"):
        if name not in dict(recipe.sizes):
            del environ[name]
    yaml = MORE / f"{recipe.model}.yaml"
    environ["MODEL"] = str(yaml) if yaml.exists() else recipe.model
    environ["MCORE_RELEASE_VERSION"] = recipe.release
    there = any("eh_proj" in name or name == "mtp.fc.weight" for name in source.tensors)
    mtp = ("--mtp-num-layers", "1") if there else ()
    described = description.from_launcher([*recipe.words, *mtp], environ)
    return to_megatron.match(source, described, table)


@pytest.mark.slow
def test_the_list_of_deepseek_v3_is_the_published_one() -> None:
    """163 files, 91,991 tensors: what model-inspect (github.com/simpx/model-inspect) counts."""
    tensors = published("DeepSeek-V3").tensors
    assert len(tensors) == 91_991
    assert sum(tensor.size for tensor in tensors.values()) == 688_574_839_360


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FURTHER, ids=lambda one: one.model)
def test_no_tensor_of_the_further_models_is_lost(recipe: Recipe) -> None:
    mapped = matched(recipe)
    config, found = mapped.source.config, mapped.job
    configuration.check(config, tables.TABLES[recipe.table], found.shape.model, found.arguments)
    _check_places(mapped)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: f"{one.model}{len(one.words)}")
def test_no_tensor_is_lost(recipe: Recipe) -> None:
    _check_places(matched(recipe))


def _check_places(mapped: to_megatron.Mapped) -> None:
    """Hold the places of all parameters in both formats against the model, and the plan's counts."""
    described, model = mapped.job, mapped.job.shape.model

    # torch_dist: the parameters' places tile every tensor exactly.
    layers, covered, whole = dist.layers(described), Counter(), {}
    places = set()
    for one in mapped.filled:
        where = dist.place(described, layers, one.parameter)
        for key, shape, offset, rows in dist.chunks(one.parameter, where):
            assert (key, offset) not in places
            places.add((key, offset))
            assert whole.setdefault(key, shape) == shape
            covered[key] += (rows.stop - rows.start) * math.prod(one.parameter.shape[1:])
    assert {key: math.prod(shape) for key, shape in whole.items()} == covered

    # legacy: every parameter's parts are there, as many as it has, and nothing else is.
    found: dict[str, set[int]] = {}
    local: dict[legacy.Rank, int] = {}
    sizes = {
        one.parameter.name: math.prod(legacy.local_shape(one.parameter, described))
        for one in mapped.filled
    }
    experts = {one.parameter.name for one in mapped.filled if one.parameter.expert}
    buffers = {one.parameter.name for one in mapped.filled if one.parameter.float32}
    for rank in legacy.ranks(described):
        held = list(legacy.held(described, rank))
        assert len({(one.model, one.name) for one in held}) == len(held)
        for one in held:
            part = rank.expert_tensor if one.parameter in experts else rank.tensor
            found.setdefault(one.parameter, set()).add(part)
        local[rank] = sum(sizes[one.parameter] for one in held if one.parameter not in buffers)
    parallel = described.shape.parallel
    for parameter in parameters.every(model):
        count = parallel.expert_tensor if parameter.expert else parallel.tensor
        assert found.pop(parameter.name) == set(range(count))
    assert found == {}
    # Each rank's file has as many parameters as the launcher's plan counts for its stage.
    planned = [count.total for count in count_stages(described.shape, described.stages)]
    if model.attention.latent and model.attention.q_rank is None:
        # The plan counts release 0.19's norm over the input of uncompressed queries.
        for number, stage in enumerate(described.stages):
            planned[number] -= model.hidden * len(stage.layers)
    assert all(size == planned[rank.pipeline] for rank, size in local.items())


@pytest.mark.slow
def test_a_missing_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables.TABLES["qwen3-moe"]
    source = published("Qwen3-235B-A22B")
    mapped = matched(RECIPES[3])
    lost = {name: tensor for name, tensor in source.tensors.items() if ".experts.77." not in name}
    with pytest.raises(audit.UsageError) as caught:
        to_megatron.match(Source(source.folder, source.config, lost), mapped.job, table)
    assert "the audit found 282: " in str(caught.value)
    assert "model.layers.0.mlp.experts.77.down_proj.weight is not in the source" in str(
        caught.value
    )
