"""Model FLOPs by Megatron's own convention, from which its log computes TFLOP/s/GPU.

Source: num_floating_point_operations (megatron/training/training.py, transformer_flops, 0.19). Its
conventions: a matrix product of m×n by n×k is 2·m·n·k operations; forward and backward are three
such products; causal attention counts half of its square; what is recomputed does not count, nor
do softmax, router and embedding look-up; every token passes through top-k experts, none is
dropped; the linear attention pattern is drawn over decoder and MTP layers together.
"""

from __future__ import annotations

from launcher.plan.shape import Attention, LinearAttention, Model, Shape

FORWARD_AND_BACKWARD = 3
MULTIPLY_AND_ADD = 2
CONVENTION = "Megatron's num_floating_point_operations: forward and backward, no recomputation"


def iteration(shape: Shape) -> float:
    """Return the model FLOPs of one global batch, on all GPUs together."""
    training, model = shape.training, shape.model
    tokens = training.global_batch * training.sequence
    squares = training.global_batch * training.sequence * training.sequence
    return tokens * _linear_in_tokens(model) + squares * _quadratic(model)


def per_token(shape: Shape) -> float:
    """Return the model FLOPs of one token of a full-length sequence, forward and backward."""
    return _linear_in_tokens(shape.model) + shape.training.sequence * _quadratic(shape.model)


def _linear_in_tokens(model: Model) -> int:
    """Return a token's FLOPs in all matrix products that do not depend on the sequence."""
    standard, linear = _attention_layers(model)
    operations = (
        _feed_forward(model)
        + standard * _projections(model)
        + linear * (_delta_net(model, model.linear_attention) if model.linear_attention else 0)
        # MTP's norms are counted as products too, and its projection of two hidden states.
        + model.mtp * (3 * model.hidden + 2 * model.hidden * model.hidden)
        + model.hidden * model.vocabulary * (model.mtp + 1)
    )
    return FORWARD_AND_BACKWARD * MULTIPLY_AND_ADD * operations


def _quadratic(model: Model) -> float:
    """Return the FLOPs of attention's core for a pair of tokens, half of the pairs masked."""
    standard, _ = _attention_layers(model)
    return standard * FORWARD_AND_BACKWARD * MULTIPLY_AND_ADD * _core(model.attention)


def _attention_layers(model: Model) -> tuple[int, int]:
    """Return the layers with standard and with linear attention, MTP's continuing the pattern."""
    layers = model.layers + model.mtp
    if model.linear_attention is None:
        return layers, 0
    # Megatron draws an interval over all layers; it refuses a list that leaves out MTP's.
    period = next((n for n, linear in enumerate(model.linear, 1) if not linear), None)
    beyond = range(model.layers, layers)
    extra = sum(1 for n in beyond if period is None or (n + 1) % period)
    linear = sum(model.linear) + extra
    return layers - linear, linear


def _feed_forward(model: Model) -> int:
    """Count the multiplications of a token in all dense and MoE networks, MTP's included."""
    matrices = 2 + model.swiglu
    moe_layers = sum(model.moe) + model.moe[-1] * model.mtp
    dense_layers = model.layers + model.mtp - moe_layers
    count = model.hidden * model.ffn * matrices * dense_layers
    if model.experts is None:
        return count
    experts = model.experts
    routed = (experts.latent or model.hidden) * experts.ffn * experts.top_k * matrices
    if experts.latent:
        routed += 2 * experts.latent * model.hidden
    return count + moe_layers * (routed + model.hidden * experts.shared_ffn * matrices)


def _projections(model: Model) -> int:
    """Count the multiplications of a token before and after attention's core, of one layer.

    Of latent attention Megatron also counts the norms on the compressed query and key-value, one
    multiplication an element.
    """
    attention, hidden = model.attention, model.hidden
    if not attention.latent:
        queries = attention.heads * attention.head_dim
        keys = attention.query_groups * attention.head_dim
        return hidden * (queries * (1 + attention.output_gate) + 2 * keys) + queries * hidden
    q_width = attention.heads * (attention.qk_dim + attention.rope_dim)
    kv_width = attention.heads * (attention.qk_dim + attention.v_dim)
    query = hidden * q_width
    if attention.q_rank is not None:
        query = attention.q_rank * (hidden + q_width + 1)
    return (
        query
        + attention.kv_rank * (hidden + kv_width + 1)
        + hidden * attention.rope_dim
        + attention.heads * attention.v_dim * hidden
    )


def _core(attention: Attention) -> float:
    """Count the multiplications of a pair of tokens in one layer: scores and weighted values."""
    if attention.latent:
        width = attention.qk_dim + attention.rope_dim + attention.v_dim
        return attention.heads * width / 2
    return attention.heads * attention.head_dim


def _delta_net(model: Model, net: LinearAttention) -> int:
    """Count the multiplications of a token in one gated delta net.

    The recurrence is counted as four products with a head's square state.
    """
    return (
        model.hidden * (2 * net.keys + 2 * net.values + 2 * net.value_heads)
        + net.kernel * (2 * net.keys + net.values)
        + net.value_heads * net.value_dim * net.value_dim * 4
        + model.hidden * net.values
    )
