"""Sizes of the process groups, and the model's widths that they split."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.config.parallelism import CONTEXT, EXPERT, EXPERT_TENSOR, PIPELINE, TENSOR
from launcher.plan.rules.case import Case, Unreadable, divisors, multiples

INSTANCES = "--num-distributed-optimizer-instances"
SIZES = (TENSOR, PIPELINE, CONTEXT, EXPERT, EXPERT_TENSOR, INSTANCES)


def positive(case: Case) -> Iterator[str]:
    """A parallel size is at least 1; Megatron divides by it."""
    for flag in SIZES:
        number = case.number(flag)
        if number is not None and number < 1:
            yield f"{case.said(flag)} is below 1"


def world_size(case: Case) -> Iterator[str]:
    """validate_args: whole data parallel replicas of the dense layers."""
    model = case.tensor * case.pipeline * case.context
    if case.world_size % model:
        yield (
            f"world size {case.world_size} is not a multiple of TP*PP*CP = "
            f"{case.tensor}*{case.pipeline}*{case.context} = {model}: "
            f"{multiples(model, case.world_size)} would be"
        )


def expert_world_size(case: Case) -> Iterator[str]:
    """initialize_model_parallel: whole data parallel replicas of the experts."""
    model = case.expert_tensor * case.expert * case.pipeline
    if case.world_size % model:
        yield (
            f"world size {case.world_size} is not a multiple of ETP*EP*PP = "
            f"{case.expert_tensor}*{case.expert}*{case.pipeline} = {model}: "
            f"{multiples(model, case.world_size)} would be"
        )


def rank_order(case: Case) -> Iterator[str]:
    """initialize_model_parallel: with PP before DP both kinds of layers have the same DP."""
    if not case.has("--use-tp-pp-dp-mapping") or case.pipeline == 1:
        return
    model = case.expert_tensor * case.expert * case.pipeline
    if case.world_size % model == 0 and case.world_size // model != case.data:
        yield (
            f"{case.said('--use-tp-pp-dp-mapping')} needs TP*CP = ETP*EP, not "
            f"{case.tensor}*{case.context} and {case.expert_tensor}*{case.expert}"
        )


def optimizer_instances(case: Case) -> Iterator[str]:
    """initialize_model_parallel: the optimizer's instances divide the data parallel ranks."""
    flag = INSTANCES
    instances = case.number(flag) or 1
    if instances == 1:
        return
    if not case.has("--use-distributed-optimizer"):
        yield f"{case.said(flag)} needs --use-distributed-optimizer"
    elif case.data * case.context % instances:
        yield f"{case.said(flag)} does not divide DP*CP = {case.data * case.context}"
    elif case.expert_data % instances:
        yield f"{case.said(flag)} does not divide the experts' DP of {case.expert_data}"


def heads(case: Case) -> Iterator[str]:
    """TransformerConfig: TP splits the attention by heads."""
    count = case.size("--num-attention-heads")
    if count % case.tensor:
        yield (
            f"{case.said('--num-attention-heads')} cannot be split over TP={case.tensor}: "
            f"TP may be {divisors(count)}"
        )


def query_groups(case: Case) -> Iterator[str]:
    """TransformerConfig: query groups are split over TP, or each is copied to several ranks."""
    if not case.has("--group-query-attention") or case.has("--multi-latent-attention"):
        return
    flag = "--num-query-groups"
    groups = case.size(flag)
    if groups % case.tensor and case.tensor % groups:
        yield (
            f"{case.said(flag)} neither divides TP={case.tensor} nor is a multiple of it: "
            f"TP may be {divisors(groups)}, or a multiple of {groups}"
        )


def heads_of_groups(case: Case) -> Iterator[str]:
    """Attention: each query group serves as many heads."""
    if not case.has("--group-query-attention") or case.has("--multi-latent-attention"):
        return
    count, groups = case.size("--num-attention-heads"), case.size("--num-query-groups")
    if count % groups:
        yield (
            f"{case.said('--num-attention-heads')} is not a multiple of "
            f"{case.said('--num-query-groups')}: groups may be {divisors(count)}"
        )


def head_width(case: Case) -> Iterator[str]:
    """validate_args: the width of a head follows from the hidden size, or is given."""
    if case.number("--kv-channels") is not None:
        return
    hidden, count = case.size("--hidden-size"), case.size("--num-attention-heads")
    if hidden % count:
        yield (
            f"{case.said('--hidden-size')} is not a multiple of "
            f"{case.said('--num-attention-heads')}: give --kv-channels"
        )


def linear_heads(case: Case) -> Iterator[str]:
    """TransformerConfig: heads of linear attention are split over TP and CP."""
    if case.text("--experimental-attention-variant") != "gated_delta_net":
        return
    keys, values = "--linear-num-key-heads", "--linear-num-value-heads"
    if not case.has("--linear-attention-freq"):
        yield f"{case.said('--experimental-attention-variant')} needs --linear-attention-freq"
    if case.size(values) % case.size(keys):
        yield f"{case.said(values)} is not a multiple of {case.said(keys)}"
    for flag in (keys, values):
        if case.size(flag) % (case.tensor * case.context):
            yield (
                f"{case.said(flag)} cannot be split over TP*CP = "
                f"{case.tensor}*{case.context}: it may be {divisors(case.size(flag))}"
            )


def dense_width(case: Case) -> Iterator[str]:
    """ColumnParallelLinear: TP splits the dense layers' intermediate width."""
    flag = "--ffn-hidden-size"
    if not _splits_heads(case) or (case.experts and not _dense_layers(case)):
        return
    if case.has(flag) and case.size(flag) % case.tensor:
        yield f"{case.said(flag)} cannot be split over TP={case.tensor}"


def _splits_heads(case: Case) -> bool:
    """Say whether `heads` is content with TP; one word on a wrong TP is enough."""
    return case.size("--num-attention-heads") % case.tensor == 0


def _dense_layers(case: Case) -> bool:
    return (case.text("--moe-layer-freq") or "1") != "1"


def expert_width(case: Case) -> Iterator[str]:
    """GroupedMLP, MLP: expert tensor parallelism splits an expert's intermediate width."""
    flag = "--moe-ffn-hidden-size"
    if case.experts and case.has(flag) and case.size(flag) % case.expert_tensor:
        yield f"{case.said(flag)} cannot be split over ETP={case.expert_tensor}"


def shared_expert_width(case: Case) -> Iterator[str]:
    """SharedExpertMLP: TP splits the shared expert's intermediate width."""
    flag = "--moe-shared-expert-intermediate-size"
    if not case.experts or not _splits_heads(case) or (case.number(flag) or 0) < 1:
        return
    if case.size(flag) % case.tensor:
        yield f"{case.said(flag)} cannot be split over TP={case.tensor}"


def sequence_over_context(case: Case) -> Iterator[str]:
    """validate_args: each CP rank takes two chunks of the sequence, to balance causal attention."""
    length = case.size("--seq-length")
    if case.context > 1 and length % (2 * case.context):
        yield (
            f"{case.said('--seq-length')} is not a multiple of 2*CP = {2 * case.context}: "
            f"{multiples(2 * case.context, length)} would be"
        )


def sequence_over_tensor(case: Case) -> Iterator[str]:
    """scatter_to_sequence_parallel_region: TP ranks take equal parts of a CP rank's sequence."""
    length = case.size("--seq-length")
    share = case.tensor * case.context * (2 if case.context > 1 else 1)
    if not case.sequence_parallel or length % share == 0 or not _splits_heads(case):
        return
    if case.context > 1 and length % (2 * case.context):
        raise Unreadable("another rule's")
    if length % (case.tensor * case.context):
        yield (
            f"{case.said('--seq-length')} cannot be split over TP*CP = "
            f"{case.tensor}*{case.context} with sequence parallelism: "
            f"{multiples(share, length)} could"
        )


def sequence_parallel_experts(case: Case) -> Iterator[str]:
    """MoELayer.forward refuses TP without sequence parallelism when it trains."""
    if case.experts and case.tensor > 1 and not case.sequence_parallel:
        yield (
            f"experts with TP={case.tensor} need --sequence-parallel: "
            "Megatron's MoE layer refuses to train without"
        )


def context_communication(case: Case) -> Iterator[str]:
    """TransformerConfig, validate_args: how CP communicates, one way or one for each layer."""
    flag = "--cp-comm-type"
    kinds = case.words(flag)
    sizes = "--hierarchical-context-parallel-sizes"
    if "a2a+p2p" in kinds and not case.has(sizes):
        yield f"{case.said(flag)} needs {sizes}"
    product = math.prod(case.numbers(sizes))
    if case.has(sizes) and product != case.context:
        yield f"{case.said(sizes)} make CP={product}, not {case.context}"
    if case.context > 1 and len(kinds) > 1 and len(kinds) != case.layers:
        yield f"{case.said(flag)} has {len(kinds)} entries for {case.layers} layers"


def context_heads(case: Case) -> Iterator[str]:
    """Attention with cp_comm_type a2a: CP splits the heads that TP left (Transformer Engine)."""
    if case.context == 1 or case.words("--cp-comm-type") != ("a2a",):
        return
    latent = case.has("--multi-latent-attention")
    grouped = case.has("--group-query-attention") and not latent
    flag = "--num-query-groups" if grouped else "--num-attention-heads"
    count = max(1, case.size(flag) // case.tensor)
    if count % case.context:
        yield (
            f"{case.said('--cp-comm-type')} splits {count} heads a TP rank ({flag}) over "
            f"CP={case.context}, which does not divide them"
        )


ERRORS = (
    positive,
    world_size,
    expert_world_size,
    rank_order,
    optimizer_instances,
    heads,
    query_groups,
    heads_of_groups,
    head_width,
    linear_heads,
    dense_width,
    expert_width,
    shared_expert_width,
    sequence_over_context,
    context_communication,
)
RUN_TIME = (sequence_over_tensor, sequence_parallel_experts, context_heads)
WARNINGS = ()
