"""Number formats of computation, gradients and optimizer, and what a GPU has of them."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.rules.case import Case

GATHER = "--fp8-param-gather"
REUSE = "--reuse-grad-buf-for-mxfp8-param-ag"
AWARE = "--use-precision-aware-optimizer"
OFFLOAD = "--optimizer-cpu-offload"
DTYPES = ("--main-grads-dtype", "--main-params-dtype", "--exp-avg-dtype", "--exp-avg-sq-dtype")


def one_half(case: Case) -> Iterator[str]:
    """validate_args: BF16 or FP16."""
    if case.has("--bf16") and case.has("--fp16"):
        yield f"{case.said('--bf16')} and {case.said('--fp16')}: give one of them"


def half_only(case: Case) -> Iterator[str]:
    """validate_args: what makes sense in half precision alone."""
    if case.has("--fp32-residual-connection") and not case.has("--bf16", "--fp16"):
        yield f"{case.said('--fp32-residual-connection')} needs --bf16 or --fp16"
    if case.has("--fp16-lm-cross-entropy") and not case.has("--fp16"):
        yield f"{case.said('--fp16-lm-cross-entropy')} needs --fp16"


def one_quantization(case: Case) -> Iterator[str]:
    """validate_args: FP8 or FP4, and their parameters only with them."""
    if case.has("--fp8-format") and case.has("--fp4-format"):
        yield f"{case.said('--fp8-format')} and {case.said('--fp4-format')}: give one of them"
    if case.has(GATHER) and not case.has("--fp8-format"):
        yield f"{case.said(GATHER)} needs --fp8-format"
    if case.has("--fp4-param-gather") and not case.has("--fp4-format"):
        yield f"{case.said('--fp4-param-gather')} needs --fp4-format"


def quantized_output(case: Case) -> Iterator[str]:
    """TransformerConfig: the output layer in FP8 is MXFP8's."""
    flag = "--fp8-output-proj"
    if case.has(flag) and case.fp8 not in (None, "mxfp8"):
        yield f"{case.said(flag)} needs --fp8-recipe mxfp8, not {case.fp8}"


def quantized_parameters(case: Case) -> Iterator[str]:
    """validate_args, DistributedDataParallelConfig: who gathers FP8 parameters."""
    sharded = ("--use-distributed-optimizer", "--use-torch-fsdp2", "--use-megatron-fsdp")
    if case.has(GATHER) and not case.has(*sharded):
        yield f"{case.said(GATHER)} needs --use-distributed-optimizer"
    if case.has(REUSE) and not case.has(GATHER) and not case.has("--use-megatron-fsdp"):
        yield f"{case.said(REUSE)} needs {GATHER}"


def first_and_last_layers(case: Case) -> Iterator[str]:
    """TransformerConfig: layers that stay in BF16, within a stage, and not with delayed scaling."""
    flag = "--first-last-layers-bf16"
    if not case.has(flag) or not case.fp8:
        return
    if case.fp8 == "delayed":
        yield f"{case.said(flag)} cannot go with --fp8-recipe delayed"
    share = case.layers // case.pipeline
    for end in ("--num-layers-at-start-in-bf16", "--num-layers-at-end-in-bf16"):
        if not 0 <= (case.number(end) or 0) <= share:
            yield f"{case.said(end)} is not within a stage's {share} layers"


def custom_recipe(case: Case) -> Iterator[str]:
    """TransformerConfig: a recipe of one's own has a factory."""
    for kind in ("fp8", "fp4"):
        recipe, factory = f"--{kind}-recipe", f"--{kind}-quantizer-factory"
        given = case.has(f"--{kind}-format") and case.text(recipe) == "custom"
        if given and not case.has(factory):
            yield f"{case.said(recipe)} needs {factory}"


def recipe_on_gpu(case: Case) -> Iterator[str]:
    """Transformer Engine: which GPUs compute in which recipe (check_*_support, fp8.py)."""
    if case.capability is None:
        return
    if case.has("--fp4-format") and case.capability < (10, 0):
        yield f"{case.said('--fp4-format')} needs Blackwell, not {case.gpu}"
    if case.fp8 == "mxfp8" and case.capability < (10, 0):
        yield (
            f"{case.said('--fp8-recipe')} needs Blackwell, not {case.gpu}: "
            "PR=fp8 (blockwise) is Hopper's"
        )


def blockwise_on_blackwell(case: Case) -> Iterator[str]:
    """Transformer Engine emulates blockwise scaling with MXFP8 on Blackwell."""
    if case.fp8 == "blockwise" and case.capability and case.capability >= (10, 0):
        yield (
            f"{case.said('--fp8-recipe')} is Hopper's; {case.gpu} emulates it: "
            "PR=mxfp8 is Blackwell's own"
        )


def parameters_of_recipe(case: Case) -> Iterator[str]:
    """MXFP8 without FP8 parameters keeps BF16 ones beside them (OptimizerConfig warns)."""
    if case.fp8 == "mxfp8" and not case.has(REUSE) and not case.has(OFFLOAD):
        yield f"{case.said('--fp8-recipe')} without {GATHER} and {REUSE} takes much more memory"


def optimizer_formats(case: Case) -> Iterator[str]:
    """OptimizerConfig: other formats than FP32 are the precision-aware optimizer's."""
    if case.has(AWARE):
        return
    for flag in DTYPES:
        if (case.text(flag) or "fp32") != "fp32":
            yield f"{case.said(flag)} needs {AWARE}"
            return


def precision_aware(case: Case) -> Iterator[str]:
    """OptimizerConfig: the precision-aware optimizer is a distributed Adam."""
    if not case.has(AWARE):
        return
    if case.text("--optimizer") != "adam":
        yield f"{case.said(AWARE)} needs --optimizer adam"
    elif not case.has("--use-distributed-optimizer") and not case.has("--use-megatron-fsdp"):
        yield f"{case.said(AWARE)} needs --use-distributed-optimizer"


def gradient_format(case: Case) -> Iterator[str]:
    """validate_args: gradients that are accumulated in FP32 are FP32."""
    flag = "--accumulate-allreduce-grads-in-fp32"
    main = "--main-grads-dtype"
    if case.has("--bf16") and case.has(flag) and (case.text(main) or "fp32") != "fp32":
        yield f"{case.said(main)} cannot go with {case.said(flag)}"


def optimizer_offload(case: Case) -> Iterator[str]:
    """validate_args: the optimizer on the CPU reuses the precision-aware path."""
    if not case.has(OFFLOAD):
        return
    if not case.has(AWARE):
        yield f"{case.said(OFFLOAD)} needs {AWARE}"
    if case.has(GATHER) and case.text("--fp8-recipe") != "delayed":
        yield (
            f"{case.said(OFFLOAD)} cannot go with {case.said(GATHER)}: drop {GATHER}, "
            "or --fp8-recipe delayed"
        )


def offload_fraction(case: Case) -> Iterator[str]:
    """HybridDeviceOptimizer: a share of the optimizer."""
    flag = "--optimizer-offload-fraction"
    share = case.real(flag)
    if case.has(OFFLOAD) and share is not None and not 0 <= share <= 1:
        yield f"{case.said(flag)} is not between 0 and 1"


def emerging_optimizer(case: Case) -> Iterator[str]:
    """validate_args: optimizers beside Adam and SGD save in two formats, without FSDP."""
    flag = "--optimizer"
    if case.text(flag) in ("adam", "sgd", None):
        return
    if case.has("--use-torch-fsdp2", "--use-megatron-fsdp"):
        yield f"{case.said(flag)} cannot go with FSDP"
    if case.text("--ckpt-format") not in ("torch", "torch_dist"):
        yield f"{case.said(flag)} needs --ckpt-format torch_dist"


ERRORS = (
    one_half,
    half_only,
    one_quantization,
    quantized_output,
    quantized_parameters,
    first_and_last_layers,
    custom_recipe,
    optimizer_formats,
    precision_aware,
    gradient_format,
    optimizer_offload,
    emerging_optimizer,
)
RUN_TIME = (recipe_on_gpu, offload_fraction)
WARNINGS = (blockwise_on_blackwell, parameters_of_recipe)
