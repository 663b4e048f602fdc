"""The model's parts that exclude each other, and ways to shard it beside Megatron's own."""

from __future__ import annotations

from collections.abc import Iterator

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


def activation(case: Case) -> Iterator[str]:
    """core_transformer_config_from_args: one activation function."""
    for flag in ("--squared-relu", "--quick-geglu"):
        if case.has(flag) and case.has("--swiglu"):
            yield f"{case.said(flag)} cannot go with {case.said('--swiglu')}"
            return


def loss_fusion(case: Case) -> Iterator[str]:
    """validate_args: Transformer Engine's fused loss is switched off for its instability."""
    flag = "--cross-entropy-fusion-impl"
    if case.has("--cross-entropy-loss-fusion") and case.text(flag) == "te":
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


ERRORS = (
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
