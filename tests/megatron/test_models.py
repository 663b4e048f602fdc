"""The real Megatron models against the published ones, and the verifier that builds them.

The verifier runs as its users run it, in a process of its own: what it changes in PyTorch stays there.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import preview

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERIFY = ROOT / "launcher" / "megatron" / "verify.py"
PUBLISHED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((HERE / "published").glob("*.json"))
}
MODELS = sorted(path.stem for path in (ROOT / "model_configs" / "benchmarking").glob("*.yaml"))
WITH_MTP = [name for name in MODELS if PUBLISHED.get(name, {}).get("mtp_layers")]
# Parameters that Megatron has and the published model has not, and why.
DIFFERENCES = {
    # 27 layers of 2048 weights. `--qk-layernorm` stands for the norms of compressed queries and of
    # compressed keys and values; where queries are not compressed, Megatron 0.19 puts the norm before
    # their projection instead (NVIDIA-NeMo/Megatron-Bridge issue 5261). No flag separates the two.
    "DeepSeek-V2-Lite": 27 * 2048,
}

TINY = shlex.split(
    """
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4
    --seq-length 64 --max-position-embeddings 64 --position-embedding-type rope
    --normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
    --num-experts 8 --moe-ffn-hidden-size 64 --moe-router-topk 2 --moe-router-dtype fp32
    --vocab-size 256 --mock-data --tokenizer-type NullTokenizer --bf16
    --micro-batch-size 1 --global-batch-size 64 --train-iters 4 --lr 1e-3
    --use-distributed-optimizer
    """
)


def judge(*jobs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The verifier's verdicts by the jobs' names."""
    done = subprocess.run(
        [sys.executable, str(VERIFY)],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(verdict["name"] for verdict in verdicts) == sorted(job["name"] for job in jobs)
    return {verdict["name"]: verdict for verdict in verdicts}


def job(model: str, build: str, **variables: str) -> dict[str, Any]:
    """The job that a dry run of the model prints, for the verifier."""
    shown = preview(MODEL=model, OUTPUT_PATH="/output", **variables)
    words = shown.command
    exports = re.findall(r"^export ([A-Z_]+)=(.*)$", shown.script, re.MULTILINE)
    nodes, tasks = (
        int(re.search(rf"^#SBATCH --{option}=(\d+)$", shown.script, re.MULTILINE)[1])
        for option in ("nodes", "ntasks-per-node")
    )
    return {
        "name": model,
        "argv": words[next(i for i, word in enumerate(words) if word.startswith("--")) :],
        "world_size": nodes * tasks,
        "environment": {name: "".join(shlex.split(text)) for name, text in exports},
        "build": build,
    }


def without(argv: list[str], flag: str) -> list[str]:
    """The words without a flag that has one value."""
    if flag not in argv:
        return argv
    at = argv.index(flag)
    return [*argv[:at], *argv[at + 2 :]]


# --- the models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, int]]:
    """The counts of every whole model on one rank: "NAME", and "NAME with MTP" where it has one."""
    jobs = []
    one = dict.fromkeys(("TP", "PP", "EP", "CP", "VPP", "NNODES"), "1")
    for model in MODELS:
        described = job(model, "all", DISPATCHER="alltoall", **one)
        # Counted only: no rank has the buffers and the optimizer of a whole model.
        argv = [*without(described["argv"], "--mtp-num-layers"), "--skip-train"]
        jobs.append({**described, "argv": argv})
        if model in WITH_MTP:
            argv = [*argv, "--mtp-num-layers", "1"]
            name = f"{model} with MTP"
            jobs.append({**described, "name": name, "argv": argv, "own_training": True})
    verdicts = judge(*jobs)
    assert {v["name"]: v["message"] for v in verdicts.values() if not v["accepted"]} == {}
    return {name: verdict["stages"][0] for name, verdict in verdicts.items()}


@cache
def hugging_face(model: str) -> tuple[Any, Any]:
    """The published model's own class on the meta device, and its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**PUBLISHED[model]["config"])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), config


def size(module: Any) -> int:
    """A module's parameters. Buffers are none: not the router's e_score_correction_bias either.

    Megatron keeps that as the buffer `expert_bias`; it is moved by rule, not by gradient.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def routed(model: Any) -> int:
    """The parameters of the experts that the router chooses between."""
    return sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)


def test_every_model_has_its_published_counterpart() -> None:
    assert sorted(PUBLISHED) == MODELS
    assert len(MODELS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_the_published_models(model: str, whole: dict) -> None:
    theirs, _ = hugging_face(model)
    assert size(theirs) == PUBLISHED[model]["parameters"]
    assert whole[model]["parameters"] == size(theirs) + DIFFERENCES.get(model, 0)
    assert whole[model]["routed_parameters"] == routed(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("model", WITH_MTP)
def test_mtp_layer_is_the_published_one(model: str, whole: dict) -> None:
    theirs, config = hugging_face(model)
    hidden = config.hidden_size
    # A layer like the last; the projection of hidden state and embedding; a norm of each, and the
    # norm of the result. (transformers leaves the MTP layer of these checkpoints out.)
    expected = size(theirs.model.layers[-1]) + 2 * hidden * hidden + 3 * hidden
    assert whole[f"{model} with MTP"]["parameters"] == whole[model]["parameters"] + expected


@pytest.mark.slow
def test_deepseek_v3_checkpoint_holds_copies_for_mtp(whole: dict) -> None:
    _, config = hugging_face("DeepSeek-V3")
    assert whole["DeepSeek-V3 with MTP"]["parameters"] == 682_636_472_320
    # The checkpoint is said to have 685B, 14B of them for MTP: it repeats the embedding and the
    # output layer, which MTP shares with the model.
    copies = 2 * config.vocab_size * config.hidden_size
    assert whole["DeepSeek-V3 with MTP"]["parameters"] + copies == 684_489_830_400


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [name for name in MODELS if PUBLISHED.get(name, {}).get("active")]
)
def test_active_parameters_are_the_published_figure(model: str, whole: dict) -> None:
    theirs, config = hugging_face(model)
    published = PUBLISHED[model]
    experts = published["config"].get("num_local_experts") or (
        published["config"].get("n_routed_experts") or published["config"].get("num_experts")
    )

    def active(parameters: int, experts_parameters: int) -> int:
        idle = experts - config.num_experts_per_tok
        return parameters - experts_parameters // experts * idle

    ours = active(whole[model]["parameters"], whole[model]["routed_parameters"])
    assert ours == active(size(theirs), routed(theirs)) + DIFFERENCES.get(model, 0)
    if not published["active_counts_embedding"]:
        ours -= config.vocab_size * config.hidden_size
    # Published figures are rounded or cut off (2.45 is "2.4B", 3.87 is "3B").
    figure = published["active"].rstrip("B")
    unit = 0.1 if "." in figure else 1
    assert abs(ours / 1e9 - float(figure)) < unit


# --- the defaults -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def defaults() -> dict[str, dict[str, Any]]:
    """The verdicts on every model's default job, and on Qwen3-Next's with MTP in both trainings."""
    jobs = [job(model, "ends") for model in MODELS]
    (following,) = (job for job in jobs if job["name"] == "Qwen3-Next-80B-A3B")
    mtp = {**following, "name": "MTP", "argv": [*following["argv"], "--mtp-num-layers", "1"]}
    return judge(*jobs, mtp, {**mtp, "name": "MTP, own training", "own_training": True})


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_default_is_accepted_at_its_world_size(model: str, defaults: dict) -> None:
    verdict = defaults[model]
    assert verdict["accepted"], verdict["message"]
    assert verdict["stages"][0]["pipeline_rank"] == 0
    assert all(stage["parameters"] > 1e9 for stage in verdict["stages"])


@pytest.mark.slow
def test_mtp_beside_an_attention_variant(defaults: dict) -> None:
    """Why Qwen3-Next's config leaves MTP out: pretrain_gpt.py of 0.19 builds with what refuses it."""
    assert defaults["MTP"]["refused_by"] == "model"
    assert "Experimental attention variant is not supported" in defaults["MTP"]["message"]
    assert defaults["MTP, own training"]["accepted"]


# --- the verifier -------------------------------------------------------------------------------

CONNECTIONS = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
PIPELINE = ("--pipeline-model-parallel-size", "2")
TENSOR = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
EXPERTS = ("--expert-model-parallel-size", "4", "--expert-tensor-parallel-size", "1")
ENGINE = shlex.split(
    """
    --overlap-grad-reduce --overlap-param-gather --delay-wgrad-compute --moe-permute-fusion
    --overlap-moe-expert-parallel-comm --expert-model-parallel-size 2 --moe-grouped-gemm
    --moe-router-fusion --use-precision-aware-optimizer --exp-avg-dtype bf16
    --exp-avg-sq-dtype bf16 --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep
    """
)
MXFP8 = shlex.split(
    """
    --fp8-format e4m3 --fp8-recipe mxfp8 --fp8-param-gather --reuse-grad-buf-for-mxfp8-param-ag
    --overlap-grad-reduce --overlap-param-gather
    """
)
# name: (arguments, ranks, who refuses, part of the message)
REFUSALS = {
    "unknown flag": (("--no-such-flag",), 8, "parser", "unrecognized arguments: --no-such-flag"),
    "bad type": (("--seq-length", "long"), 8, "parser", "invalid int value: 'long'"),
    "bad choice": (("--lr-decay-style", "flat"), 8, "parser", "invalid choice: 'flat'"),
    "world size": (("--pipeline-model-parallel-size", "3"), 8, "validate_args", "not divisible by"),
    "batch size": (("--global-batch-size", "9"), 8, "validate_args", "must be divisible by"),
    "TP overlap at TP1": (
        ("--tp-comm-overlap", "--sequence-parallel"),
        8,
        "validate_args",
        "can happen only when sequence parallelism is enabled",
    ),
    "offload alone": (
        ("--optimizer-cpu-offload",),
        8,
        "validate_args",
        "must be used in conjunction with `--use-precision-aware-optimizer`",
    ),
    "variable not set": (TENSOR, 8, "validate_args", "CUDA_DEVICE_MAX_CONNECTIONS to 1"),
    "lost layer": (
        (*PIPELINE, "--pipeline-model-parallel-layout", "Et|ttL"),
        8,
        "configuration",
        "layers",
    ),
    "heads": (
        ("--tensor-model-parallel-size", "8", "--expert-tensor-parallel-size", "1"),
        8,
        "configuration",
        "must be a multiple of tensor_model_parallel_size",
    ),
    "expert parallelism": (
        ("--expert-model-parallel-size", "8", *PIPELINE),
        8,
        "groups",
        "not divisible by",
    ),
    "layer frequency": (("--moe-layer-freq", "([0]*1+[1]*9)"), 8, "model", "moe_layer_pattern"),
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, Any]]:
    """The verdicts on small jobs, broken and sound, all from one start of the verifier."""
    jobs = [
        {
            "name": name,
            "argv": [*TINY, *arguments],
            "world_size": ranks,
            "environment": {} if name == "variable not set" else CONNECTIONS,
            "build": "ends",
        }
        for name, (arguments, ranks, *_) in REFUSALS.items()
    ]
    sound = {"world_size": 8, "environment": CONNECTIONS, "build": "all"}
    jobs += [
        {"name": "whole", "argv": TINY, **sound},
        {"name": "unbuilt", "argv": TINY, **sound, "build": "none"},
        {"name": "pipeline", "argv": [*TINY, *PIPELINE], **sound},
        {
            "name": "virtual",
            "argv": [*TINY, *PIPELINE, "--pipeline-model-parallel-layout", "Et|t|t|tL"],
            **sound,
        },
        {
            "name": "experts",
            "argv": [*TINY, *TENSOR, *EXPERTS],
            **sound,
        },
        {
            "name": "engine",
            "argv": [*TINY, *ENGINE],
            **sound,
            "environment": {"CUDA_DEVICE_MAX_CONNECTIONS": "32"},
        },
        {"name": "mxfp8", "argv": [*TINY, *MXFP8], **sound, "compute_capability": [10, 0]},
        {
            "name": "no vocabulary",
            "argv": [*without(TINY, "--vocab-size"), "--tokenizer-model", "some/model"],
            **sound,
        },
    ]
    return judge(*jobs)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_broken_job_is_refused_where_megatron_refuses_it(name: str, verdicts: dict) -> None:
    *_, refused_by, message = REFUSALS[name]
    verdict = verdicts[name]
    assert (verdict["accepted"], verdict["refused_by"]) == (False, refused_by), verdict["message"]
    assert message in verdict["message"]
    assert "\n" not in verdict["message"]


@pytest.mark.slow
def test_counts_are_of_one_rank_of_each_stage(verdicts: dict) -> None:
    (whole,) = verdicts["whole"]["stages"]
    expert = 3 * 64 * 64
    embedding, attention, norms = 256 * 64, 4 * 64 * 64, 2 * 64
    layer = attention + norms + 8 * 64 + 8 * expert
    assert whole == {
        "pipeline_rank": 0,
        "parameters": 2 * embedding + 4 * layer + 64,
        "expert_parameters": 0,  # at EP1 their gradients are reduced with all others
        "routed_parameters": 4 * 8 * expert,
    }
    for name in ("pipeline", "virtual"):
        stages = verdicts[name]["stages"]
        assert [stage["pipeline_rank"] for stage in stages] == [0, 1]
        assert [stage["parameters"] for stage in stages] == [
            embedding + 2 * layer,
            embedding + 2 * layer + 64,
        ]
    (split,) = verdicts["experts"]["stages"]
    assert split["expert_parameters"] == split["routed_parameters"] == 4 * 2 * expert
    part = attention // 2 + norms + 8 * 64 + 2 * expert
    assert split["parameters"] == embedding + 4 * part + 64
    assert verdicts["unbuilt"]["accepted"]
    assert verdicts["unbuilt"]["stages"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["engine", "mxfp8"])
def test_what_needs_the_containers_software_is_judged_as_there(name: str, verdicts: dict) -> None:
    assert verdicts[name]["accepted"], verdicts[name]["message"]
    assert verdicts[name]["stages"]


@pytest.mark.slow
def test_a_fault_of_the_judge_is_not_the_jobs(verdicts: dict) -> None:
    verdict = verdicts["no vocabulary"]
    assert (verdict["accepted"], verdict["refused_by"]) == (False, None)
    assert "--vocab-size must be specified" in verdict["message"]
