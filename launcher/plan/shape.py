"""A job's model, parallel sizes and training settings, read once from its Megatron arguments.

Defaults are those of Megatron's parser and of validate_args (megatron/training/arguments.py).
"""

from __future__ import annotations

import math

from launcher.config import parallelism
from launcher.config.arguments import Arguments, integer, optional, positive, value, whole_number
from launcher.config.layout import MOST_LAYERS, layer_pattern
from launcher.config.releases import LATEST, SUPPORTED, index
from launcher.plan import batches, choices
from launcher.records import dataclass

ACTIVATION = 2  # bytes of an element in BF16
SINGLE = 4  # bytes of an element in FP32
# One FP8 byte, and a scale of 4 bytes for 128 elements (blockwise) or of one for 32 (MXFP8).
QUANTIZED = 1 + 1 / 32
# Releases in which QKNormConfigResolver (mla_qk_norm_config.py) norms queries that MLA does not
# compress. Releases before and the dev branch have no such norm.
HIDDEN_NORM = ("0.19",)


@dataclass(frozen=True)
class Attention:
    """Self-attention of a standard layer: grouped-query, or multi-latent where `latent`."""

    heads: int
    query_groups: int  # key-value heads; equal to `heads` without --group-query-attention
    head_dim: int  # of queries, keys and values (--kv-channels); sizes nothing with `latent`
    output_gate: bool
    qkv_bias: bool
    qk_norm: bool
    qk_l2_norm: bool  # has no parameters
    sinks: bool  # --softmax-type learnable: a number a head that takes part in the softmax
    latent: bool
    q_rank: int | None  # of the compressed queries; None where they are not compressed
    hidden_norm: bool  # a norm over the hidden state before queries that are not compressed
    kv_rank: int
    qk_dim: int  # of a latent head, without its positional part
    rope_dim: int  # the positional part, one for all heads on the key side
    v_dim: int


@dataclass(frozen=True)
class LinearAttention:
    """Gated delta net (--experimental-attention-variant gated_delta_net)."""

    key_heads: int
    value_heads: int
    key_dim: int  # a head
    value_dim: int  # a head
    kernel: int  # taps of the causal convolution

    @property
    def keys(self) -> int:
        """Width of all key heads, which is also that of the queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all value heads."""
        return self.value_heads * self.value_dim


@dataclass(frozen=True)
class Indexer:
    """The part that chooses the keys of sparse attention (--experimental-attention-variant dsa)."""

    heads: int
    head_dim: int


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of an MoE layer."""

    count: int
    top_k: int
    ffn: int  # intermediate width of one routed expert
    shared_ffn: int  # intermediate width of all shared experts together; 0 without them
    shared_gate: bool
    shared_overlap: bool  # shared experts work while tokens are on their way
    score_bias: bool  # --moe-router-enable-expert-bias: a buffer that balances, no parameter
    latent: int | None  # width in which routed experts work, if not the hidden size
    capacity_factor: float | None  # tokens kept an expert, of its even share; None drops nothing
    balanced: bool  # --moe-router-force-load-balancing: every expert gets its even share


@dataclass(frozen=True)
class Model:
    """Dimensions, in elements, and counts, none of which depends on the parallelism."""

    layers: int  # decoder layers, MTP's not among them
    hidden: int
    ffn: int  # intermediate width of a dense layer
    gated: bool  # SwiGLU or GeGLU: two input matrices in every feed-forward network
    swiglu: bool  # Megatron's count of FLOPs knows only this gate
    linear_bias: bool
    norm_bias: bool  # LayerNorm; RMSNorm has none
    attention: Attention
    linear_attention: LinearAttention | None
    indexer: Indexer | None
    experts: Experts | None
    moe: tuple[bool, ...]  # by decoder layer
    linear: tuple[bool, ...]  # by decoder layer: whether its attention is linear
    mtp: int  # multi-token prediction depth
    mtp_built: int  # layers that exist for it; one where the layer is repeated
    vocabulary: int  # rows of the embedding, padding included
    positions: int  # rows of a learned position embedding; 0 with rotary positions
    tied: bool  # the output layer is the embedding


@dataclass(frozen=True)
class Parallel:
    """Sizes of the process groups."""

    world: int
    tensor: int
    pipeline: int
    virtual: int  # model chunks of a pipeline rank; 1 without interleaving
    context: int
    expert: int
    expert_tensor: int
    sequence: bool  # sequence parallelism; Megatron switches it off at TP1

    @property
    def data(self) -> int:
        """Replicas of the dense parameters that read different sequences."""
        return max(1, self.world // (self.tensor * self.pipeline * self.context))

    @property
    def dense_shards(self) -> int:
        """Ranks over which the distributed optimizer spreads dense parameters: DP times CP."""
        return self.data * self.context

    @property
    def expert_data(self) -> int:
        """Replicas of the expert parameters, over which their optimizer states are spread."""
        return max(1, self.world // (self.expert_tensor * self.expert * self.pipeline))


@dataclass(frozen=True)
class Split:
    """The arguments that decide which layers a pipeline stage has."""

    layout: str | None
    layers_per_chunk: int | None  # --num-layers-per-virtual-pipeline-stage
    first: int | None  # layers of the first stage
    last: int | None
    account_embedding: bool
    account_loss: bool


@dataclass(frozen=True)
class Training:
    """Batch, precision, recomputation and optimizer, on which memory depends besides the sizes."""

    micro_batch: int  # sequences
    global_batch: int  # sequences; the last one where it changes over the run
    first_batch: int  # sequences, at the start of the run
    sequence: int  # tokens
    group_size: int | None  # --microbatch-group-size-per-virtual-pipeline-stage
    weight_bytes: int  # of a parameter outside FP8: 2 or 4
    fp8: str | None  # recipe, or None in BF16
    fp8_parameters: bool  # --fp8-param-gather: FP8 weights are the only ones
    gradient_bytes: int  # of a gradient as accumulated
    fused_gradients: bool  # matrix products accumulate the gradients of weights themselves
    fused_activation: bool  # one kernel for the gate
    fused_loss: bool  # Megatron's compiled cross entropy, which exponentiates into a new tensor
    dropout: bool  # of hidden states, whose masks are saved
    attention_dropout: bool  # of the scores, where attention is unfused
    unfused_attention: bool  # the matrix of scores exists and is saved
    distributed_optimizer: bool
    optimizer_instances: int  # copies of the distributed optimizer's states
    moments: int  # of a parameter: two of Adam, one of SGD and Lion
    muon: bool  # matrices have one moment alone, whole tensors are shared among the ranks
    precision_aware: bool
    main_gradient_bytes: int
    main_parameter_bytes: int
    first_moment_bytes: int
    second_moment_bytes: int
    offloaded: float  # share of the optimizer that is on the CPU, 0 to 1
    states_offloaded: bool  # optimizer states go to the CPU between steps
    recompute: str | None  # "full", "selective" or None
    recompute_method: str | None
    recompute_layers: int
    recompute_modules: frozenset[str]
    activations_offloaded: frozenset[str]  # --offload-modules
    overlap_experts: bool  # --overlap-moe-expert-parallel-comm
    graph_modules: frozenset[str]  # --cuda-graph-modules, where graphs are on
    dispatcher: str  # "allgather", "alltoall", "deepep" or "hybridep"


@dataclass(frozen=True)
class Shape:
    """A job's model, sizes and training settings: the input of the whole plan."""

    model: Model
    parallel: Parallel
    split: Split
    training: Training


def read(arguments: Arguments, world_size: int, release: str = LATEST) -> Shape:
    """Return the shape of a job. Raises ValueError where an argument is missing or no number."""
    parallel = _parallel(arguments, world_size)
    return Shape(
        _model(arguments, parallel.tensor, release),
        parallel,
        _split(arguments),
        _training(arguments, parallel, release),
    )


def _parallel(arguments: Arguments, world_size: int) -> Parallel:
    sizes = parallelism.read(arguments)
    # A single stage has no chunks but those of a layout (validate_args).
    chunked = sizes.pipeline > 1 or parallelism.LAYOUT in arguments
    return Parallel(
        world=world_size,
        tensor=sizes.tensor,
        pipeline=sizes.pipeline,
        virtual=parallelism.virtual_stages(arguments, sizes.pipeline) if chunked else 1,
        context=sizes.context,
        expert=sizes.expert,
        expert_tensor=sizes.expert_tensor,
        sequence="--sequence-parallel" in arguments and sizes.tensor > 1,
    )


def _split(arguments: Arguments) -> Split:
    return Split(
        layout=value(arguments, parallelism.LAYOUT),
        layers_per_chunk=optional(arguments, parallelism.LAYERS_PER_CHUNK),
        first=optional(arguments, "--decoder-first-pipeline-num-layers"),
        last=optional(arguments, "--decoder-last-pipeline-num-layers"),
        account_embedding="--account-for-embedding-in-pipeline-split" in arguments,
        account_loss="--account-for-loss-in-pipeline-split" in arguments,
    )


def _model(arguments: Arguments, tensor: int, release: str) -> Model:
    layers = positive(arguments, "--num-layers")
    if layers > MOST_LAYERS:
        raise ValueError(f"--num-layers {layers} is above {MOST_LAYERS:,}")
    hidden = positive(arguments, "--hidden-size")
    swiglu = "--swiglu" in arguments
    ffn = positive(
        arguments, "--ffn-hidden-size", 8 * hidden // 3 // 64 * 64 if swiglu else 4 * hidden
    )
    experts = _experts(arguments, ffn)
    mtp = integer(arguments, "--mtp-num-layers", 0)
    learned = value(arguments, "--position-embedding-type") in (None, "learned_absolute")
    return Model(
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        gated=swiglu or "--quick-geglu" in arguments,
        swiglu=swiglu,
        linear_bias="--disable-bias-linear" not in arguments,
        norm_bias=value(arguments, "--normalization") != "RMSNorm",
        attention=_attention(arguments, hidden, release),
        linear_attention=_linear_attention(arguments),
        indexer=_indexer(arguments),
        experts=experts,
        moe=_moe_pattern(arguments, layers) if experts else (False,) * layers,
        linear=_linear_pattern(arguments, layers),
        mtp=mtp,
        mtp_built=min(mtp, 1) if "--mtp-use-repeated-layer" in arguments else mtp,
        vocabulary=_vocabulary(arguments, tensor, release),
        positions=integer(arguments, "--max-position-embeddings", 0) if learned else 0,
        tied="--untie-embeddings-and-output-weights" not in arguments,
    )


def _attention(arguments: Arguments, hidden: int, release: str) -> Attention:
    heads = positive(arguments, "--num-attention-heads")
    grouped = "--group-query-attention" in arguments
    return Attention(
        heads=heads,
        query_groups=positive(arguments, "--num-query-groups", 1) if grouped else heads,
        head_dim=positive(arguments, "--kv-channels", max(1, hidden // heads)),
        output_gate="--attention-output-gate" in arguments,
        qkv_bias="--add-qkv-bias" in arguments or "--disable-bias-linear" not in arguments,
        qk_norm="--qk-layernorm" in arguments,
        qk_l2_norm="--qk-l2-norm" in arguments,
        sinks=value(arguments, "--softmax-type") == "learnable",
        latent="--multi-latent-attention" in arguments,
        q_rank=optional(arguments, "--q-lora-rank"),
        hidden_norm=SUPPORTED[index(release)] in HIDDEN_NORM,
        kv_rank=positive(arguments, "--kv-lora-rank", 32),
        qk_dim=positive(arguments, "--qk-head-dim", 128),
        rope_dim=integer(arguments, "--qk-pos-emb-head-dim", 64),
        v_dim=positive(arguments, "--v-head-dim", 128),
    )


def _linear_attention(arguments: Arguments) -> LinearAttention | None:
    if value(arguments, "--experimental-attention-variant") != "gated_delta_net":
        return None
    return LinearAttention(
        key_heads=positive(arguments, "--linear-num-key-heads", 16),
        value_heads=positive(arguments, "--linear-num-value-heads", 32),
        key_dim=positive(arguments, "--linear-key-head-dim", 128),
        value_dim=positive(arguments, "--linear-value-head-dim", 128),
        kernel=positive(arguments, "--linear-conv-kernel-dim", 4),
    )


def _indexer(arguments: Arguments) -> Indexer | None:
    if value(arguments, "--experimental-attention-variant") != "dsa":
        return None
    return Indexer(
        heads=positive(arguments, "--dsa-indexer-n-heads"),
        head_dim=positive(arguments, "--dsa-indexer-head-dim"),
    )


def _experts(arguments: Arguments, ffn: int) -> Experts | None:
    count = optional(arguments, "--num-experts")
    if count is None:
        return None
    capacity = _real(arguments, "--moe-expert-capacity-factor", 0.0)
    return Experts(
        count=count,
        top_k=positive(arguments, "--moe-router-topk", 2),
        ffn=positive(arguments, "--moe-ffn-hidden-size", ffn),
        shared_ffn=integer(arguments, "--moe-shared-expert-intermediate-size", 0),
        shared_overlap="--moe-shared-expert-overlap" in arguments,
        shared_gate="--moe-shared-expert-gate" in arguments,
        score_bias="--moe-router-enable-expert-bias" in arguments,
        latent=optional(arguments, "--moe-latent-size"),
        capacity_factor=capacity if capacity > 0 else None,
        balanced="--moe-router-force-load-balancing" in arguments,
    )


def _moe_pattern(arguments: Arguments, layers: int) -> tuple[bool, ...]:
    text = value(arguments, "--moe-layer-freq") or "1"
    pattern = layer_pattern(text, layers)
    if len(pattern) != layers:
        raise ValueError(
            f"--moe-layer-freq describes {len(pattern)} layers, the model has {layers}"
        )
    return tuple(map(bool, pattern))


def _linear_pattern(arguments: Arguments, layers: int) -> tuple[bool, ...]:
    """Read --linear-attention-freq: N makes every N-th layer a standard one, others linear."""
    text = value(arguments, "--linear-attention-freq")
    if text is None or value(arguments, "--experimental-attention-variant") != "gated_delta_net":
        return (False,) * layers
    if text.isdecimal() and (every := whole_number(text)):
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    pattern = [] if text.isdecimal() else layer_pattern(text, layers)
    if len(pattern) != layers:
        raise ValueError(
            f"--linear-attention-freq describes {len(pattern)} layers, the model has {layers}"
        )
    return tuple(map(bool, pattern))


def _real(arguments: Arguments, flag: str, default: float) -> float:
    """Return a flag's value as a finite number. Raises ValueError."""
    text = value(arguments, flag)
    number = default if text is None else float(text)
    if not math.isfinite(number):
        raise ValueError(f"{flag} {text} is no finite number")
    return number


def _share(arguments: Arguments, flag: str) -> float:
    share = _real(arguments, flag, 1.0)
    if not 0 <= share <= 1:
        raise ValueError(f"{flag} {share:g} is not between 0 and 1")
    return share


def _vocabulary(arguments: Arguments, tensor: int, release: str) -> int:
    """Pad as vocab_size_with_padding does (core/tokenizers/utils/build_tokenizer.py).

    Up to 0.17, NullTokenizer has one word more than --vocab-size, for the end of a document.
    """
    padded = optional(arguments, "--padded-vocab-size")
    if padded is not None:
        return padded
    words = positive(arguments, "--vocab-size")
    if value(arguments, "--tokenizer-type") == "NullTokenizer" and index(release) < index("0.18"):
        words += 1
    if "--no-pad-vocab-size" in arguments:
        return words
    multiple = positive(arguments, "--make-vocab-size-divisible-by", 128) * tensor
    return -(-words // multiple) * multiple


_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def _bytes(arguments: Arguments, flag: str) -> int:
    name = value(arguments, flag) or "fp32"
    if name not in _BYTES:
        raise ValueError(f"{flag} {name} is none of {', '.join(_BYTES)}")
    return _BYTES[name]


def _training(arguments: Arguments, parallel: Parallel, release: str) -> Training:
    half = "--bf16" in arguments or "--fp16" in arguments
    fp8 = "--fp8-format" in arguments
    recompute = choices.granularity(arguments)
    micro_batch = positive(arguments, "--micro-batch-size", 1)
    sequence = positive(arguments, "--seq-length", 4096)
    final = positive(arguments, "--global-batch-size", micro_batch * parallel.data)
    changing = batches.steps(arguments, final, sequence, release)
    offload = "--optimizer-cpu-offload" in arguments
    graphs = choices.graphs(arguments) != "none"
    optimizer = value(arguments, "--optimizer") or "adam"
    main_gradients = _bytes(arguments, "--main-grads-dtype")
    # validate_args: BF16 gradients are accumulated in FP32 unless something says otherwise.
    full = main_gradients == 4 and "--grad-reduce-in-bf16" not in arguments
    return Training(
        micro_batch=micro_batch,
        global_batch=changing[-1].batch,
        first_batch=changing[0].batch,
        sequence=sequence,
        group_size=optional(arguments, "--microbatch-group-size-per-virtual-pipeline-stage"),
        weight_bytes=2 if half else 4,
        fp8=(value(arguments, "--fp8-recipe") or "delayed") if fp8 else None,
        fp8_parameters=fp8 and "--fp8-param-gather" in arguments,
        gradient_bytes=4 if full or not half else 2,
        fused_gradients="--no-gradient-accumulation-fusion" not in arguments
        and value(arguments, "--transformer-impl") != "local",
        fused_activation=not {"--swiglu", "--quick-geglu"} & arguments.keys()
        or "--no-bias-swiglu-fusion" not in arguments,
        fused_loss="--cross-entropy-loss-fusion" in arguments
        and value(arguments, "--cross-entropy-fusion-impl") != "te",
        dropout=_real(arguments, "--hidden-dropout", 0.1) > 0,
        attention_dropout=_real(arguments, "--attention-dropout", 0.1) > 0,
        unfused_attention=value(arguments, "--attention-backend") in ("unfused", "local")
        or value(arguments, "--transformer-impl") == "local",
        distributed_optimizer="--use-distributed-optimizer" in arguments
        or optimizer == "dist_muon",
        optimizer_instances=positive(arguments, "--num-distributed-optimizer-instances", 1),
        moments=1 if optimizer in ("sgd", "lion") else 2,
        muon=optimizer in ("muon", "dist_muon"),
        precision_aware="--use-precision-aware-optimizer" in arguments,
        main_gradient_bytes=main_gradients,
        main_parameter_bytes=_bytes(arguments, "--main-params-dtype"),
        first_moment_bytes=_bytes(arguments, "--exp-avg-dtype"),
        second_moment_bytes=_bytes(arguments, "--exp-avg-sq-dtype"),
        offloaded=_share(arguments, "--optimizer-offload-fraction") if offload else 0.0,
        states_offloaded=bool(
            {"--offload-optimizer-states", "--chunked-optimizer-state-offload"} & arguments.keys()
        ),
        recompute=recompute,
        recompute_method=value(arguments, "--recompute-method"),
        recompute_layers=positive(arguments, "--recompute-num-layers", 1),
        recompute_modules=choices.recomputed(arguments)
        if recompute == "selective"
        else frozenset(),
        activations_offloaded=_offloaded_modules(arguments),
        overlap_experts="--overlap-moe-expert-parallel-comm" in arguments,
        graph_modules=choices.words(arguments, "--cuda-graph-modules", "--cuda-graph-scope")
        if graphs
        else frozenset(),
        dispatcher=choices.backend(arguments) or choices.dispatcher(arguments),
    )


def _offloaded_modules(arguments: Arguments) -> frozenset[str]:
    if "--fine-grained-activation-offloading" not in arguments:
        return frozenset()
    modules = choices.words(arguments, "--offload-modules")
    # Transformer Engine's fused expert network is sent away whole.
    return modules | {"expert_fc1", "moe_act"} if "fused_group_mlp" in modules else modules
