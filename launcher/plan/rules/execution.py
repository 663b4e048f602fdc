"""What is overlapped, recomputed, offloaded and captured in CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.rules.case import Case

OVERLAP = "--overlap-moe-expert-parallel-comm"
DELAY = "--delay-wgrad-compute"
METHOD = "--recompute-method"
NUMBER = "--recompute-num-layers"
MODULES = "--recompute-modules"
RECOMPUTABLE = (
    "core_attn",
    "moe_act",
    "layernorm",
    "mla_up_proj",
    "mlp",
    "moe",
    "shared_experts",
)
OFFLOADABLE = (
    "core_attn",
    "attn_proj",
    "expert_fc1",
    "fused_group_mlp",
    "moe_act",
    "attn_norm",
    "mlp_norm",
    "qkv_linear",
)
INSIDE_EXPERTS = frozenset({"expert_fc1", "moe_act", "fused_group_mlp"})


def expert_overlap(case: Case) -> Iterator[str]:
    """TransformerConfig: what hiding the all-to-all behind another micro-batch needs."""
    if not case.has(OVERLAP):
        return
    setting = case.said(OVERLAP)
    if case.pipeline > 1 and case.virtual == 1:
        yield f"{setting} with PP={case.pipeline} needs virtual stages: VPP above 1"
    if case.expert == 1:
        yield f"{setting} needs EP above 1"
    if case.dispatcher not in ("alltoall", "flex"):
        yield f"{setting} needs --moe-token-dispatcher-type alltoall or flex, not {case.dispatcher}"
    if not case.has("--bf16", "--fp16"):
        yield f"{setting} needs --bf16 or --fp16"
    if case.has("--moe-shared-expert-overlap"):
        yield f"{setting} cannot go with {case.said('--moe-shared-expert-overlap')}"
    if case.mtp > 1:
        yield f"{setting} allows one MTP layer, not {case.said('--mtp-num-layers')}"


def expert_overlap_recompute(case: Case) -> Iterator[str]:
    """TransformerConfig: recomputation must not repeat an overlapped all-to-all."""
    if not case.has(OVERLAP):
        return
    if case.granularity == "full" and case.release == "dev":
        for flag in ("--attention-dropout", "--hidden-dropout"):
            if case.real(flag):
                yield f"{case.said(OVERLAP)} with full recomputation needs {flag} 0"
        if case.fp8 == "delayed":
            yield f"{case.said(OVERLAP)} with full recomputation needs another --fp8-recipe"
    elif case.granularity == "full":
        yield f"{case.said(OVERLAP)} cannot go with full recomputation: recompute modules instead"
    elif case.has(METHOD) or case.has(NUMBER):
        flag = METHOD if case.has(METHOD) else NUMBER
        yield f"{case.said(OVERLAP)} cannot go with {case.said(flag)}"
    elif "moe" in case.recomputed:
        yield f"{case.said(OVERLAP)} cannot go with {case.said(MODULES)}: take moe out"


def expert_overlap_graphs(case: Case) -> Iterator[str]:
    """TransformerConfig: an overlapped expert network is not captured whole."""
    whole = case.graphed & {"moe", "mlp"}
    if case.has(OVERLAP) and case.graphs == "transformer_engine" and whole:
        yield f"{case.said(OVERLAP)} cannot go with {case.said(case.graph_flag)}: drop {min(whole)}"


def delayed_weight_gradients(case: Case) -> Iterator[str]:
    """TransformerConfig, validate_args: weight gradients fill the wait for the all-to-all."""
    if not case.has(DELAY):
        return
    if not case.has(OVERLAP):
        yield f"{case.said(DELAY)} needs {OVERLAP} (A2A_OVERLAP=1)"
    if case.text("--transformer-impl") != "transformer_engine":
        yield f"{case.said(DELAY)} needs --transformer-impl transformer_engine"


def delayed_weight_gradients_in_graphs(case: Case) -> Iterator[str]:
    """validate_args: captured weight gradients live at fixed addresses."""
    shared = case.number("--moe-shared-expert-intermediate-size") is not None
    captured = "attn" in case.graphed or (
        "moe_router" in case.graphed and shared and not case.has("--moe-shared-expert-overlap")
    )
    overlapped = case.has(DELAY) and case.has("--overlap-grad-reduce")
    if not overlapped or not captured or not case.since("0.17"):
        return
    fusion = "--no-gradient-accumulation-fusion"
    if case.has(fusion):
        yield f"{case.said(DELAY)} with {case.said(case.graph_flag)} cannot go with {fusion}"
    biased = not case.has("--disable-bias-linear") or case.has("--add-qkv-bias")
    if "attn" in case.graphed and biased:
        yield f"{case.said(DELAY)} with {case.said(case.graph_flag)} takes no bias in attention"


def early_release(case: Case) -> Iterator[str]:
    """TransformerConfig: what belongs to the expert overlap, and what excludes it."""
    flag = "--ep-overlap-early-attn-memory-release"
    if case.has(flag) and not case.has(OVERLAP):
        yield f"{case.said(flag)} needs {OVERLAP}"
    flag = "--overlap-dispatch-backward-with-experts-wgrad"
    for other in (OVERLAP, DELAY):
        if case.has(flag) and case.has(other):
            yield f"{case.said(flag)} cannot go with {case.said(other)}"


def tensor_overlap(case: Case) -> Iterator[str]:
    """validate_args: overlapped TP communication is sequence parallelism's."""
    flag = "--tp-comm-overlap"
    if case.has(flag) and not case.sequence_parallel:
        yield f"{case.said(flag)} needs TP above 1 (now {case.tensor}) and --sequence-parallel"


def parameter_overlap(case: Case) -> Iterator[str]:
    """validate_args: gathered parameters overlap with the forward pass of a sharded optimizer."""
    flag = "--overlap-param-gather"
    if not case.has(flag):
        return
    sharded = case.has("--use-distributed-optimizer", "--use-megatron-fsdp")
    if not sharded and case.text("--optimizer") != "dist_muon":
        yield f"{case.said(flag)} needs --use-distributed-optimizer"
    if not case.has("--overlap-grad-reduce"):
        yield f"{case.said(flag)} needs --overlap-grad-reduce"


def parameter_overlap_with_step(case: Case) -> Iterator[str]:
    """validate_args, OptimizerConfig: gathering during the optimizer's step."""
    flag = "--overlap-param-gather-with-optimizer-step"
    if not case.has(flag):
        return
    if not case.has("--use-distributed-optimizer"):
        yield f"{case.said(flag)} needs --use-distributed-optimizer"
    if not case.has("--overlap-param-gather"):
        yield f"{case.said(flag)} needs --overlap-param-gather"
    if case.virtual == 1:
        yield f"{case.said(flag)} needs virtual stages: VPP above 1"
    if case.text("--ckpt-format") != "torch":
        yield f"{case.said(flag)} cannot go with {case.said('--ckpt-format')}: torch alone"
    if case.has("--reuse-grad-buf-for-mxfp8-param-ag"):
        yield f"{case.said(flag)} cannot go with --reuse-grad-buf-for-mxfp8-param-ag"


def deferred_embedding(case: Case) -> Iterator[str]:
    """ModelParallelConfig: the embedding's weight gradient waits for the pipeline to drain."""
    flag = "--defer-embedding-wgrad-compute"
    if not case.has(flag):
        return
    if case.pipeline == 1:
        yield f"{case.said(flag)} needs PP above 1"
    if case.has("--no-gradient-accumulation-fusion"):
        yield f"{case.said(flag)} cannot go with --no-gradient-accumulation-fusion"


def overlapped_warmup(case: Case) -> Iterator[str]:
    """ModelParallelConfig: overlap in the pipeline's warm-up is p2p overlap, which is VPP's."""
    flag = "--overlap-p2p-communication-warmup-flush"
    if not case.has(flag):
        return
    if case.virtual == 1 or case.has("--no-overlap-p2p-communication"):
        yield f"{case.said(flag)} needs virtual stages with overlapped p2p communication"


def recompute_method(case: Case) -> Iterator[str]:
    """TransformerConfig, validate_args: full recomputation has a method and a number of layers."""
    if case.granularity == "full":
        if not case.has(METHOD):
            yield f"{case.said('--recompute-granularity')} needs {METHOD} uniform or block"
        elif not case.has(NUMBER):
            yield f"{case.said('--recompute-granularity')} needs {NUMBER}"
    elif case.granularity == "selective":
        for flag in (METHOD, NUMBER):
            if case.has(flag):
                yield f"selective recomputation cannot go with {case.said(flag)}"
                return


def mtp_recompute(case: Case) -> Iterator[str]:
    """MultiTokenPredictionLayer._checkpointed_forward: MTP is recomputed by one layer."""
    if not (case.mtp and case.granularity == "full" and case.has(NUMBER)):
        return
    if case.text(METHOD) == "uniform" and case.number(NUMBER) != 1:
        yield f"{case.said(NUMBER)} with uniform recomputation has to be 1 beside MTP"


def recompute_modules(case: Case) -> Iterator[str]:
    """TransformerConfig: selective recomputation is of known modules that the model has."""
    if case.granularity != "selective":
        return
    setting = case.said(MODULES)
    known = (*RECOMPUTABLE, "gdn_norm_out") if case.since("0.19") else RECOMPUTABLE
    if case.release == "dev":
        known = (*known, "gdn", "mhc")
    unknown = sorted(case.recomputed - set(known))
    if unknown:
        yield f"{setting}: {unknown[0]} is none of {', '.join(known)}"
    if "moe_act" in case.recomputed and not case.has("--moe-grouped-gemm"):
        yield f"{setting}: moe_act needs --moe-grouped-gemm"
    if "mla_up_proj" in case.recomputed and not case.has("--multi-latent-attention"):
        yield f"{setting}: mla_up_proj needs --multi-latent-attention"
    variant = case.text("--experimental-attention-variant")
    if "gdn_norm_out" in case.recomputed and variant != "gated_delta_net":
        yield f"{setting}: gdn_norm_out needs --experimental-attention-variant gated_delta_net"
    if (
        "shared_experts" in case.recomputed
        and case.number("--moe-shared-expert-intermediate-size") is not None
        and case.has("--moe-shared-expert-overlap")
    ):
        yield f"{setting}: shared_experts cannot go with {case.said('--moe-shared-expert-overlap')}"
    if case.fp8 == "delayed" and case.recomputed & {"moe_act", "layernorm"}:
        yield f"{setting}: moe_act and layernorm cannot go with --fp8-recipe delayed"


def recomputed_for_nothing(case: Case) -> Iterator[str]:
    """Recomputed modules that the granularity ignores."""
    if case.has(MODULES) and case.granularity != "selective":
        yield f"{case.said(MODULES)} has no effect without --recompute-granularity selective"


def distributed_activations(case: Case) -> Iterator[str]:
    """validate_args, TransformerConfig: saved activations spread over TP."""
    flag = "--distribute-saved-activations"
    if not case.has(flag):
        return
    if case.tensor == 1:
        yield f"{case.said(flag)} needs TP above 1"
    if case.granularity != "full" or not case.has(METHOD):
        yield f"{case.said(flag)} needs --recompute-granularity full with a {METHOD}"
    elif case.sequence_parallel:
        yield f"{case.said(flag)} cannot go with --sequence-parallel"


def layers_to_cpu(case: Case) -> Iterator[str]:
    """TransformerConfig: whole layers' activations on the CPU."""
    flag = "--cpu-offloading-num-layers"
    number = case.number(flag) or 0
    if number <= 0 and not case.has("--cpu-offloading"):
        return
    if number >= case.layers:
        yield f"{case.said(flag)} is not below {case.layers} layers"
    if case.pipeline > 1:
        yield f"{case.said(flag)} needs PP=1"
    if case.granularity:
        yield f"{case.said(flag)} cannot go with recomputation"
    if case.graphs not in ("none", "full_iteration"):
        yield f"{case.said(flag)} cannot go with {case.said('--cuda-graph-impl')}"


def activations_to_cpu(case: Case) -> Iterator[str]:
    """TransformerConfig, validate_args: offloading single modules' activations."""
    flag, modules = "--fine-grained-activation-offloading", "--offload-modules"
    if not case.has(flag):
        return
    chosen, setting = set(case.words(modules)), case.said(modules)
    if case.text("--transformer-impl") != "transformer_engine":
        yield f"{case.said(flag)} needs --transformer-impl transformer_engine"
    if (case.number("--cpu-offloading-num-layers") or 0) > 0:
        yield f"{case.said(flag)} cannot go with {case.said('--cpu-offloading-num-layers')}"
    if not chosen:
        yield f"{case.said(flag)} needs {modules}: {', '.join(OFFLOADABLE)}"
    unknown = sorted(chosen - set(OFFLOADABLE))
    if unknown:
        yield f"{setting}: {unknown[0]} is none of {', '.join(OFFLOADABLE)}"
    if "attn_proj" in chosen and "core_attn" not in chosen:
        yield f"{setting}: attn_proj needs core_attn beside it"
    inside = sorted(chosen & INSIDE_EXPERTS)
    if inside and case.granularity == "selective" and "moe" in case.recomputed:
        yield f"{setting}: {inside[0]} cannot go with moe in {MODULES}, which recomputes it"
    if "fused_group_mlp" in chosen:
        if not case.has("--use-transformer-engine-op-fuser"):
            yield f"{setting}: fused_group_mlp needs --use-transformer-engine-op-fuser"
        if len(inside) > 1:
            yield f"{setting}: fused_group_mlp has expert_fc1 and moe_act in it already"


def activations_to_cpu_in_graphs(case: Case) -> Iterator[str]:
    """TransformerConfig: which offloading CUDA graphs allow."""
    if not case.has("--fine-grained-activation-offloading") or case.graphs == "none":
        return
    chosen, setting = set(case.words("--offload-modules")), case.said("--cuda-graph-impl")
    if case.graphs == "local" and (chosen - INSIDE_EXPERTS or not case.graphed):
        inside = ", ".join(sorted(INSIDE_EXPERTS))
        yield f"{setting} allows offloading of {inside} alone, and with named modules"
    elif "moe" in case.graphed:
        yield f"{case.said(case.graph_flag)}: moe cannot go with activation offloading"
    steps = "--cuda-graph-warmup-steps"
    if (case.number(steps) or 0) < 1:
        yield f"{case.said(steps)} has to be above 0 with activation offloading"
    limit = "--fine-grained-offloading-max-inflight-offloads"
    if case.graphs == "full_iteration" and case.number(limit) is None:
        yield f"{setting} with activation offloading needs {limit}"


def one_graph_flag(case: Case) -> Iterator[str]:
    """validate_args: CUDA graphs are switched on in one way, and their modules named in one."""
    old = [flag for flag in ("--enable-cuda-graph", "--external-cuda-graph") if case.has(flag)]
    if old and (case.text("--cuda-graph-impl") or "none") != "none":
        yield f"{case.said(old[0])} and {case.said('--cuda-graph-impl')}: drop the first"
    elif len(old) > 1:
        yield f"{case.said(old[0])} and {case.said(old[1])}: give one of them"
    names = [flag for flag in ("--cuda-graph-modules", "--cuda-graph-scope") if case.has(flag)]
    if len(names) > 1:
        yield f"{case.said(names[0])} and {case.said(names[1])}: give one of them"


def graph_modules(case: Case) -> Iterator[str]:
    """TransformerConfig: which modules can be captured together, in this model."""
    if case.graphs == "full_iteration" and case.graphed:
        yield f"{case.said(case.graph_flag)} cannot go with {case.said('--cuda-graph-impl')}"
    if case.graphs not in ("local", "transformer_engine"):
        return
    captured, setting = case.graphed, case.said(case.graph_flag)
    if {"moe", "moe_router"} <= captured:
        yield f"{setting}: moe has moe_router in it; drop one"
    if "moe_preprocess" in captured and "moe_router" not in captured:
        yield f"{setting}: moe_preprocess needs moe_router"
    if not case.experts or case.experts <= 1:
        if captured & {"moe", "moe_router"}:
            yield f"{setting}: the model has no experts"
        return
    pattern = case.text("--moe-layer-freq") or "1"
    if "mlp" in captured and (pattern == "1" or ("[" in pattern and "0]" not in pattern)):
        yield f"{setting}: mlp is a dense layer's, and the model has none"
    factor = case.real("--moe-expert-capacity-factor")
    dropping = factor is not None and factor >= 0
    if dropping and case.has("--moe-pad-expert-input-to-capacity"):
        return
    if "moe" in captured:
        yield f"{setting}: moe needs a capacity factor and --moe-pad-expert-input-to-capacity"
    waits = case.dispatcher == "alltoall" and (dropping or case.has("--moe-router-padding-for-fp8"))
    if waits and "moe_preprocess" in captured:
        yield f"{setting}: moe_preprocess waits for the CPU with a capacity factor and alltoall"


def graphed_dense_layers(case: Case) -> Iterator[str]:
    """TransformerLayer.create_mcore_cudagraph_manager asks for what the layer does not know yet."""
    if case.graphs == "local" and "mlp" in case.graphed and "attn" not in case.graphed:
        yield f"{case.said(case.graph_flag)}: mlp without attn fails with local graphs"


def inference_graphs(case: Case) -> Iterator[str]:
    """TransformerConfig: graphs of inference are local ones, of layers or of the block."""
    flag = "--inference-cuda-graph-scope"
    scope = case.text(flag)
    if scope is None:
        return
    allowed = ("layer", "block") if case.graphs == "local" else ("none",)
    if scope not in allowed:
        yield (
            f"{case.said(flag)} has to be {' or '.join(allowed)} with CUDA graphs of the kind "
            f"{case.graphs}"
        )


def graphs_with_recompute(case: Case) -> Iterator[str]:
    """TransformerConfig: a recomputed module is within a graph or without, and has no dropout."""
    if case.graphs == "none" or not case.granularity:
        return
    if case.granularity == "full":
        if case.graphs != "full_iteration":
            yield f"{case.said('--cuda-graph-impl')} cannot go with full recomputation"
        return
    setting = f"{case.said(case.graph_flag)} with {case.said(MODULES)}"
    around = "moe" in case.recomputed and "moe_router" in case.graphed
    if case.graphs == "transformer_engine" and around:
        yield f"{setting}: moe_router is captured and moe recomputed around it"
    whole = case.graphs == "full_iteration" or not case.graphed
    attention = whole or "attn" in case.graphed
    if case.real("--attention-dropout") != 0 and attention and "core_attn" in case.recomputed:
        yield f"{setting}: a captured core_attn cannot be recomputed with --attention-dropout"
    if case.real("--hidden-dropout") != 0:
        for module in ("mlp", "moe"):
            if module in case.recomputed and (whole or module in case.graphed):
                yield f"{setting}: a captured {module} cannot be recomputed with --hidden-dropout"
    jitter = case.has("--moe-input-jitter-eps")
    if jitter and "moe" in case.recomputed and (whole or "moe" in case.graphed):
        yield f"{setting}: a captured moe cannot be recomputed with --moe-input-jitter-eps"


def whole_iteration(case: Case) -> Iterator[str]:
    """validate_args: a captured iteration cannot stop at a NaN."""
    flag = "--no-check-for-nan-in-loss-and-grad"
    if case.graphs == "full_iteration" and not case.has(flag) and not case.has("--fp16"):
        yield f"{case.said('--cuda-graph-impl')} needs {flag}"


ERRORS = (
    expert_overlap,
    expert_overlap_recompute,
    expert_overlap_graphs,
    delayed_weight_gradients,
    delayed_weight_gradients_in_graphs,
    early_release,
    tensor_overlap,
    parameter_overlap,
    parameter_overlap_with_step,
    deferred_embedding,
    overlapped_warmup,
    recompute_method,
    recompute_modules,
    distributed_activations,
    layers_to_cpu,
    activations_to_cpu,
    activations_to_cpu_in_graphs,
    one_graph_flag,
    graph_modules,
    graphed_dense_layers,
    inference_graphs,
    graphs_with_recompute,
    whole_iteration,
)
RUN_TIME = (mtp_recompute,)
WARNINGS = (recomputed_for_nothing,)
