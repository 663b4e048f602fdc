"""What each variable means as Megatron arguments: design's table, and nothing that Megatron refuses."""

from __future__ import annotations

import pytest

from tests.support.launching import launch, preview


def test_vpp():
    assert preview(MODEL="Mixtral-8x7B").flag("--num-virtual-stages-per-pipeline-rank") == ["8"]
    assert (
        preview(MODEL="Mixtral-8x7B", VPP="1").flag("--num-virtual-stages-per-pipeline-rank")
        is None
    )
    seen = preview(MODEL="Mixtral-8x7B", LAYERS_PER_VP="2")
    assert seen.flag("--num-layers-per-virtual-pipeline-stage") == ["2"]
    assert seen.flag("--num-virtual-stages-per-pipeline-rank") is None


def test_uneven_stages():
    seen = preview()
    assert seen.flag("--decoder-first-pipeline-num-layers") == ["4"]
    assert seen.flag("--decoder-last-pipeline-num-layers") == ["1"]
    seen = preview(MODEL="DeepSeek-V3-Proxy")
    assert seen.flag("--decoder-first-pipeline-num-layers") == ["2"]


def test_stages_that_nothing_fits_get_a_layout():
    seen = preview(PP="8", VPP="4", NNODES="64")
    assert seen.flag("--pipeline-model-parallel-layout")[0].count("|") == 31
    assert "note: pipeline layout" in seen.stderr
    refused = launch(MODEL="DeepSeek-V3", DRY_RUN="1", PP_FIRST="5", PP_LAST="1")
    assert refused.status == 1
    assert "PP_FIRST=5, PP_LAST=1 do not split 61 layers" in refused.stderr


def test_num_layers_does_not_silently_change_the_depth():
    seen = launch(MODEL="DeepSeek-V3", DRY_RUN="1", NUM_LAYERS="14")
    assert seen.status == 1
    assert "NUM_LAYERS=14 (environment), but the model has 61 layers" in seen.stderr


@pytest.mark.parametrize(
    ("name", "kind", "backend", "sms"),
    [
        ("alltoall", ["alltoall"], None, None),
        ("deepep", ["flex"], ["deepep"], None),
        ("hybridep", ["flex"], ["hybridep"], ["32"]),
    ],
)
def test_dispatcher(name, kind, backend, sms):
    seen = preview(DISPATCHER=name)
    assert seen.flag("--moe-token-dispatcher-type") == kind
    assert seen.flag("--moe-flex-dispatcher-backend") == backend
    assert seen.flag("--moe-flex-dispatcher-num-sms") == sms
    older = preview(DISPATCHER=name, MCORE_RELEASE_VERSION="0.18")
    assert older.flag("--moe-hybridep-num-sms") == sms


def test_dispatcher_of_the_model_and_of_the_command_line():
    assert preview(MODEL="Qwen3-30B-A3B").flag("--moe-token-dispatcher-type") == ["alltoall"]
    assert preview(MODEL="Kimi-K2").flag("--moe-flex-dispatcher-backend") == ["deepep"]
    own = preview(["--moe-token-dispatcher-type", "allgather"], MODEL="Kimi-K2")
    assert own.flag("--moe-token-dispatcher-type") == ["allgather"]
    assert own.flag("--moe-flex-dispatcher-backend") is None


def test_two_dispatchers_that_differ_are_an_error():
    seen = launch(
        MODEL="DeepSeek-V3", DRY_RUN="1", DISPATCHER="deepep", MOE_TOKEN_DISPATCHER="alltoall"
    )
    assert (seen.status, seen.stdout) == (1, "")
    assert seen.stderr == (
        "error: MOE_TOKEN_DISPATCHER=alltoall (environment) has no effect beside "
        "DISPATCHER=deepep (environment): set DISPATCHER alone\n"
    )
    agreed = preview(DISPATCHER="deepep", MOE_TOKEN_DISPATCHER="flex")
    assert agreed.flag("--moe-flex-dispatcher-backend") == ["deepep"]


def test_names_of_the_release():
    old = preview(MCORE_RELEASE_VERSION="0.15", PR="fp8")
    assert old.flag("--moe-enable-deepep") == []
    assert old.flag("--moe-router-padding-for-fp8") == []
    new = preview(["--cuda-graph-scope", "attn"], PR="fp8")
    assert new.flag("--moe-router-padding-for-quantization") == []
    assert new.flag("--cuda-graph-modules") == ["attn"]


def test_bf16_overlaps_tensor_parallel_communication_only_where_there_is_some():
    assert preview(TP="2").flag("--tp-comm-overlap") == []
    assert preview(TP="1").flag("--tp-comm-overlap") is None


@pytest.mark.parametrize(("name", "recipe"), [("fp8", "blockwise"), ("mxfp8", "mxfp8")])
@pytest.mark.parametrize("offload", [False, True])
def test_fp8(name, recipe, offload):
    seen = preview(PR=name, OPTIMIZER_OFFLOAD=str(int(offload)))
    assert seen.flag("--fp8-recipe") == [recipe]
    assert seen.flag("--fp8-format") == ["e4m3"]
    assert seen.flag("--use-precision-aware-optimizer") == []
    assert seen.flag("--main-grads-dtype") == seen.flag("--main-params-dtype") == ["fp32"]
    assert seen.flag("--exp-avg-dtype") == seen.flag("--exp-avg-sq-dtype") == ["bf16"]
    assert (seen.flag("--fp8-param-gather") is None) is offload
    mxfp8_gather = seen.flag("--reuse-grad-buf-for-mxfp8-param-ag")
    assert (mxfp8_gather is not None) is (name == "mxfp8" and not offload)


def test_offload_brings_the_precision_aware_optimizer():
    seen = preview(OPTIMIZER_OFFLOAD="1")
    assert seen.flag("--optimizer-cpu-offload") == []
    assert seen.flag("--overlap-cpu-optimizer-d2h-h2d") == []
    assert seen.flag("--use-precision-aware-optimizer") == []


def test_a2a_overlap():
    on, off = preview(A2A_OVERLAP="1"), preview()
    assert on.flag("--overlap-moe-expert-parallel-comm") == on.flag("--delay-wgrad-compute") == []
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=32\n" in on.script
    assert "export NVTE_FWD_LAYERNORM_SM_MARGIN=24\n" in on.script
    assert off.flag("--overlap-moe-expert-parallel-comm") is None
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" in off.script
    assert "export NVTE_BWD_LAYERNORM_SM_MARGIN=0\n" in off.script


def test_a2a_overlap_takes_the_shared_expert_overlap_away():
    seen = preview(MODEL="DeepSeek-V2", A2A_OVERLAP="1")
    assert seen.flag("--moe-shared-expert-overlap") is None
    assert preview(MODEL="DeepSeek-V2").flag("--moe-shared-expert-overlap") == []


def test_long_context_raises_the_positions():
    assert preview(SEQ_LEN="262144").flag("--max-position-embeddings") == ["262144"]
    assert preview(SEQ_LEN="8192").flag("--max-position-embeddings") == ["163840"]


def test_profile():
    nsys = preview(PROFILE="1")
    assert nsys.command[:2] == ["nsys", "profile"]
    assert nsys.flag("--profile-step-start") == ["23"]
    assert nsys.flag("--profile-ranks") == ["0"]
    torch = preview(PROFILE="torch")
    assert torch.command[0] == "python3"
    assert torch.flag("--use-pytorch-profiler") == []


def test_binding_wrapper_comes_before_python():
    assert preview(BINDPCIE_PATH="/opt/bind.sh").command[:2] == ["/opt/bind.sh", "python3"]


def test_wandb_is_online_only_with_a_key():
    assert "export WANDB_MODE=disabled\n" in preview().script
    key = "k" * 40
    seen = preview(WANDB_API_KEY=key)
    assert "export WANDB_MODE=online\n" in seen.script
    assert key not in seen.stdout + seen.stderr


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["--pipeline-model-parallel-layout", "Et*24|t*24L"], {"PP": "2", "VPP": "4"}, "VPP=4 (environment), but --pipeline-model-parallel-layout, command line makes 1 virtual"),
        (["--pipeline-model-parallel-layout", "Et*24|t*24L"], {"PP": "2", "PP_FIRST": "20"}, "PP_FIRST=20 (environment) has no effect beside --pipeline-model-parallel-layout"),
        (["--pipeline-model-parallel-layout", "Et*24|t*24L"], {"PP": "2", "LAYERS_PER_VP": "2"}, "LAYERS_PER_VP=2 (environment) has no effect beside"),
        (["--num-virtual-stages-per-pipeline-rank", "2"], {"PP": "2", "LAYERS_PER_VP": "2"}, "LAYERS_PER_VP=2 (environment) has no effect beside"),
        (["--num-layers-per-virtual-pipeline-stage", "6"], {"PP": "2", "VPP": "2"}, "VPP=2 (environment), but --num-layers-per-virtual-pipeline-stage, command line makes 4"),
        (["--decoder-first-pipeline-num-layers", "20"], {"PP": "2", "PP_LAST": "20"}, "PP_LAST=20 (environment) has no effect beside"),
        ([], {"PP": "4", "PP_FIRST": "50"}, "PP_FIRST=50 do not split 48 layers for PP=4"),
        ([], {"PP": "4", "VPP": "2", "LAYERS_PER_VP": "3"}, "VPP=2 (environment), but LAYERS_PER_VP makes 4"),
        ([], {"DISPATCHER": "ncclep", "MCORE_RELEASE_VERSION": "0.18"}, "DISPATCHER=ncclep needs Megatron-Core 0.19 or newer"),
        ([], {"DISPATCHER": "deepepv2"}, "DISPATCHER=deepepv2 needs Megatron's dev branch"),
    ],
)  # fmt: skip
def test_knobs_that_contradict(words, variables, said):
    seen = launch(words, MODEL="Qwen3-30B-A3B", DRY_RUN="1", NNODES="8", **variables)
    assert seen.status == 1
    assert said in seen.stderr


def test_names_say_the_virtual_stages_that_run():
    layout = "Et*6|t*6|t*6|t*6|t*6|t*6|t*6|t*6L"
    seen = preview(["--pipeline-model-parallel-layout", layout], MODEL="Qwen3-30B-A3B", PP="2")
    assert "VPP4" in seen.flag("--wandb-exp-name")[0]
    seen = preview(MODEL="Qwen3-30B-A3B", PP="4", LAYERS_PER_VP="3")
    assert "VPP4" in seen.flag("--wandb-exp-name")[0]


def test_a_first_or_last_stage_alone():
    seen = preview(MODEL="Qwen3-30B-A3B", PP="4", PP_FIRST="9", NNODES="4")
    assert seen.flag("--decoder-first-pipeline-num-layers") == ["9"]
    assert seen.flag("--decoder-last-pipeline-num-layers") is None


def test_nvfp4_and_what_the_header_says():
    seen = preview(PR="nvfp4", GPU="B200")
    assert seen.flag("--fp4-format") == ["e2m1"]
    assert seen.flag("--fp8-format") is None
    assert "; nvfp4; Megatron-Core" in seen.stderr
    assert "--fp4-format (PR=nvfp4) is not modelled" in seen.stderr
    seen = preview(["--fp8-format", "e4m3", "--fp8-recipe", "mxfp8"], PR="bf16", GPU="B200")
    assert "; mxfp8; Megatron-Core" in seen.stderr


@pytest.mark.parametrize("gpu", ["B300", "VR200"])
def test_newer_gpus(gpu):
    seen = preview(GPU=gpu).stderr
    assert f"{gpu} = " in seen
    assert f"of 268 ({gpu})" in seen


def test_dispatchers_of_newer_releases():
    seen = preview(DISPATCHER="ncclep")
    assert seen.flag("--moe-flex-dispatcher-backend") == ["ncclep"]
    seen = preview(DISPATCHER="deepepv2", MCORE_RELEASE_VERSION="dev")
    assert seen.flag("--moe-flex-dispatcher-backend") == ["deepepv2"]
