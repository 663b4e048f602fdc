"""The settings of a job's software that decide its time and not its memory."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.config.arguments import Arguments, value
from launcher.plan import choices
from launcher.records import dataclass

# When a release was made: its branch's first tag, in years.
RELEASED = {
    "0.15": 2025.9,
    "0.16": 2026.1,
    "0.17": 2026.25,
    "0.18": 2026.4,
    "0.19": 2026.55,
    "dev": 2026.62,
}


@dataclass(frozen=True)
class Execution:
    """Precision, graphs, fusions and overlaps."""

    precision: str  # of matrix products where they have no FP8: bf16, fp16, fp32 or an FP4 recipe
    graphs: str  # "none", "modules" (graph_modules names them) or "full"
    graph_modules: frozenset[str]  # none named: whole layers
    grouped: bool  # one grouped product for all local experts
    fused_router: bool
    fused_permute: bool
    fused_rope: bool
    fused_experts: bool  # products and activation of the experts in one kernel
    fp8_attention: bool
    overlap_gradients: bool
    overlap_parameters: bool
    overlap_tensor: bool
    groups_chosen: int  # of expert groups, by each token; 0 where the router knows no groups
    padded: bool  # every expert gets its whole capacity
    bound: bool  # processes are bound to their NUMA node
    released: float  # year of the software


def read(
    arguments: Arguments, environment: Mapping[str, str], released: float, bound: bool = False
) -> Execution:
    """Return how a job runs, from its arguments and environment."""
    graphs, modules = _graphs(arguments)
    return Execution(
        precision=choices.precision(arguments),
        graphs=graphs,
        graph_modules=modules,
        grouped="--moe-grouped-gemm" in arguments,
        fused_router="--moe-router-fusion" in arguments,
        fused_permute="--moe-permute-fusion" in arguments,
        fused_rope="--no-rope-fusion" not in arguments,
        fused_experts="--use-transformer-engine-op-fuser" in arguments
        and environment.get("NVTE_CUTEDSL_FUSED_GROUPED_MLP") == "1",
        fp8_attention="--fp8-dot-product-attention" in arguments
        or environment.get("NVTE_DPA_FP8") == "1",
        overlap_gradients="--overlap-grad-reduce" in arguments,
        overlap_parameters="--overlap-param-gather" in arguments,
        overlap_tensor="--tp-comm-overlap" in arguments,
        groups_chosen=int(value(arguments, "--moe-router-group-topk") or 0),
        padded="--moe-pad-expert-input-to-capacity" in arguments,
        bound=bound,
        released=released,
    )


def _graphs(arguments: Arguments) -> tuple[str, frozenset[str]]:
    named = frozenset(
        word
        for flag in ("--cuda-graph-modules", "--cuda-graph-scope")
        if flag in arguments
        for word in arguments[flag].values
    )
    kind = value(arguments, "--cuda-graph-impl")
    if "--enable-cuda-graph" in arguments:
        kind = "local"
    if "--external-cuda-graph" in arguments:
        kind = "transformer_engine"
    if kind in (None, "none"):
        return "none", frozenset()
    if kind == "full_iteration" or named & {"full_iteration", "full_iteration_inference"}:
        return "full", frozenset()
    return "modules", named - {"full"}
