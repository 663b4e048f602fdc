"""FLOPs that the GPUs do: the model's, and those of recomputation."""

from __future__ import annotations

from dataclasses import replace

from launcher.plan import flops
from launcher.plan.shape import Shape

FORWARD = 1 / 3  # of forward and backward together


def recomputed(shape: Shape) -> float:
    """Return the FLOPs a token that are computed a second time.

    Full recomputation repeats the forward pass of the recomputed layers; a module of
    --recompute-modules its own. Norms and activation functions are not counted as FLOPs anywhere.
    The cost of a module is the difference of the count with and without it.
    """
    training, model = shape.training, shape.model
    whole = flops.per_token(shape)
    if training.recompute is None:
        return 0.0
    head = whole - flops.per_token(replace(shape, model=replace(model, vocabulary=0)))
    if training.recompute == "full":
        share = 1.0
        if training.recompute_method == "block":
            held = -(-model.layers // shape.parallel.pipeline)
            share = min(1.0, training.recompute_layers / held)
        return (whole - head) * FORWARD * share
    modules, again = training.recompute_modules, 0.0
    attention = model.attention
    if "core_attn" in modules:
        short = replace(shape, training=replace(training, sequence=0))
        again += whole - flops.per_token(short)
    if "mlp" in modules:
        again += whole - flops.per_token(replace(shape, model=replace(model, ffn=0)))
    experts = model.experts
    if experts and "moe" in modules:
        none = replace(experts, ffn=0, shared_ffn=0)
        again += whole - flops.per_token(replace(shape, model=replace(model, experts=none)))
    elif experts and "shared_experts" in modules:
        none = replace(experts, shared_ffn=0)
        again += whole - flops.per_token(replace(shape, model=replace(model, experts=none)))
    if "mla_up_proj" in modules and attention.latent:
        queries = attention.heads * (attention.qk_dim + attention.rope_dim)
        values = attention.heads * (attention.qk_dim + attention.v_dim)
        products = (attention.q_rank or 0) * queries + attention.kv_rank * values
        return again * FORWARD + 2 * products * (model.layers + model.mtp)
    return again * FORWARD
