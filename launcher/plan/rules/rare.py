"""Flags that are rarely used, each with what Megatron asks beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from launcher.plan.rules.case import Case, multiples

SHARDS = "--tensor-parallel-num-weight-shards"
EXPERT_SHARDS = "--expert-tensor-parallel-num-weight-shards"
FORMAT = "--ckpt-format"


def weight_shards(case: Case) -> Iterator[str]:
    """resolve_tensor_parallel_weight_shards: weights are split over a multiple of TP, or of ETP."""
    for flag, size, name in (
        (SHARDS, case.tensor, "TP"),
        (EXPERT_SHARDS, case.expert_tensor, "ETP"),
    ):
        shards = case.number(flag)
        if shards is not None and (shards < size or shards % size):
            yield f"{case.said(flag)} is not a multiple of {name}={size}"


def weight_shards_world(case: Case) -> Iterator[str]:
    """validate_args: what splits weights once more also divides the data parallel ranks."""
    shards = case.number(SHARDS) or case.tensor
    model = shards * case.pipeline * case.context
    if shards > case.tensor and shards % case.tensor == 0 and case.world_size % model:
        yield (
            f"world size {case.world_size} is not a multiple of {case.said(SHARDS)} times PP*CP = "
            f"{model}: {multiples(model, case.world_size)} would be"
        )


def weight_shards_companions(case: Case) -> Iterator[str]:
    """validate_args: what weights that are split once more cannot go with."""
    more = (case.number(SHARDS) or 0) > case.tensor
    flag = SHARDS if more else EXPERT_SHARDS
    if not more and (case.number(EXPERT_SHARDS) or 0) <= case.expert_tensor:
        return
    if case.has("--fp4-format") and not case.has("--fp4-param-gather"):
        yield f"{case.said(flag)} with --fp4-format needs --fp4-param-gather"
    if case.has("--ddp-average-in-collective"):
        yield f"{case.said(flag)} cannot go with --ddp-average-in-collective"
    if case.text(FORMAT) not in ("torch", "torch_dist"):
        yield f"{case.said(flag)} needs {FORMAT} torch_dist"
    if case.text("--fp8-recipe") == "mxfp8":
        for needed in ("--fp8-param-gather", "--reuse-grad-buf-for-mxfp8-param-ag"):
            if not case.has(needed):
                yield f"{case.said(flag)} with MXFP8 needs {needed}"
    blackwell = case.capability is not None and case.capability >= (10, 0)
    priority = "CUDA_GRAPHS_USE_NODE_PRIORITY"
    if blackwell and case.graphs != "none" and case.variable(priority) != "1":
        yield f"{case.said_variable(priority)}: {flag} with CUDA graphs needs it to be 1"


def weight_shards_engine(case: Case) -> Iterator[str]:
    """ProcessGroupCollection: the split is Transformer Engine's, from 2.19 on."""
    for flag, size in ((SHARDS, case.tensor), (EXPERT_SHARDS, case.expert_tensor)):
        if (case.number(flag) or 0) > size:
            yield f"{case.said(flag)} needs Transformer Engine 2.19 or newer where the job runs"


def hybrid_context(case: Case) -> Iterator[str]:
    """validate_args: context parallel groups that follow the sequences' lengths."""
    flag = "--hybrid-context-parallel"
    if not case.has(flag):
        return
    if case.pipeline > 1:
        yield f"{case.said(flag)} needs PP=1"
    for other in ("--enable-cuda-graph", "--use-megatron-fsdp"):
        if case.has(other):
            yield f"{case.said(flag)} cannot go with {case.said(other)}"
    if (case.text("--dataloader-type") or "single") != "single":
        yield f"{case.said(flag)} needs --dataloader-type single"
    if not case.has("--calculate-per-token-loss"):
        yield f"{case.said(flag)} needs --calculate-per-token-loss"


def fill_in_the_middle(case: Case) -> Iterator[str]:
    """validate_args: data with holes needs real data, both rates and all tokens."""
    flag = "--fim-data"
    if not case.has(flag):
        return
    if case.has("--mock-data"):
        yield f"{case.said(flag)} cannot go with --mock-data"
    for rate in ("--fim-rate", "--fim-spm-rate"):
        if not case.real(rate):
            yield f"{case.said(flag)} needs {rate} above 0"
    for token in ("prefix", "middle", "suffix", "pad", "eod"):
        if case.text(f"--fim-{token}-token") is None:
            yield f"{case.said(flag)} needs --fim-{token}-token"


def reinforcement(case: Case) -> Iterator[str]:
    """validate_args: training on what the model itself generates."""
    if not case.has("--perform-rl-step"):
        return
    graphs = case.graphs != "none"
    for flag in ("--rl-persist-cuda-graphs", "--rl-training-cuda-graphs"):
        if case.has(flag) and not graphs:
            yield f"{case.said(flag)} needs --cuda-graph-impl"
    mode = "--rl-kv-cache-management-mode"
    if case.text(mode) == "offload" and not case.has("--rl-persist-cuda-graphs"):
        yield f"{case.said(mode)} needs --rl-persist-cuda-graphs"
    if case.text("--rl-consumption-granularity") == "R":
        yield f"{case.said('--rl-consumption-granularity')} is not supported yet"
    partial = case.has("--rl-partial-rollouts")
    if (case.number("--rl-generation-lag") or 0) > 0 and not partial:
        yield f"{case.said('--rl-generation-lag')} needs --rl-partial-rollouts"
    if case.text("--rl-submission-granularity") == "R" and not partial:
        yield f"{case.said('--rl-submission-granularity')} needs --rl-partial-rollouts"
    if case.has("--rl-use-sequence-packing") and case.size("--micro-batch-size") != 1:
        yield f"--rl-use-sequence-packing needs a micro-batch of 1, not {case.said('--micro-batch-size')}"  # fmt: skip  # noqa: E501
    names = ("--grpo-prompts-per-step", "--grpo-group-size", "--grpo-iterations")
    prompts, group, iterations = (case.number(name) or 1 for name in names)
    samples, batch = prompts * group * iterations, case.number("--global-batch-size")
    if batch and samples % batch:
        yield (
            f"{' times '.join(names)} = {samples} is not a multiple of "
            f"{case.said('--global-batch-size')}"
        )


def sharp(case: Case) -> Iterator[str]:
    """initialize_model_parallel: which group reduces in the network's switches."""
    flag, group = "--use-sharp", "--sharp-enabled-group"
    if case.text(group) is not None and not case.has(flag):
        yield f"{case.said(group)} needs {flag}"
    elif case.has(flag) and case.text(group) == "dp_replica":
        instances = case.number("--num-distributed-optimizer-instances") or 1
        if instances == 1:
            yield f"{case.said(group)} needs --num-distributed-optimizer-instances above 1"
    elif case.has(flag) and case.release == "0.19":
        yield f"{case.said(flag)} is broken in Megatron-Core 0.19: it asks for a group too early"


def local_backend(case: Case) -> Iterator[str]:
    """validate_args: the local attention belongs to the local modules."""
    flag = "--attention-backend"
    if case.text(flag) == "local" and case.words("--spec")[:1] != ("local",):
        yield f"{case.said(flag)} needs --spec local"


def width_scaling(case: Case) -> Iterator[str]:
    """TransformerConfig: muP scales from a positive base."""
    flag = "--mup-base-hidden-size"
    if case.has("--use-mup") and case.has(flag) and (case.number(flag) or 0) <= 0:
        yield f"{case.said(flag)} is below 1"


def l2_norm(case: Case) -> Iterator[str]:
    """gpt_layer_specs: latent attention has no L2 norms."""
    flag = "--qk-l2-norm"
    if case.has(flag) and case.has("--multi-latent-attention"):
        yield f"{case.said(flag)} cannot go with --multi-latent-attention"


def converted_checkpoints(case: Case) -> Iterator[str]:
    """validate_args: a checkpoint that is converted comes from somewhere and goes somewhere."""
    flag = "--ckpt-convert-format"
    if case.has(flag):
        for needed in ("--load", "--ckpt-convert-save"):
            if not case.has(needed):
                yield f"{case.said(flag)} needs {needed}"


def local_checkpoints(case: Case) -> Iterator[str]:
    """validate_args: checkpoints on the nodes have a place, and maybe copies elsewhere."""
    kind = "--non-persistent-ckpt-type"
    if case.text(kind) not in ("global", "local", None):
        yield f"{case.said(kind)}: only global and local are supported"
    if case.text(kind) == "local" and not case.has("--non-persistent-local-ckpt-dir"):
        yield f"{case.said(kind)} needs --non-persistent-local-ckpt-dir"
    if case.has("--replication"):
        if not case.has("--replication-jump"):
            yield "--replication needs --replication-jump"
        if case.text(kind) != "local":
            yield f"--replication needs {kind} local"


def inference_layers(case: Case) -> Iterator[str]:
    """TransformerConfig: layers for inference, their options, and the experts that they know."""
    flag, layers = "--transformer-impl", "inference_optimized"
    fused, plain = "--inference-fuse-tp-communication", "--inference-disable-triton-nvls-kernels"
    if case.text(flag) != layers:
        for option in (fused, plain):
            if case.has(option):
                yield f"{case.said(option)} needs {flag} {layers}"
        return
    excluded = ["--apply-layernorm-1p", "--add-qkv-bias", "--use-kitchen"]
    if case.experts:
        excluded += [fused, "--swiglu", "--quick-geglu", "--moe-expert-capacity-factor"]
        excluded += ["--moe-router-padding-for-quantization", "--moe-router-padding-for-fp8"]
        if case.expert_tensor > 1:
            yield f"{case.said(flag)} with experts needs ETP=1"
        if case.text("--moe-router-dtype") != "fp32":
            yield f"{case.said(flag)} with experts needs --moe-router-dtype fp32"
    for other in excluded:
        if case.has(other):
            yield f"{case.said(flag)} cannot go with {other}"
    if case.text("--normalization") != "RMSNorm":
        yield f"{case.said(flag)} needs --normalization RMSNorm"
    if not case.has("--disable-bias-linear"):
        yield f"{case.said(flag)} needs --disable-bias-linear"


def fsdp_sharding(case: Case) -> Iterator[str]:
    """validate_args: what Megatron-FSDP's ways of sharding exclude."""
    if not case.has("--use-megatron-fsdp"):
        if case.has("--fsdp-manual-registration") and not case.has("--use-nccl-ub"):
            yield "--fsdp-manual-registration needs --use-nccl-ub"
        return
    way = case.text("--data-parallel-sharding-strategy") or "no_shard"
    weights = "--check-weight-hash-across-dp-replicas-interval"
    if way == "optim_grads_params" and case.has(weights):
        yield f"{case.said(weights)} cannot go with --data-parallel-sharding-strategy {way}"
    if way == "no_shard" and case.has("--init-model-with-meta-device"):
        yield "--init-model-with-meta-device needs a --data-parallel-sharding-strategy that shards"
    for flag in ("--moe-single-grouped-weight", "--moe-single-grouped-bias"):
        if case.has(flag):
            yield f"{case.said(flag)} cannot go with --use-megatron-fsdp"


def offload_numbers(case: Case) -> Iterator[str]:
    """TransformerConfig: sizes and shares of fine-grained activation offloading."""
    if not case.has("--fine-grained-activation-offloading"):
        return
    for flag in ("--min-offloaded-tensor-size", "--delta-offload-bytes-across-pp-ranks"):
        if (case.number(flag) or 0) < 0:
            yield f"{case.said(flag)} is below 0"
    flag = "--activation-offload-fraction"
    share = case.real(flag)
    if share is not None and not 0 <= share <= 1:
        yield f"{case.said(flag)} is not between 0 and 1"


def paged_stash(case: Case) -> Iterator[str]:
    """TransformerConfig: paged stash keeps what offloading would send away."""
    flag = "--moe-paged-stash"
    inside = {"expert_fc1", "moe_act", "fused_group_mlp"} & set(case.words("--offload-modules"))
    if case.has(flag) and inside:
        yield f"{case.said(flag)} cannot go with {min(inside)} in --offload-modules"


def layer_recompute(case: Case) -> Iterator[str]:
    """TransformerConfig: the older switch means selective recomputation."""
    flag = "--moe-layer-recompute"
    if case.has(flag) and case.text("--recompute-granularity") == "full":
        yield f"{case.said(flag)} cannot go with full recomputation"


def pipelined_inference(case: Case) -> Iterator[str]:
    """validate_args: inference in micro-batches is the pipeline's."""
    flag = "--inference-batch-times-seqlen-threshold"
    if (case.number(flag) if case.has(flag) else -1) in (-1, None):
        return
    if case.pipeline == 1:
        yield f"{case.said(flag)} needs PP above 1"
    elif case.graphs != "none":
        yield f"{case.said(flag)} cannot go with CUDA graphs"


def inference_modules(case: Case) -> Iterator[str]:
    """TransformerConfig: communication fused into the modules that are made for inference."""
    flag = "--inference-fuse-tp-communication"
    if case.has(flag) and case.text("--transformer-impl") != "inference_optimized":
        yield f"{case.said(flag)} needs --transformer-impl inference_optimized"


def saved_parameters(case: Case) -> Iterator[str]:
    """validate_args: parameters are saved between steps, when they are not on their way."""
    flag, overlap = "--save-params-interval", "--overlap-param-gather"
    if case.has(flag) and case.has("--save") and case.has(overlap):
        yield f"{case.said(flag)} cannot go with {case.said(overlap)}"


def saved_logits(case: Case) -> Iterator[str]:
    """validate_args: logits are written by the checkpoints' worker."""
    flag = "--logits-save-dir"
    for needed in ("--async-save", "--use-persistent-ckpt-worker"):
        if case.has(flag) and not case.has(needed):
            yield f"{case.said(flag)} needs {needed}"


def single_grouped_precision(case: Case) -> Iterator[str]:
    """TransformerConfig: in which precisions experts are one tensor."""
    flag = "--moe-single-grouped-weight"
    if case.has(flag) and case.has("--fp8-param-gather") and case.fp8 not in (None, "mxfp8"):
        yield f"{case.said(flag)} with FP8 parameters needs --fp8-recipe mxfp8"
    flag = "--moe-single-grouped-bias"
    if case.has(flag) and case.has("--disable-bias-linear"):
        yield f"{case.said(flag)} cannot go with --disable-bias-linear"


def encoded_layers(case: Case) -> Iterator[str]:
    """validate_model_config_args_from_heterogeneous_config: a JSON map of the layers."""
    flag = "--heterogeneous-layers-config-encoded-json"
    if not case.has(flag):
        return
    try:
        content = json.loads(case.text(flag) or "")
    except ValueError as error:
        yield f"{flag} ({case.arguments[flag].origin}) is no JSON: {error}"
        return
    if not isinstance(content, dict):
        yield f"{flag} ({case.arguments[flag].origin}) is no JSON map"


HYBRID = frozenset("MG*D+-E|")


def hybrid_pattern(case: Case) -> Iterator[str]:
    """parse_hybrid_pattern: a letter a layer, | between stages, / before each depth of MTP."""
    old, new = "--hybrid-override-pattern", "--hybrid-layer-pattern"
    if case.has(old) and case.has(new):
        yield f"{case.said(old)} and {case.said(new)}: drop the first"
    flag = new if case.has(new) else old
    depth = "--mtp-hybrid-override-pattern"
    if case.has(depth) and case.mtp and "/" not in (case.text(flag) or ""):
        wrong = sorted(set(case.text(depth) or "") - HYBRID)
        if wrong:
            yield f"{case.said(depth)}: {wrong[0]!r} is none of {' '.join(sorted(HYBRID))}"
    if not case.has(flag):
        return
    text = case.text(flag) or ""
    main, *depths = text.split("/")
    wrong = sorted(set(main + "".join(depths)) - HYBRID)
    if wrong:
        yield f"{case.said(flag)}: {wrong[0]!r} is none of {' '.join(sorted(HYBRID))} and /"
        return
    if len(set(depths)) > 1:
        yield f"{case.said(flag)}: the depths of MTP have different layers"
    if main.count("|") and (main.count("|") + 1) % case.pipeline:
        yield f"{case.said(flag)} has {main.count('|') + 1} parts, which PP={case.pipeline} does not divide"  # fmt: skip  # noqa: E501


ERRORS = (
    weight_shards,
    weight_shards_world,
    weight_shards_companions,
    hybrid_context,
    fill_in_the_middle,
    reinforcement,
    sharp,
    local_backend,
    width_scaling,
    l2_norm,
    converted_checkpoints,
    local_checkpoints,
    inference_layers,
    fsdp_sharding,
    offload_numbers,
    paged_stash,
    layer_recompute,
    pipelined_inference,
    inference_modules,
    saved_parameters,
    saved_logits,
    single_grouped_precision,
    encoded_layers,
    hybrid_pattern,
)
RUN_TIME = ()
WARNINGS = (weight_shards_engine,)
