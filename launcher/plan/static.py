"""Static memory of a pipeline rank, in bytes: weights, gradients and optimizer states.

The terms follow Megatron's buffers (core/distributed/param_and_grad_buffer.py) and optimizers
(core/optimizer/distrib_optimizer.py).
"""

from __future__ import annotations

from launcher.plan import parameters
from launcher.plan.parameters import Count
from launcher.plan.shape import QUANTIZED, SINGLE, Shape
from launcher.plan.stages import Stage


def weights(shape: Shape, count: Count) -> int:
    """Return the parameters as forward and backward use them.

    BF16: two bytes. With FP8, Transformer Engine needs each matrix row-wise for forward and
    column-wise for backward: two FP8 tensors. They are all there is with --fp8-param-gather
    (param_and_grad_buffer.py: MXFP8 is gathered through the gradients' buffer, blockwise FP8 in
    its own storage); without it they are caches beside the BF16 weights, refreshed once a step
    (`is_first_microbatch`, core/extensions/transformer_engine.py).
    """
    training = shape.training
    if training.fp8 is None:
        return count.total * training.weight_bytes
    eight = count.matrices + count.routed
    pair = 2 * (QUANTIZED if training.fp8 == "mxfp8" else 1)
    each = pair if training.fp8_parameters else pair + training.weight_bytes
    return round(eight * each + (count.total - eight) * training.weight_bytes)


def gradients(shape: Shape, count: Count) -> int:
    """Return the gradient buffer, whole on every rank until the optimizer reduces it.

    Four bytes unless --grad-reduce-in-bf16 or --main-grads-dtype bf16 (validate_args).
    """
    return count.total * shape.training.gradient_bytes


def placeholders(shape: Shape, stage: Stage) -> int:
    """Return the bytes of the placeholders that Transformer Engine gives autograd as gradients.

    Its fused accumulation writes a weight's gradient straight into the buffer. Autograd still asks
    for a tensor of the weight's shape and type, and gets a placeholder that nobody reads. There is
    one for each shape, and it is kept from the first backward pass on (get_dummy_wgrad,
    transformer_engine/pytorch/module/base.py; core/tensor_parallel/layers.py asks for the output
    layer's).
    """
    if not shape.training.fused_gradients:
        return 0
    shapes = {one for layer in stage.layers for one in parameters.products(shape, layer)}
    if any(chunk.loss for chunk in stage.chunks):
        shapes.add((shape.model.vocabulary // shape.parallel.tensor, shape.model.hidden))
    return sum(rows * columns for rows, columns in shapes) * shape.training.weight_bytes


def optimizer(shape: Shape, count: Count) -> tuple[int, int]:
    """Return the optimizer's bytes that stay on the GPU, and those there during its step only.

    The distributed optimizer spreads dense parameters over DP·CP and experts over EDP, of which
    each of its instances has a part. A share of `offloaded` lives on the CPU
    (HybridDeviceOptimizer, core/optimizer/cpu_offloading). Muon has one moment of the matrices, and
    Adam keeps the rest; whole matrices are shared among the ranks
    (LayerWiseDistributedOptimizer, core/optimizer/layer_wise_optimizer.py), here as if evenly.
    """
    training = shape.training
    routed = parameters.expert_parameters(shape, count)
    states = _share(shape, count.total - routed, routed) * state_bytes(shape)
    if training.muon:
        dense_matrices = count.matrices + count.routed - routed
        states -= _share(shape, dense_matrices, routed) * SINGLE
    states = round(states * (1 - training.offloaded))
    return (0, states) if training.states_offloaded else (states, 0)


def _share(shape: Shape, dense: int, routed: int) -> float:
    """Return how many of these parameters a rank's optimizer works on."""
    if not shape.training.distributed_optimizer:
        return float(dense + routed)
    over = shape.parallel
    return shape.training.optimizer_instances * (
        dense / over.dense_shards + routed / over.expert_data
    )


def state_bytes(shape: Shape) -> int:
    """Return the optimizer's bytes a parameter: main parameter and two moments of Adam, one
    of SGD and Lion.

    FP32 throughout without the precision-aware optimizer; FP32 parameters are their own main
    ones. With it, in BF16 or with delayed scaling, Transformer Engine's FusedAdam holds only the
    16 bits that the BF16 parameter lacks of the FP32 one (`store_param_remainders`); with other
    FP8 recipes Megatron holds the FP32 main parameter itself
    (`use_precision_aware_optimizer_no_fp8_or_ds_fp8`, core/optimizer/optimizer_config.py).
    """
    training = shape.training
    moments = training.moments
    if training.weight_bytes == SINGLE:
        return moments * SINGLE
    if not training.precision_aware:
        return (1 + moments) * SINGLE
    kept = training.first_moment_bytes + training.second_moment_bytes
    remainder = training.fp8 in (None, "delayed") and training.main_parameter_bytes == SINGLE
    return kept + (2 if remainder else training.main_parameter_bytes)
