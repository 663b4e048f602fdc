"""A job's choices where several flags decide together, with Megatron's defaults (validate_args)."""

from __future__ import annotations

from launcher.config.arguments import Arguments, value


def words(arguments: Arguments, *flags: str) -> frozenset[str]:
    """Return the values of all of the flags together."""
    return frozenset(word for flag in flags if flag in arguments for word in arguments[flag].values)


def dispatcher(arguments: Arguments) -> str:
    """Return the token dispatcher: allgather, alltoall or flex."""
    return value(arguments, "--moe-token-dispatcher-type") or "allgather"


def backend(arguments: Arguments) -> str | None:
    """Return the backend of the flex dispatcher; None with another dispatcher."""
    if dispatcher(arguments) != "flex":
        return None
    if "--moe-enable-deepep" in arguments:
        return "deepep"
    return value(arguments, "--moe-flex-dispatcher-backend") or "deepep"


def precision(arguments: Arguments) -> str:
    """Return the precision that matrix products have: fp32, bf16, fp16, nvfp4 or an FP8 recipe's.

    Blockwise FP8 is called fp8, MXFP8 mxfp8, another recipe by its name.
    """
    if "--fp4-format" in arguments:
        return value(arguments, "--fp4-recipe") or "nvfp4"
    if "--fp8-format" in arguments:
        recipe = value(arguments, "--fp8-recipe") or "delayed"
        return {"blockwise": "fp8", "mxfp8": "mxfp8"}.get(recipe, f"fp8 {recipe}")
    return next((name for name in ("bf16", "fp16") if f"--{name}" in arguments), "fp32")


def granularity(arguments: Arguments) -> str | None:
    """Return the granularity of recomputation: full, selective or None."""
    if {"--recompute-activations", "--moe-layer-recompute"} & arguments.keys():
        return "selective"
    return value(arguments, "--recompute-granularity")


def recomputed(arguments: Arguments) -> frozenset[str]:
    """Return the modules named for recomputation, used or not; the core of attention by default."""
    named = words(arguments, "--recompute-modules") or frozenset({"core_attn"})
    return named | {"moe"} if "--moe-layer-recompute" in arguments else named


def graphs(arguments: Arguments) -> str:
    """Return how CUDA graphs are made: none, local, transformer_engine or full_iteration."""
    if "--enable-cuda-graph" in arguments:
        return "local"
    if "--external-cuda-graph" in arguments:
        return "transformer_engine"
    return value(arguments, "--cuda-graph-impl") or "none"
