"""Experts: their number, their router, and how tokens reach them."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.gpus import GPUS
from launcher.plan.rules.case import Case, divisors


def experts_over_ranks(case: Case) -> Iterator[str]:
    """validate_args: each expert parallel rank has as many experts."""
    count = case.experts
    if case.expert == 1:
        return
    if count is None:
        yield f"{case.said('--expert-model-parallel-size')} needs --num-experts"
    elif count % case.expert:
        yield (
            f"{case.said('--num-experts')} cannot be split over EP={case.expert}: "
            f"EP may be {divisors(count, 12)}"
        )


def expert_count(case: Case) -> Iterator[str]:
    """TransformerConfig: there are experts or there are none."""
    if (case.number("--num-experts") or 0) < 0:
        yield f"{case.said('--num-experts')} is below 0"


def width_without_experts(case: Case) -> Iterator[str]:
    """TransformerConfig: an expert's width in a model without experts is a slip."""
    text = case.text("--moe-layer-freq") or "1"
    mixed = "0" in text.replace("10", "") if "[" in text else text != "1"
    if not case.experts and case.has("--moe-ffn-hidden-size") and not mixed:
        yield f"{case.said('--moe-ffn-hidden-size')} needs --num-experts"


def top_k(case: Case) -> Iterator[str]:
    """topk_routing_with_score_function: a token cannot go to more experts than there are."""
    flag = "--moe-router-topk"
    if case.experts and case.size(flag) > case.experts:
        yield f"{case.said(flag)} is above {case.said('--num-experts')}"


def top_1(case: Case) -> Iterator[str]:
    """TransformerConfig: a softmax over one chosen expert has no gradient."""
    if (
        case.number("--moe-router-topk") == 1
        and (case.text("--moe-router-score-function") or "softmax") == "softmax"
        and not case.has("--moe-router-pre-softmax")
        and _balancing(case) != ("sinkhorn",)
    ):
        yield f"{case.said('--moe-router-topk')} needs --moe-router-pre-softmax"


def router_groups(case: Case) -> Iterator[str]:
    """TransformerConfig: group-limited routing chooses among equal groups of experts."""
    flag, groups_flag = "--moe-router-group-topk", "--moe-router-num-groups"
    chosen = case.number(flag)
    if not chosen:
        return
    groups = case.number(groups_flag)
    if case.has("--moe-router-topk-limited-devices"):
        old = case.said("--moe-router-topk-limited-devices")
        yield f"{old} and {case.said(flag)}: drop the first"
    elif not groups:
        yield f"{case.said(flag)} needs {groups_flag}"
    elif not case.experts or case.experts % groups:
        yield (
            f"{case.said('--num-experts')} cannot be split into {case.said(groups_flag)}: "
            f"groups may be {divisors(case.experts or 0)}"
        )
    elif chosen > groups:
        yield f"{case.said(flag)} is above {case.said(groups_flag)}"


def top_k_of_groups(case: Case) -> Iterator[str]:
    """group_limited_topk: each chosen group has its share of the top-k experts."""
    chosen, groups = case.number("--moe-router-group-topk"), case.number("--moe-router-num-groups")
    if not chosen or not groups or not case.experts or case.experts % groups or chosen > groups:
        return
    each, size = case.size("--moe-router-topk") // chosen, case.experts // groups
    if each > size:
        yield (
            f"{case.said('--moe-router-topk')} takes {each} experts of each of {chosen} groups, "
            f"which have {size}"
        )
    elif chosen * size < case.size("--moe-router-topk"):
        yield (
            f"{case.said('--moe-router-topk')} is above the {chosen * size} experts of "
            f"{case.said('--moe-router-group-topk')}"
        )


def expert_bias(case: Case) -> Iterator[str]:
    """TransformerConfig: aux-loss-free balancing shifts sigmoid scores."""
    scores = case.text("--moe-router-score-function") or "softmax"
    flag = "--moe-router-enable-expert-bias"
    if case.has(flag) and scores not in ("sigmoid", "sqrtsoftplus"):
        yield f"{case.said(flag)} needs --moe-router-score-function sigmoid, not {scores}"


def _balancing(case: Case) -> tuple[str, ...]:
    return case.words("--moe-router-load-balancing-type")


def auxiliary_losses(case: Case) -> Iterator[str]:
    """TransformerConfig: several losses have as many coefficients."""
    kinds, flag = _balancing(case), "--moe-aux-loss-coeff"
    if len(kinds) > 1 and len(case.words(flag)) != len(kinds):
        yield (
            f"{case.said('--moe-router-load-balancing-type')} needs {len(kinds)} values of {flag}, "
            f"not {len(case.words(flag))}"
        )


def capacity(case: Case) -> Iterator[str]:
    """TransformerConfig: tokens are dropped under balancing by a loss; padding needs a capacity."""
    flag, pad = "--moe-expert-capacity-factor", "--moe-pad-expert-input-to-capacity"
    factor = case.real(flag)
    odd = sorted(set(_balancing(case)) - {"aux_loss", "seq_aux_loss", "global_aux_loss", "none"})
    if factor is not None and odd:
        yield f"{case.said(flag)} cannot go with --moe-router-load-balancing-type {odd[0]}"
    if case.has(pad) and (factor is None or factor < 0):
        yield f"{case.said(pad)} needs a {flag} of 0 or more"


def shared_expert(case: Case) -> Iterator[str]:
    """TransformerConfig, SharedExpertMLP: a shared expert has a width, and no bias."""
    flag, overlap = "--moe-shared-expert-intermediate-size", "--moe-shared-expert-overlap"
    width = case.number(flag)
    if width is None:
        return
    if width < 1:
        yield f"{case.said(flag)} is below 1: leave it out for none"
    if case.has(overlap) and case.dispatcher not in ("alltoall", "flex"):
        yield f"{case.said(overlap)} needs --moe-token-dispatcher-type alltoall or flex"
    if case.experts and width > 0 and not case.has("--disable-bias-linear"):
        yield f"{case.said(flag)} needs --disable-bias-linear"


def expert_biases(case: Case) -> Iterator[str]:
    """TransformerConfig: linear biases of experts are not split."""
    biased = not case.has("--disable-bias-linear")
    if case.experts and biased and case.expert_tensor != 1:
        yield (
            f"experts with ETP={case.expert_tensor} need --disable-bias-linear "
            "(or --expert-tensor-parallel-size 1)"
        )


def latent_experts(case: Case) -> Iterator[str]:
    """validate_args, MoELayer: experts that work in a narrower space."""
    flag = "--moe-latent-size"
    width = case.number(flag)
    if width is not None and width < 1:
        yield f"{case.said(flag)} is below 1: leave it out for none"


def latent_shared_overlap(case: Case) -> Iterator[str]:
    """MoELayer.preprocess: no overlapped shared expert beside latent experts."""
    flag, overlap = "--moe-latent-size", "--moe-shared-expert-overlap"
    shared = case.experts and case.has("--moe-shared-expert-intermediate-size")
    if shared and case.has(flag) and case.has(overlap):
        yield f"{case.said(flag)} and {case.said(overlap)}: drop the overlap"


def deepep_flag(case: Case) -> Iterator[str]:
    """TransformerConfig: the older switch for DeepEP names no other backend beside it."""
    flag = "--moe-enable-deepep"
    if not case.has(flag):
        return
    if case.dispatcher != "flex":
        yield f"{case.said(flag)} needs --moe-token-dispatcher-type flex"
    elif case.text("--moe-flex-dispatcher-backend") == "hybridep":
        yield f"{case.said(flag)} and {case.said('--moe-flex-dispatcher-backend')}: give one"


def flex_backend(case: Case) -> Iterator[str]:
    """TransformerConfig: what the flex dispatcher's backends cannot do."""
    flag, pad = "--moe-flex-dispatcher-backend", "--moe-pad-expert-input-to-capacity"
    if case.text(flag) == "ncclep" and case.dispatcher != "flex":
        yield f"{case.said(flag)} needs --moe-token-dispatcher-type flex"
    if case.backend == "deepep" and case.has(pad):
        yield f"{case.said(pad)} cannot go with DeepEP: use the alltoall dispatcher"


def rank_capacity(case: Case) -> Iterator[str]:
    """TransformerConfig: a limit on a rank's tokens is HybridEP's or NCCL EP's."""
    flag = "--moe-expert-rank-capacity-factor"
    if case.real(flag) is None:
        return
    backend = case.text("--moe-flex-dispatcher-backend")
    if backend not in ("hybridep", "ncclep"):
        yield f"{case.said(flag)} needs --moe-flex-dispatcher-backend hybridep"
    elif backend == "hybridep" and not case.has("--use-transformer-engine-op-fuser"):
        yield f"{case.said(flag)} needs --use-transformer-engine-op-fuser"


def flex_group(case: Case) -> Iterator[str]:
    """MoEFlexTokenDispatcher: there have to be ranks to send tokens to."""
    ranks = case.expert_tensor * case.expert
    if case.experts and case.backend in ("deepep", "ncclep") and ranks == 1:
        yield f"{case.said('--moe-token-dispatcher-type')} needs ETP*EP above 1"


def sms_of_dispatchers(case: Case) -> Iterator[str]:
    """TransformerConfig: one number of SMs for the dispatcher."""
    if case.has("--moe-flex-dispatcher-num-sms"):
        return
    given = [flag for flag in ("--moe-deepep-num-sms", "--moe-hybridep-num-sms") if case.has(flag)]
    if len(given) == 2 and case.text(given[0]) != case.text(given[1]):
        yield f"{case.said(given[0])} and {case.said(given[1])}: give --moe-flex-dispatcher-num-sms"


def padding_for_quantization(case: Case) -> Iterator[str]:
    """TransformerConfig: tokens are padded for FP8 GEMMs, after an all-to-all."""
    for flag in ("--moe-router-padding-for-quantization", "--moe-router-padding-for-fp8"):
        if not case.has(flag):
            continue
        if not case.has("--fp8-format", "--fp4-format"):
            yield f"{case.said(flag)} needs --fp8-format or --fp4-format"
        elif case.dispatcher == "allgather":
            yield f"{case.said(flag)} needs --moe-token-dispatcher-type alltoall or flex"


def single_grouped_weight(case: Case) -> Iterator[str]:
    """TransformerConfig: a rank's experts in one tensor."""
    for flag in ("--moe-single-grouped-weight", "--moe-single-grouped-bias"):
        if case.has(flag) and not case.has("--moe-grouped-gemm"):
            yield f"{case.said(flag)} needs --moe-grouped-gemm"
    flag = "--moe-single-grouped-weight"
    if case.has(flag) and not case.has("--use-transformer-engine-op-fuser"):
        yield f"{case.said(flag)} needs --use-transformer-engine-op-fuser"
    elif case.has(flag) and case.fp8 not in (None, "mxfp8"):
        yield f"{case.said(flag)} needs BF16 or --fp8-recipe mxfp8"


NVL72 = 72  # GPUs


def _domain(case: Case) -> int | None:
    """Return the GPUs that NVLink connects; None where the GPU is unknown."""
    return GPUS[case.gpu].nvlink_domain if case.gpu and case.gpu in GPUS else None


def deepep_on_nvl72(case: Case) -> Iterator[str]:
    """DeepEP's kernels know NVLink within a node and InfiniBand between; HybridEP knows NVL72."""
    if case.backend == "deepep" and _domain(case) == NVL72 and case.expert > 4:
        yield (
            f"DeepEP with EP={case.expert} on {case.gpu} leaves the NVL72 domain unused: "
            "DISPATCHER=hybridep"
        )


def nvlink_segment(case: Case) -> Iterator[str]:
    """A segment of nodes shares one NVLink domain: an EP group inside it stays on NVLink."""
    ranks = case.expert_tensor * case.expert
    nodes = -(-ranks // case.tasks_per_node)
    if _domain(case) != NVL72 or case.backend != "hybridep" or ranks > NVL72:
        return
    if case.segment is None and case.world_size > NVL72:
        yield f"SEGMENT is not set: EP={case.expert} wants {nodes} nodes of one NVL72 domain"
    elif case.segment is not None and case.segment % nodes:
        yield (
            f"SEGMENT={case.segment} cuts EP groups of {nodes} nodes (ETP*EP = {ranks}): "
            f"make it a multiple of {nodes}"
        )


ERRORS = (
    experts_over_ranks,
    expert_count,
    width_without_experts,
    top_1,
    router_groups,
    expert_bias,
    auxiliary_losses,
    capacity,
    shared_expert,
    expert_biases,
    latent_experts,
    deepep_flag,
    flex_backend,
    rank_capacity,
    sms_of_dispatchers,
    padding_for_quantization,
    single_grouped_weight,
)
RUN_TIME = (top_k, top_k_of_groups, latent_shared_overlap, flex_group)
WARNINGS = (deepep_on_nvl72, nvlink_segment)
