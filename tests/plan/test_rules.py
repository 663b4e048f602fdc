"""What each rule says of a job that breaks it, and that it is silent about one that does not."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from launcher.config.arguments import parse
from launcher.plan import rules
from launcher.plan.rules import Case, check, name

GOOD = """
--num-layers 8 --hidden-size 1024 --ffn-hidden-size 4096 --num-attention-heads 16
--group-query-attention --num-query-groups 4 --kv-channels 64 --max-position-embeddings 4096
--seq-length 4096 --micro-batch-size 1 --global-batch-size 64 --tensor-model-parallel-size 2
--pipeline-model-parallel-size 2 --context-parallel-size 1 --expert-model-parallel-size 4
--expert-tensor-parallel-size 1 --sequence-parallel --num-experts 16 --moe-router-topk 2
--moe-ffn-hidden-size 512 --moe-grouped-gemm --moe-token-dispatcher-type alltoall
--moe-aux-loss-coeff 1e-3 --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
--position-embedding-type rope --normalization RMSNorm --bf16 --use-distributed-optimizer
--overlap-grad-reduce --overlap-param-gather --train-samples 1000000 --lr 1e-4 --min-lr 1e-5
--mock-data --transformer-impl transformer_engine --attention-dropout 0.0 --hidden-dropout 0.0
--vocab-size 32000
"""
MLA = "--multi-latent-attention"
OVERLAP = "--overlap-moe-expert-parallel-comm"
VPP = "--num-virtual-stages-per-pipeline-rank 2"
LAYOUT = "--pipeline-model-parallel-layout"
GRAPHS = "--cuda-graph-impl transformer_engine --cuda-graph-modules"
SELECTIVE = "--recompute-granularity selective --recompute-modules"
OFFLOAD = "--fine-grained-activation-offloading --offload-modules"
DELTA = "--experimental-attention-variant gated_delta_net --linear-attention-freq 4"


@dataclass(frozen=True)
class Broken:
    """A way to break a rule, and a part of what it says then."""

    rule: str
    flags: str
    message: str
    without: str = ""
    world_size: int = 16
    environment: Mapping[str, str] = field(default_factory=dict)
    gpu: str | None = "H100"
    segment: int | None = None


BROKEN = [
    Broken("parallelism.positive", "--context-parallel-size 0", "0 (test) is below 1"),
    Broken("parallelism.positive", "--num-distributed-optimizer-instances 0", "0 (test) is below"),
    Broken("parallelism.world_size", "", "TP*PP*CP = 2*2*1 = 4: 16 or 20", world_size=18),
    Broken("parallelism.expert_world_size", "", "ETP*EP*PP = 1*4*2 = 8: 8 or 16", world_size=12),
    Broken("parallelism.rank_order", "--use-tp-pp-dp-mapping", "TP*CP = ETP*EP, not 2*1 and 1*4"),
    Broken(
        "parallelism.optimizer_instances", "--num-distributed-optimizer-instances 3", "DP*CP = 4"
    ),
    Broken("parallelism.heads", "--num-attention-heads 15", "TP may be 1, 3, 5, 15"),
    Broken("parallelism.query_groups", "--num-query-groups 3", "TP=2 nor is a multiple"),
    Broken("parallelism.heads_of_groups", "--num-query-groups 6", "groups may be 1, 2, 4, 8, 16"),
    Broken("parallelism.head_width", "--hidden-size 1000", "give --kv-channels", "--kv-channels"),
    Broken("parallelism.linear_heads", f"{DELTA} --linear-num-key-heads 5", "TP*CP = 2*1"),
    Broken(
        "parallelism.dense_width",
        "--ffn-hidden-size 4097 --moe-layer-freq ([0]*1+[1]*7)",
        "cannot be split over TP=2",
    ),
    Broken(
        "parallelism.expert_width",
        "--moe-ffn-hidden-size 511 --expert-tensor-parallel-size 2",
        "cannot be split over ETP=2",
    ),
    Broken(
        "parallelism.shared_expert_width", "--moe-shared-expert-intermediate-size 511", "over TP=2"
    ),
    Broken(
        "parallelism.sequence_over_context",
        "--context-parallel-size 2 --seq-length 4094",
        "not a multiple of 2*CP = 4: 4092 or 4096",
    ),
    Broken("parallelism.sequence_over_tensor", "--seq-length 4095", "4094 or 4096 could"),
    Broken("parallelism.sequence_parallel_experts", "", "TP=2 need", "--sequence-parallel"),
    Broken(
        "parallelism.context_communication",
        "--context-parallel-size 2 --cp-comm-type p2p a2a",
        "2 entries for 8 layers",
    ),
    Broken(
        "parallelism.context_heads",
        "--context-parallel-size 4 --cp-comm-type a2a",
        "splits 2 heads a TP rank",
    ),
    Broken("batch.required", "", "--micro-batch-size is not set", "--micro-batch-size"),
    Broken("batch.positive", "--global-batch-size 0", "is below 1"),
    Broken("batch.whole_batches", "--global-batch-size 62", "MBS*DP = 1*4 = 4: 60 or 64"),
    Broken("batch.evaluation_batches", "--eval-global-batch-size 6", "batch of 6 is not"),
    Broken("batch.interleaved_micro_batches", f"{VPP} --global-batch-size 20", "groups of 2"),
    Broken("batch.pipeline_fill", "--global-batch-size 4", "makes 1 micro-batches for PP=2"),
    Broken("batch.positions", "--seq-length 8192", "exceeds --max-position-embeddings 4096"),
    Broken("batch.iterations_or_samples", "--train-iters 10", "cannot go with --train-samples"),
    Broken("batch.duration", "", "how long to train", "--train-samples"),
    Broken("batch.warmup", "--lr-warmup-samples 1000000", "is not below --train-samples"),
    Broken("batch.learning_rates", "--min-lr 1", "is above --lr 1e-4"),
    Broken("batch.learning_rates", "--min-lr -1", "is below 0"),
    Broken("batch.first_learning_rate", "--lr-warmup-init 1", "is above --lr"),
    Broken("batch.weight_decay", "--weight-decay-incr-style linear", "--start-weight-decay"),
    Broken("batch.one_data_source", "--data-path /data", "the data has one source"),
    Broken("batch.removed", "--batch-size 4", "write --micro-batch-size"),
    Broken("batch.save_interval", "--save /checkpoints", "--save-interval of at least 1"),
    Broken("batch.checkpoint_format", "--ckpt-format torch_dcp", "torch_dist saves this job"),
    Broken(
        "batch.gloo_checkpoints",
        "--disable-gloo-process-groups --ckpt-format torch",
        "write torch_dist",
    ),
    Broken("batch.upcycling", "--moe-use-upcycling", "needs --save"),
    Broken("batch.memory_log", "--log-memory-interval 7", "multiple of --log-interval 100"),
    Broken("layout.one_split", f"{VPP} {LAYOUT} Ettt|ttttL", "give one of them"),
    Broken(
        "layout.virtual_needs_pipeline",
        "--num-layers-per-virtual-pipeline-stage 0",
        "0 (test) is below 1",
    ),
    Broken("layout.virtual_needs_pipeline", f"{VPP} --pipeline-model-parallel-size 1", "PP above"),
    Broken("layout.even_split", "--num-layers 9", "PP may be 1, 3, 9"),
    Broken("layout.uneven_split", "--decoder-first-pipeline-num-layers 8", "leave 0 of 8"),
    Broken(
        "layout.overfull_ends",
        "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 6"
        " --decoder-last-pipeline-num-layers 4",
        "are more than the 8 layers",
        world_size=32,
    ),
    Broken("layout.readable_layout", f"{LAYOUT} Ettxt|ttttL", "has 'x'"),
    Broken("layout.layout_chunks", f"{LAYOUT} Etttt|tttt|L", "3 chunks, which do not divide"),
    Broken("layout.layout_layers", f"{LAYOUT} Etttt|tttL", "has 7 layers (t), the model has 8"),
    Broken("layout.layout_order", f"{LAYOUT} tEttt|ttttL", "starts with t"),
    Broken("layout.empty_chunks", f"{LAYOUT} Etttt|tttt||L", "rank 0 chunk 1"),
    Broken("layout.moe_pattern", "--moe-layer-freq ([1]*7)", "describes 7 layers"),
    Broken(
        "layout.linear_pattern",
        "--experimental-attention-variant gated_delta_net --linear-attention-freq ([1]*7)",
        "describes 7 layers",
    ),
    Broken("model.companions", "--encoder-num-layers 8", "cannot go with --num-layers"),
    Broken("model.rare_values", "--flash-attention-version 5", "none of 2, 3, 4"),
    Broken("model.xavier", "--init-method-xavier-uniform", "is broken"),
    Broken("model.layers_without_rotation", "--no-rope-freq 3", "does not divide 8 layers"),
    Broken(
        "model.sparse_attention", "--experimental-attention-variant dsa", "needs --no-rope-fusion"
    ),
    Broken("model.batch_invariance", "--batch-invariant-mode", "--attention-backend flash"),
    Broken(
        "model.mtp_positions", "--mtp-num-layers 1", "rope or none", "--position-embedding-type"
    ),
    Broken("model.mtp_with_variant", f"{DELTA} --mtp-num-layers 1", "MCORE_RELEASE_VERSION=dev"),
    Broken("model.position_embedding", "--position-embedding-type mrope", "--mrope-section"),
    Broken("model.latent_attention", MLA, "cannot go with --group-query-attention"),
    Broken("model.latent_attention", f"{MLA} --cache-mla-latents", "(test) needs --no-rope-fusion"),
    Broken("model.activation", "--squared-relu", "cannot go with --swiglu"),
    Broken(
        "model.loss_fusion",
        "--cross-entropy-loss-fusion --cross-entropy-fusion-impl te",
        "write native",
    ),
    Broken("model.torch_fsdp", "--use-torch-fsdp2", "PP=1 and EP=1"),
    Broken("model.megatron_fsdp", "--use-megatron-fsdp", "fsdp_dtensor"),
    Broken("model.buckets", "--ddp-num-buckets 0", "is below 1"),
    Broken("moe.experts_over_ranks", "--num-experts 18", "EP may be 1, 2, 3, 6, 9, 18"),
    Broken("moe.expert_count", "--num-experts -4", "is below 0"),
    Broken("moe.width_without_experts", "", "needs --num-experts", "--num-experts"),
    Broken("moe.top_k", "--moe-router-topk 17", "is above --num-experts 16"),
    Broken("moe.top_1", "--moe-router-topk 1", "--moe-router-pre-softmax"),
    Broken(
        "moe.router_groups",
        "--moe-router-group-topk 1 --moe-router-num-groups 3",
        "groups may be 1, 2, 4, 8, 16",
    ),
    Broken(
        "moe.top_k_of_groups",
        "--moe-router-group-topk 1 --moe-router-num-groups 8 --moe-router-topk 4",
        "takes 4 experts of each of 1 groups, which have 2",
    ),
    Broken("moe.expert_bias", "--moe-router-enable-expert-bias", "sigmoid, not softmax"),
    Broken(
        "moe.auxiliary_losses", "--moe-router-load-balancing-type aux_loss seq_aux_loss", "2 values"
    ),
    Broken("moe.capacity", "--moe-pad-expert-input-to-capacity", "0 or more"),
    Broken("moe.shared_expert", "--moe-shared-expert-intermediate-size 0", "is below 1"),
    Broken(
        "moe.expert_biases", "--expert-tensor-parallel-size 2", "ETP=2", "--disable-bias-linear"
    ),
    Broken("moe.latent_experts", "--moe-latent-size 0", "is below 1"),
    Broken(
        "moe.latent_shared_overlap",
        "--moe-latent-size 64 --moe-shared-expert-overlap"
        " --moe-shared-expert-intermediate-size 512",
        "drop the overlap",
    ),
    Broken("moe.deepep_flag", "--moe-enable-deepep", "--moe-token-dispatcher-type flex"),
    Broken("moe.flex_backend", "--moe-flex-dispatcher-backend ncclep", "dispatcher-type flex"),
    Broken("moe.rank_capacity", "--moe-expert-rank-capacity-factor 1.5", "hybridep"),
    Broken(
        "moe.flex_group",
        "--moe-token-dispatcher-type flex --expert-model-parallel-size 1",
        "ETP*EP above 1",
    ),
    Broken("moe.sms_of_dispatchers", "--moe-deepep-num-sms 8 --moe-hybridep-num-sms 16", "give"),
    Broken("moe.padding_for_quantization", "--moe-router-padding-for-quantization", "--fp8-format"),
    Broken("moe.single_grouped_weight", "--moe-single-grouped-weight", "op-fuser"),
    Broken(
        "moe.deepep_on_nvl72",
        "--moe-token-dispatcher-type flex --expert-model-parallel-size 8",
        "DISPATCHER=hybridep",
        gpu="GB200",
    ),
    Broken(
        "moe.nvlink_segment",
        "--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep"
        " --expert-model-parallel-size 16",
        "SEGMENT=3 cuts EP groups of 2 nodes",
        world_size=96,
        gpu="GB200",
        segment=3,
    ),
    Broken("precision.one_half", "--fp16", "give one of them"),
    Broken("precision.half_only", "--fp32-residual-connection", "needs --bf16", "--bf16"),
    Broken("precision.one_quantization", "--fp8-param-gather", "needs --fp8-format"),
    Broken("precision.quantized_output", "--fp8-format e4m3 --fp8-output-proj", "recipe mxfp8"),
    Broken(
        "precision.quantized_parameters",
        "--fp8-format e4m3 --reuse-grad-buf-for-mxfp8-param-ag",
        "needs --fp8-param-gather",
    ),
    Broken(
        "precision.first_and_last_layers", "--fp8-format e4m3 --first-last-layers-bf16", "delayed"
    ),
    Broken("precision.custom_recipe", "--fp8-format e4m3 --fp8-recipe custom", "factory"),
    Broken("precision.recipe_on_gpu", "--fp8-format e4m3 --fp8-recipe mxfp8", "Blackwell, not H"),
    Broken(
        "precision.blockwise_on_blackwell",
        "--fp8-format e4m3 --fp8-recipe blockwise",
        "GB200 emulates it",
        gpu="GB200",
    ),
    Broken(
        "precision.parameters_of_recipe",
        "--fp8-format e4m3 --fp8-recipe mxfp8",
        "more memory",
        gpu="GB200",
    ),
    Broken("precision.optimizer_formats", "--exp-avg-dtype bf16", "precision-aware"),
    Broken("precision.precision_aware", "--use-precision-aware-optimizer --optimizer sgd", "adam"),
    Broken(
        "precision.gradient_format",
        "--accumulate-allreduce-grads-in-fp32 --main-grads-dtype bf16",
        "cannot go with",
    ),
    Broken("precision.optimizer_offload", "--optimizer-cpu-offload", "needs --use-precision"),
    Broken(
        "precision.offload_fraction",
        "--optimizer-cpu-offload --use-precision-aware-optimizer --optimizer-offload-fraction 2",
        "not between 0 and 1",
    ),
    Broken(
        "precision.emerging_optimizer", "--optimizer muon --ckpt-format torch_dcp", "torch_dist"
    ),
    Broken("execution.expert_overlap", OVERLAP, "with PP=2 needs virtual stages"),
    Broken(
        "execution.expert_overlap_recompute", f"{OVERLAP} {VPP} {SELECTIVE} moe", "take moe out"
    ),
    Broken("execution.expert_overlap_graphs", f"{OVERLAP} {VPP} {GRAPHS} mlp", "drop mlp"),
    Broken("execution.delayed_weight_gradients", "--delay-wgrad-compute", "A2A_OVERLAP=1"),
    Broken(
        "execution.delayed_weight_gradients_in_graphs",
        f"{OVERLAP} {VPP} --delay-wgrad-compute {GRAPHS} attn --no-gradient-accumulation-fusion",
        "cannot go with --no-gradient",
    ),
    Broken("execution.early_release", "--ep-overlap-early-attn-memory-release", OVERLAP),
    Broken(
        "execution.tensor_overlap",
        "--tp-comm-overlap --tensor-model-parallel-size 1",
        "TP above 1 (now 1)",
    ),
    Broken("execution.parameter_overlap", "", "--overlap-grad-reduce", "--overlap-grad-reduce"),
    Broken(
        "execution.parameter_overlap_with_step",
        "--overlap-param-gather-with-optimizer-step",
        "VPP above 1",
    ),
    Broken(
        "execution.deferred_embedding",
        "--defer-embedding-wgrad-compute --pipeline-model-parallel-size 1",
        "PP above 1",
    ),
    Broken(
        "execution.overlapped_warmup", "--overlap-p2p-communication-warmup-flush", "virtual stages"
    ),
    Broken("execution.recompute_method", "--recompute-granularity full", "uniform or block"),
    Broken(
        "execution.mtp_recompute",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2"
        " --mtp-num-layers 1",
        "has to be 1 beside MTP",
    ),
    Broken("execution.recompute_modules", f"{SELECTIVE} mla_up_proj", "needs --multi-latent"),
    Broken("execution.recomputed_for_nothing", "--recompute-modules mlp", "no effect"),
    Broken(
        "execution.distributed_activations", "--distribute-saved-activations", "granularity full"
    ),
    Broken("execution.layers_to_cpu", "--cpu-offloading-num-layers 1", "needs PP=1"),
    Broken("execution.activations_to_cpu", f"{OFFLOAD} attn_proj", "needs core_attn"),
    Broken(
        "execution.activations_to_cpu_in_graphs",
        f"{OFFLOAD} moe_act {GRAPHS} attn --cuda-graph-warmup-steps 0",
        "above 0",
    ),
    Broken("execution.one_graph_flag", f"{GRAPHS} attn --cuda-graph-scope attn", "give one"),
    Broken(
        "execution.graphed_dense_layers",
        "--cuda-graph-impl local --cuda-graph-modules mlp --moe-layer-freq ([0]*1+[1]*7)"
        " --te-rng-tracker",
        "mlp without attn",
    ),
    Broken("execution.inference_graphs", "--inference-cuda-graph-scope layer", "has to be none"),
    Broken("execution.graph_modules", f"{GRAPHS} moe moe_router", "drop one"),
    Broken(
        "execution.graphs_with_recompute",
        f"{GRAPHS} attn --recompute-granularity full",
        "cannot go with full recomputation",
    ),
    Broken("execution.whole_iteration", "--cuda-graph-impl full_iteration", "--no-check-for-nan"),
    Broken(
        "environment.connections",
        "",
        "=8 (test): TP=2, CP=1 need it to be 1 on H100",
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "8"},
    ),
    Broken("environment.connections_of_overlap", f"{OVERLAP} {VPP}", "32 as a rule"),
    Broken(
        "environment.connections_of_ucc",
        "--pipeline-model-parallel-comm-backend ucc",
        "more than 1",
    ),
    Broken("environment.connections_of_fsdp", "--use-megatron-fsdp", "more than 1"),
    Broken(
        "environment.attention_backend",
        "--attention-backend flash",
        "flash wants 0",
        environment={"NVTE_FUSED_ATTN": "1"},
    ),
    Broken(
        "environment.graph_registration",
        f"{GRAPHS} attn",
        "need it to be 0",
        environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    ),
    Broken("environment.activation_offload", f"{OFFLOAD} moe_act", "needs it to be 1"),
    Broken(
        "environment.determinism",
        "--deterministic-mode",
        "needs it to be 0",
        environment={"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"},
    ),
    Broken("ramp.readable_batches", "--step-batch-size-schedule 1B:64", "no entry for the start"),
    Broken("ramp.whole_steps", "--step-batch-size-schedule 0:63", "not a multiple of MBS*DP = 4"),
    Broken("ramp.ignored_rampup", "--rampup-batch-size 32 32 100", "no effect from"),
    Broken("rare.weight_shards", "--tensor-parallel-num-weight-shards 3", "multiple of TP=2"),
    Broken("rare.weight_shards_world", "--tensor-parallel-num-weight-shards 6", "PP*CP = 12"),
    Broken(
        "rare.weight_shards_companions",
        "--tensor-parallel-num-weight-shards 4 --ddp-average-in-collective",
        "cannot go with --ddp-average",
    ),
    Broken("rare.weight_shards_engine", "--tensor-parallel-num-weight-shards 4", "2.19 or newer"),
    Broken("rare.hybrid_context", "--hybrid-context-parallel", "needs PP=1"),
    Broken("rare.fill_in_the_middle", "--fim-data", "cannot go with --mock-data"),
    Broken("rare.reinforcement", "--perform-rl-step --rl-persist-cuda-graphs", "--cuda-graph-impl"),
    Broken("rare.sharp", "--sharp-enabled-group dp", "needs --use-sharp"),
    Broken("rare.local_backend", "--attention-backend local", "needs --spec local"),
    Broken("rare.width_scaling", "--use-mup --mup-base-hidden-size 0", "below 1"),
    Broken("rare.l2_norm", f"--qk-l2-norm {MLA}", "cannot go with --multi-latent"),
    Broken("rare.converted_checkpoints", "--ckpt-convert-format torch_dist", "needs --load"),
    Broken("rare.local_checkpoints", "--non-persistent-ckpt-type in_memory", "only global"),
    Broken(
        "rare.inference_layers",
        "--inference-disable-triton-nvls-kernels",
        "needs --transformer-impl inference_optimized",
    ),
    Broken("rare.inference_layers", "--transformer-impl inference_optimized", "fp32"),
    Broken("rare.local_checkpoints", "--non-persistent-ckpt-type local", "ckpt-dir"),
    Broken("rare.fsdp_sharding", "--fsdp-manual-registration", "needs --use-nccl-ub"),
    Broken("rare.offload_numbers", f"{OFFLOAD} moe_act --activation-offload-fraction 2", "0 and 1"),
    Broken("rare.paged_stash", "--moe-paged-stash --offload-modules moe_act", "cannot go with moe"),
    Broken("rare.layer_recompute", "--moe-layer-recompute --recompute-granularity full", "full"),
    Broken(
        "rare.pipelined_inference",
        "--inference-batch-times-seqlen-threshold 4 --pipeline-model-parallel-size 1",
        "PP above 1",
    ),
    Broken("rare.inference_modules", "--inference-fuse-tp-communication", "inference_optimized"),
    Broken("rare.saved_parameters", "--save-params-interval 4 --save /x", "cannot go with"),
    Broken("rare.saved_logits", "--logits-save-dir /x --logits-save-top-k 2", "--async-save"),
    Broken("rare.single_grouped_precision", "--moe-single-grouped-bias", "--disable-bias-linear"),
    Broken("rare.encoded_layers", "--heterogeneous-layers-config-encoded-json [1]", "no JSON map"),
    Broken(
        "rare.hybrid_pattern", "--mtp-num-layers 1 --mtp-hybrid-override-pattern a", "'a' is none"
    ),
    Broken("rare.hybrid_pattern", "--hybrid-layer-pattern MxM", "'x' is none of"),
    Broken("start.warmup_stable_decay", "--lr-decay-style WSD", "needs --lr-wsd-decay-samples"),
    Broken("start.decay_of_weights", "--weight-decay -0.1", "is below 0"),
    Broken(
        "start.decay_of_weights",
        "--weight-decay-incr-style linear --start-weight-decay 0.1 --end-weight-decay 0.01",
        "is below --start-weight-decay",
    ),
    Broken(
        "start.scheduler_of_a_checkpoint",
        "--override-opt_param-scheduler --use-checkpoint-opt_param-scheduler",
        "give one of them",
    ),
    Broken("start.not_a_number", "--moe-z-loss-coeff nan", "is not a number"),
    Broken("start.out_of_range", "--attention-dropout 2", "is not between 0 and 1"),
    Broken("start.out_of_range", "--rotary-percent -1", "is below 0"),
    Broken("start.split_optimizer", "--optimizer sgd", "--use-distributed-optimizer"),
    Broken("start.exit_signal", "--exit-signal-handler --exit-signal SIGKILL", "be caught"),
    Broken("start.external_data", "--dataloader-type external", "its own data loader"),
    Broken("start.full_validation", "--full-validation --split 100,0,0", "validation share"),
    Broken("start.sinkhorn", "--moe-router-load-balancing-type sinkhorn", "--moe-aux-loss-coeff 0"),
    Broken(
        "start.evaluation_in_virtual_stages",
        f"{VPP} --eval-iters 1 --eval-global-batch-size 4",
        "groups of 2",
    ),
    Broken("start.optimizer_package", "--optimizer muon", "emerging_optimizers"),
    Broken("start.storage_package", "--enable-msc", "multi-storage-client"),
    Broken("faults.known_faults", "--cuda-graph-impl local --cuda-graph-modules attn", "#6643"),
]


def case(
    flags: str = "", without: str = "", environment: Mapping[str, str] | None = None, **fields
) -> Case:
    """The good job with changes."""
    arguments = {**parse(shlex.split(GOOD), "test"), **parse(shlex.split(flags), "test")}
    arguments.pop(without, None)
    variables = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", **(environment or {})}
    given = {"world_size": 16, "gpu": "H100", "release": "0.19", **fields}
    return Case(
        arguments=arguments,
        environment={name: (value, "test") for name, value in variables.items()},
        **given,
    )


def test_a_good_job_has_no_findings():
    assert check(case()) == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.rule)
def test_rule(broken: Broken):
    fields = dataclasses.asdict(broken)
    rule, message = fields.pop("rule"), fields.pop("message")
    found = {}
    for finding in check(case(**fields)):
        found.setdefault(finding.rule, []).append(finding)
    assert rule in found, found
    assert any(message in finding.message for finding in found[rule]), found[rule]
    warned = rule in {name(each) for each in rules.WARNINGS}
    assert found[rule][0].severity == ("warning" if warned else "error")


def test_every_rule_is_broken_here_and_says_where_it_comes_from():
    every = [*rules.ERRORS, *rules.RUN_TIME, *rules.WARNINGS]
    assert {name(rule) for rule in every} == {broken.rule for broken in BROKEN}
    assert all(rule.__doc__ for rule in every)
    for topic in rules.TOPICS:
        kinds = (topic.ERRORS, topic.RUN_TIME, topic.WARNINGS)
        listed = [rule.__name__ for kind in kinds for rule in kind]
        assert len(listed) == len(set(listed))


def test_one_cause_gives_few_findings():
    assert len(check(case("--tensor-model-parallel-size 3"))) <= 5
    assert len(check(case(f"{LAYOUT} Ettxt|ttttL"))) == 1
    assert len(check(case("--num-layers 9"))) == 1


def test_what_cannot_be_read_is_left_to_the_parser():
    assert check(case("--tensor-model-parallel-size two --seq-length 4k")) == []


@pytest.mark.parametrize("release", ["0.15", "0.16", "0.17", "0.18", "0.19", "dev"])
def test_a_good_job_is_good_for_every_release(release: str):
    found = check(case(release=release))
    assert {one.rule for one in found} <= {"faults.known_faults"}
    assert all(one.severity == "warning" for one in found)


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ("--cross-entropy-loss-fusion --cross-entropy-fusion-impl te", "0.18"),
        (f"{GRAPHS} attn", "0.16"),
    ],
)
def test_refused_from_a_release_on(flags: str, first: str):
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    releases = ["0.15", "0.16", "0.17", "0.18", "0.19"]
    refusing = [
        release
        for release in releases
        if any(
            one.severity == "error"
            for one in check(case(flags, release=release, environment=environment))
        )
    ]
    assert refusing == releases[releases.index(first) :]
