"""The model's parts that exclude each other, and ways to shard it beside Megatron's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.config.layout import layer_pattern
from launcher.plan.rules.case import Case

POSITIONS = "--position-embedding-type"
VARIANT = "--experimental-attention-variant"


def mtp_positions(case: Case) -> Iterator[str]:
    """validate_args: MTP shifts the tokens, which rotary positions follow."""
    kind = _positions(case)
    if case.mtp and kind not in ("rope", "none"):
        yield f"{case.said('--mtp-num-layers')} needs {POSITIONS} rope or none, not {kind}"


def _positions(case: Case) -> str:
    return case.text(POSITIONS) or "learned_absolute"


def mtp_with_variant(case: Case) -> Iterator[str]:
    """pretrain_gpt.py's builder: MTP beside an attention variant is the dev branch's."""
    if case.mtp and case.has(VARIANT) and not case.own_training and case.release != "dev":
        yield (
            f"{case.said('--mtp-num-layers')} beside {case.said(VARIANT)} is refused by the "
            f"pretrain_gpt.py of Megatron-Core {case.release}; the dev branch builds it "
            "(MCORE_RELEASE_VERSION=dev)"
        )


def position_embedding(case: Case) -> Iterator[str]:
    """validate_args: kinds of position embedding with conditions of their own."""
    kind = "rope" if case.has("--use-rotary-position-embeddings") else _positions(case)
    if case.has("--no-position-embedding") and kind != "rope":
        yield f"{case.said('--no-position-embedding')} is deprecated: write {POSITIONS} none"
    if kind == "relative" and case.text("--transformer-impl") != "transformer_engine":
        yield f"{case.said(POSITIONS)} needs --transformer-impl transformer_engine"
    if kind == "mrope" and not case.has("--mrope-section"):
        yield f"{case.said(POSITIONS)} needs --mrope-section"


def latent_attention(case: Case) -> Iterator[str]:
    """validate_args, MLATransformerConfig: what latent attention cannot be combined with."""
    flag = "--multi-latent-attention"
    if not case.has(flag):
        if case.has("--mla-down-proj-fusion"):
            yield f"{case.said('--mla-down-proj-fusion')} needs {flag}"
        kind = case.text("--rope-type")
        if case.has("--rope-type") and kind != "rope":
            yield f"{case.said('--rope-type')} needs {flag}"
        return
    for other in ("--group-query-attention", "--rotary-interleaved", "--attention-output-gate"):
        if case.has(other):
            yield f"{case.said(flag)} cannot go with {case.said(other)}"
    fused = _positions(case) == "rope" and not case.has("--no-rope-fusion")
    if fused and case.text("--rope-type") == "rope":
        yield f"{case.said('--rope-type')} needs --no-rope-fusion beside {case.said(flag)}"
    if fused and case.has("--cache-mla-latents"):
        yield f"{case.said('--cache-mla-latents')} needs --no-rope-fusion"


def activation(case: Case) -> Iterator[str]:
    """core_transformer_config_from_args: one activation function."""
    for flag in ("--squared-relu", "--quick-geglu"):
        if case.has(flag) and case.has("--swiglu"):
            yield f"{case.said(flag)} cannot go with {case.said('--swiglu')}"
            return


def loss_fusion(case: Case) -> Iterator[str]:
    """validate_args from 0.18 on: Transformer Engine's fused loss is refused as unstable."""
    flag = "--cross-entropy-fusion-impl"
    fused = case.has("--cross-entropy-loss-fusion") and case.text(flag) == "te"
    if fused and case.since("0.18"):
        yield f"{case.said(flag)} is refused: write native"


def torch_fsdp(case: Case) -> Iterator[str]:
    """validate_args: PyTorch's FSDP2 has no pipeline, expert groups or sharded optimizer."""
    flag = "--use-torch-fsdp2"
    if not case.has(flag):
        return
    against = [other for other in ("--use-distributed-optimizer", "--fp16") if case.has(other)]
    if case.pipeline > 1 or case.expert > 1:
        yield f"{case.said(flag)} needs PP=1 and EP=1, not {case.pipeline} and {case.expert}"
    elif against:
        yield f"{case.said(flag)} cannot go with {case.said(against[0])}"
    elif not case.has("--no-gradient-accumulation-fusion"):
        yield f"{case.said(flag)} needs --no-gradient-accumulation-fusion"
    elif not case.has("--untie-embeddings-and-output-weights"):
        yield f"{case.said(flag)} needs --untie-embeddings-and-output-weights"
    elif case.text("--ckpt-format") not in ("torch_dist", "torch_dcp"):
        yield f"{case.said(flag)} needs --ckpt-format torch_dcp"


def megatron_fsdp(case: Case) -> Iterator[str]:
    """validate_args: Megatron-FSDP has its own checkpoints, for Adam and SGD."""
    flag = "--use-megatron-fsdp"
    if not case.has(flag):
        return
    if case.text("--ckpt-format") != "fsdp_dtensor":
        yield f"{case.said(flag)} needs --ckpt-format fsdp_dtensor"
    if case.text("--optimizer") not in ("adam", "sgd"):
        yield f"{case.said(flag)} needs --optimizer adam or sgd"


def buckets(case: Case) -> Iterator[str]:
    """DistributedDataParallelConfig: gradient buckets by number or by size."""
    number, size = "--ddp-num-buckets", "--ddp-bucket-size"
    if not case.has(number):
        return
    if case.has(size):
        yield f"{case.said(number)} and {case.said(size)}: give one of them"
    elif (case.number(number) or 0) < 1:
        yield f"{case.said(number)} is below 1"


# Rarely used flags that are refused alone, with what they need one of. validate_args,
# TransformerConfig and OptimizerConfig state each in a line.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "--fp8-output-proj": ("--fp8-format",),
    "--moe-paged-stash": ("--moe-expert-rank-capacity-factor",),
    "--load-main-params-from-ckpt": ("--no-load-optim",),
    "--logits-save-dir": ("--logits-save-top-k",),
    "--fsdp-manual-registration": ("--use-megatron-fsdp",),
    "--activation-func-fp8-input-store": ("--swiglu",),
    "--use-te-activation-func": ("--no-bias-swiglu-fusion",),
    "--ddp-param-name-patterns-for-fp32-local-accumulation": ("--grad-reduce-in-bf16",),
}
# Pairs that are refused together.
EXCLUDE: Mapping[str, tuple[str, ...]] = {
    "--override-ckpt-iteration": ("--finetune",),
    "--step-batch-size-schedule": ("--global-batch-size", "--decrease-batch-size-if-needed"),
    "--encoder-num-layers": ("--num-layers",),
    "--encoder-seq-length": ("--seq-length",),
    "--fused-single-qkv-rope": ("--attention-output-gate",),
    "--heterogeneous-layers-config-path": ("--multi-latent-attention",),
}


def companions(case: Case) -> Iterator[str]:
    """Flags that need another one, and flags that exclude another one."""
    for flag, needed in NEEDS.items():
        if case.has(flag) and not case.has(*needed):
            yield f"{case.said(flag)} needs {' or '.join(needed)}"
    for flag, excluded in EXCLUDE.items():
        for other in excluded:
            if case.has(flag) and case.has(other):
                yield f"{case.said(flag)} cannot go with {case.said(other)}"


def rare_values(case: Case) -> Iterator[str]:
    """validate_args, TransformerConfig: ranges of values that are rarely given."""
    version = case.number("--flash-attention-version")
    if version is not None and version not in (2, 3, 4):
        yield f"{case.said('--flash-attention-version')} is none of 2, 3, 4"
    if case.has("--num-dataset-builder-threads") and (
        (case.number("--num-dataset-builder-threads") or 0) < 1
    ):
        yield f"{case.said('--num-dataset-builder-threads')} is below 1"
    if case.has("--qk-clip"):
        if not 0 < (case.real("--qk-clip-alpha") or 0) < 1:
            yield f"{case.said('--qk-clip-alpha')} is not between 0 and 1"
        if (case.real("--qk-clip-threshold") or 0) <= 0:
            yield f"{case.said('--qk-clip-threshold')} is not above 0"
    fused = not case.has("--no-bias-swiglu-fusion", "--quick-geglu")
    if (case.real("--glu-linear-offset") or 0) != 0 and fused:
        yield f"{case.said('--glu-linear-offset')} needs --no-bias-swiglu-fusion"


def xavier(case: Case) -> Iterator[str]:
    """core_transformer_config_from_args: passes on what no configuration takes."""
    flag = "--init-method-xavier-uniform"
    if case.has(flag):
        yield f"{case.said(flag)} is broken in Megatron-Core: its configuration does not take it"


def layers_without_rotation(case: Case) -> Iterator[str]:
    """TransformerConfig: a pattern of layers without rotary positions."""
    flag = "--no-rope-freq"
    text = case.text(flag)
    if not text:
        return
    if "[" in text:
        length = len(layer_pattern(text, case.layers))
        if length != case.layers:
            yield f"{case.said(flag)} describes {length} layers, the model has {case.layers}"
    elif case.number(flag) and case.layers % (case.number(flag) or 1):
        yield f"{case.said(flag)} does not divide {case.layers} layers"


def sparse_attention(case: Case) -> Iterator[str]:
    """TransformerConfig: DeepSeek's sparse attention."""
    if case.text(VARIANT) != "dsa":
        return
    if not case.has("--disable-bias-linear"):
        yield f"{case.said(VARIANT)} needs --disable-bias-linear"
    if _positions(case) == "rope" and not case.has("--no-rope-fusion"):
        yield f"{case.said(VARIANT)} needs --no-rope-fusion"
    if case.context > 1 and case.text("--cp-comm-type") != "allgather":
        yield f"{case.said(VARIANT)} with CP={case.context} needs --cp-comm-type allgather"


def batch_invariance(case: Case) -> Iterator[str]:
    """TransformerConfig: results that do not depend on the batch need one attention kernel."""
    flag = "--batch-invariant-mode"
    if not case.has(flag):
        return
    if case.text("--attention-backend") != "flash":
        yield f"{case.said(flag)} needs --attention-backend flash"
    elif case.number("--flash-attention-version") not in (3, 4):
        yield f"{case.said(flag)} needs --flash-attention-version 3 or 4"
    elif case.context > 1:
        yield f"{case.said(flag)} needs CP=1"
    elif case.real("--attention-dropout"):
        yield f"{case.said(flag)} cannot go with {case.said('--attention-dropout')}"


ERRORS = (
    companions,
    rare_values,
    xavier,
    layers_without_rotation,
    sparse_attention,
    batch_invariance,
    mtp_positions,
    mtp_with_variant,
    position_embedding,
    latent_attention,
    activation,
    loss_fusion,
    torch_fsdp,
    megatron_fsdp,
    buckets,
)
RUN_TIME = ()
WARNINGS = ()
