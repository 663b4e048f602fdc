"""GPU memory of each pipeline rank."""

from __future__ import annotations

import shlex
import time

import pytest

from launcher.config.arguments import parse
from launcher.plan import activations, memory, parameters, stages, static
from launcher.plan.parameters import Count
from launcher.plan.shape import read
from launcher.plan.stages import Layer
from tests.plan.test_parameters import JOBS, RECIPES, shape_of

MOE = Layer(10, moe=True, linear=False, mtp=False)
DENSE = Layer(0, moe=False, linear=False, mtp=False)
GPUS = {name: next((gpu for gpu in ("GB300", "GB200", "B200") if f"-{gpu.lower()}-" in name), "H100") for name in RECIPES}  # fmt: skip
SELECTIVE = ("--recompute-granularity", "selective", "--recompute-modules")
FULL = ("--recompute-granularity", "full", "--recompute-method")


def ranks(name: str, *further: str, imbalance: float | None = None) -> tuple[memory.Rank, ...]:
    shape = shape_of(name, *further)
    return memory.ranks(shape, stages.split(shape), imbalance)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"kimi-k2-gb200-128k"}))
def test_published_recipe_fits_its_gpu(name):
    assert memory.room(ranks(name), GPUS[name]) > 0


def test_kimi_k2_needs_the_offload_of_states_that_only_the_dev_branch_has():
    assert -8 < memory.room(ranks("kimi-k2-gb200-128k"), "GB200") < 0
    offloaded = ranks("kimi-k2-gb200-128k", "--offload-optimizer-states")
    assert memory.room(offloaded, "GB200") > 20


@pytest.mark.parametrize(
    ("name", "changed"),
    [  # recipes that would not fit without what they do about it
        ("dsv3-h100-4k", ("--expert-model-parallel-size", "8")),
        ("qwen3-30b-h100-4k-full-recompute", (*SELECTIVE, "core_attn")),
        ("qwen3-235b-h100-16k", (*SELECTIVE, "layernorm")),
    ],
)
def test_what_does_not_fit_is_told(name, changed):
    assert memory.room(ranks(name, *changed), "H100") < 0


# Static memory


@pytest.mark.parametrize(
    ("name", "further", "each"),
    [
        ("mixtral-8x22b-h100", (), 12),  # FP32: main parameter and two moments
        ("mixtral-8x22b-h100-fp8", (), 8),  # FP32 main parameter, BF16 moments
        ("mixtral-8x22b-h100", ("--use-precision-aware-optimizer",), 10),  # 16 bits and two moments
        ("mixtral-8x22b-h100", ("--use-precision-aware-optimizer", "--exp-avg-dtype", "bf16", "--exp-avg-sq-dtype", "bf16"), 6),
        ("mixtral-8x22b-h100", ("--use-precision-aware-optimizer", "--main-params-dtype", "fp16"), 10),
    ],
)  # fmt: skip
def test_bytes_of_optimizer_states(name, further, each):
    assert static.state_bytes(shape_of(name, *further)) == each


def test_static_memory_in_bf16():
    shape = shape_of("mixtral-8x22b-h100")
    split = stages.split(shape)
    count = parameters.stages(shape, split)[1]
    rank = ranks("mixtral-8x22b-h100")[1]
    assert rank.weights == 2 * count.total
    assert rank.gradients == 4 * count.total + static.placeholders(shape, split[1])
    # 128 ranks: DP is 8 beside TP2 and PP8, and two replicas of an expert share its states.
    assert rank.optimizer == 12 * (count.dense // 8 + count.routed // 2)


@pytest.mark.parametrize(
    ("name", "further", "matrix", "other"),
    [
        ("mixtral-8x22b-h100", (), 2, 2),
        ("mixtral-8x22b-h100-fp8", (), 2, 2),  # FP8 twice, nothing else
        ("dsv3-h100-16k", (), 4, 2),  # FP8 twice beside BF16: the optimizer's offload needs that
        ("dsv3-gb200-4k", (), 2 * 33 / 32, 2),
    ],
)
def test_bytes_of_weights(name, further, matrix, other):
    shape = shape_of(name, *further)
    assert (
        static.weights(shape, Count(dense=96, routed=64, matrices=32)) == 96 * matrix + 64 * other
    )


def test_the_fullest_stage_counts_megatron_bridge_pr_5077():
    """An estimate that divides all layers by PP misses what an uneven split puts on one stage."""
    words = """
        --num-layers 8 --hidden-size 64 --num-attention-heads 4 --ffn-hidden-size 128 --swiglu
        --vocab-size 512 --untie-embeddings-and-output-weights --bf16 --use-distributed-optimizer
        --pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1
        --decoder-last-pipeline-num-layers 3 --num-experts 2 --moe-ffn-hidden-size 32
        --moe-layer-freq [0,1,0,0,1,0,1,1] --transformer-impl local
    """
    shape = read(parse(shlex.split(words), "job"), 4)
    counts = parameters.stages(shape, stages.split(shape))
    expert = 2 * 3 * 64 * 32 + 2 * (2 * 32 + 64)  # both experts of a layer, with their biases
    # Layers 0 | 1 2 | 3 4 | 5 6 7, of which 1, 4, 6 and 7 have experts.
    assert [count.routed for count in counts] == [0, expert, expert, 2 * expert]
    found = memory.ranks(shape, stages.split(shape))
    assert [rank.weights for rank in found] == [2 * count.total for count in counts]
    worst = memory.worst(found)
    assert worst.pipeline_rank == 3
    assert worst.static > 1.2 * sum(rank.static for rank in found) / 4


def test_optimizer_on_the_cpu():
    whole = sum(rank.optimizer for rank in ranks("dsv3-h100-16k"))
    half = sum(rank.optimizer for rank in ranks("dsv3-h100-16k", "--optimizer-offload-fraction", "0.5"))  # fmt: skip
    assert whole == 0
    assert half > 0


def test_gradients_in_bf16():
    count = Count(dense=96, routed=64, matrices=32)
    half = shape_of("mixtral-8x22b-h100", "--grad-reduce-in-bf16")
    assert static.gradients(half, count) == 2 * count.total
    assert static.gradients(shape_of("mixtral-8x22b-h100"), count) == 4 * count.total


def test_placeholders_are_one_a_shape_of_weight():
    shape = shape_of("DeepSeek-V3")
    first, last = stages.split(shape)[0], stages.split(shape)[-1]
    attention = 1536 * 7168 + 24576 * 1536 + 576 * 7168 + 32768 * 512 + 7168 * 16384
    network = (4096 + 2048) * 7168  # of a routed expert; those of the shared one are as large
    dense = (36864 + 18432) * 7168
    assert static.placeholders(shape, first) == 2 * (attention + network + dense)
    assert static.placeholders(shape, last) == 2 * (attention + network + 129280 * 7168)
    unfused = shape_of("DeepSeek-V3", "--no-gradient-accumulation-fusion")
    assert static.placeholders(unfused, first) == 0


def test_a_layer_goes_backward_when_its_logits_are_gone():
    shape = shape_of("qwen3-30b-h100-4k")
    (only,) = ranks("qwen3-30b-h100-4k")
    assert 0 < activations.working(shape, MOE) < only.logits
    assert only.working == 0


def test_value_stays_a_view_of_the_projection_where_the_core_is_recomputed():
    kept, again = (shape_of("Mixtral-8x7B", *flags) for flags in ((), (*SELECTIVE, "core_attn")))
    view = 4096 * (4096 + 1024) * 2  # query and key beside the value
    statistics = 4096 * 32 * 4
    assert activations.kept(again, MOE) == activations.kept(kept, MOE) + view - statistics


def test_swiglu_without_its_kernel_saves_its_factors():
    fused, apart = (
        shape_of("Mixtral-8x7B", *flags) for flags in ((), ("--no-bias-swiglu-fusion",))
    )
    width = activations.routed_tokens(fused, fused.model.experts) * 14336 * 2
    assert activations.kept(apart, MOE) == activations.kept(fused, MOE) + 3 * width


def test_overlapping_shared_experts_gather_their_input_themselves():
    flags = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
    shape = shape_of("Qwen2-57B-A14B", *flags, "--moe-shared-expert-overlap")
    saved = {one.what: one.size for one in activations.layer_activations(shape, MOE)}
    assert saved["shared experts' gathered input"] == 4096 * 3584 * 2


# Micro-batches in flight


@pytest.mark.parametrize(
    ("name", "further", "flying"),
    [
        ("qwen3-235b-gb200-4k-bf16", (), [8, 7, 6, 5, 4, 3, 2, 1]),
        ("Qwen3-30B-A3B", (), [1]),
        ("qwen3-235b-gb300-4k", (), [1]),  # the overlap exchanges one for another
        ("mixtral-8x22b-h100", (), [63, 61, 59, 57, 55, 53, 51, 49]),  # 2·(PP-p-1) + 6·8 + 1
        ("dsv3-h100-4k", (), [39, 37, 35, 33, 31, 29, 27, 25]),  # 2·(PP-p-1) + 3·8 + 1
        ("mixtral-8x22b-h100", ("--global-batch-size", "64"), [56, 56, 56, 56, 55, 53, 51, 49]),
    ],
)
def test_micro_batches_in_flight(name, further, flying):
    assert [sum(rank.in_flight) for rank in ranks(name, *further)] == flying


def test_early_chunks_hold_more():
    first = ranks("dsv3-h100-256gpu-4k")[0].in_flight
    assert first == (15, 8, 8, 8)


# Activations


@pytest.mark.parametrize(
    ("modules", "spared"),
    [
        (("layernorm",), {"normed input"}),
        (("moe_act",), {"experts' activation"}),
        (
            ("shared_experts",),
            {
                "shared experts' first product",
                "shared experts' activation",
                "shared experts' input",
            },
        ),
        (("mla_up_proj",), {"query, key and value", "normed compressed tensors"}),
        (("mlp",), set()),
    ],
)
def test_recomputed_modules_are_not_kept(modules, spared):
    shape = shape_of("dsv3-h100-4k", *SELECTIVE, *modules)
    saved = activations.layer_activations(shape, MOE)
    assert {one.what for one in saved if one.spared_by & set(modules)} - {"shared experts' input"} == spared - {"shared experts' input"}  # fmt: skip
    gone = sum(one.size for one in saved if one.spared_by & set(modules))
    assert activations.kept(shape, MOE) == pytest.approx(sum(one.size for one in saved) - gone)


def test_recomputing_the_moe_layer_leaves_its_input():
    shape = shape_of("dsv3-h100-4k", *SELECTIVE, "moe", "layernorm")
    attention = sum(
        one.size for one in activations.latent(shape) if not one.spared_by & {"moe", "layernorm"}
    )
    assert activations.kept(shape, MOE) == attention + activations.layer_input(shape)


def test_recomputing_the_dense_network_leaves_its_input():
    shape = shape_of("dsv3-h100-4k", *SELECTIVE, "mlp")
    attention = sum(one.size for one in activations.latent(shape))
    assert activations.kept(shape, DENSE) == attention + activations.layer_input(shape)


@pytest.mark.parametrize(
    ("method", "number", "inputs"),
    [("uniform", "1", 48), ("uniform", "5", 10), ("block", "48", 48)],
)
def test_full_recomputation_keeps_inputs(method, number, inputs):
    shape = shape_of("Qwen3-30B-A3B", *FULL, method, "--recompute-num-layers", number)
    (rank,) = memory.ranks(shape, stages.split(shape))
    final_norm = 2
    assert rank.activations == (inputs + final_norm) * activations.layer_input(shape)


def test_offloaded_activations_are_not_kept():
    shape = shape_of("qwen3-235b-gb200-4k-mxfp8")
    away = {one.what for one in activations.layer_activations(shape, MOE) if one.offloaded_by in shape.training.activations_offloaded}  # fmt: skip
    assert away == {"dispatched tokens", "experts' first product"}


@pytest.mark.parametrize(("factor", "which"), [("2.0", 2.0), (None, activations.IMBALANCE)])
def test_dispatched_tokens(factor, which):
    flags = ("--moe-expert-capacity-factor", factor) if factor else ()
    shape = shape_of("mixtral-8x22b-h100", *flags)
    # 4,096 tokens over TP2, to two experts each.
    assert activations.routed_tokens(shape, shape.model.experts) == 4096 / 2 * 2 * which


def test_forced_balance_needs_no_margin():
    shape = shape_of("mixtral-8x22b-h100-balanced")
    assert activations.routed_tokens(shape, shape.model.experts) == 4096


def test_context_parallelism_splits_tokens():
    short, long = (shape_of(f"qwen3-235b-h100-{length}") for length in ("16k", "128k"))
    assert activations.kept(short, MOE) == activations.kept(long, MOE)


def test_fp8_saves_less():
    wide = shape_of("mixtral-8x22b-h100-balanced")
    assert activations.kept(shape_of("mixtral-8x22b-h100-fp8"), MOE) < activations.kept(wide, MOE)


def test_logits_of_each_head():
    one, two = (shape_of("DeepSeek-V3", *flags) for flags in ((), ("--mtp-num-layers", "1")))
    last = stages.split(one)[-1].chunks[-1]
    tokens_and_words = 4096 * 129280
    # The compiled cross entropy needs 4 bytes more than the softmax and the BF16 logits.
    assert activations.logits(one, last) == tokens_and_words * (4 + 4 + 2)
    assert activations.logits(two, last) == tokens_and_words * (4 + 4 + 4 + 2)
    assert activations.logits(one, stages.split(one)[0].chunks[0]) == 0


# What is told


@pytest.mark.parametrize("name", JOBS)
def test_terms_add_up(name):
    for rank in ranks(name):
        terms = (rank.weights, rank.gradients, rank.optimizer, rank.activations, rank.logits, rank.working, rank.framework)  # fmt: skip
        assert rank.total == sum(terms)
        assert min(terms) >= 0


def test_assumptions_say_that_nothing_was_calibrated():
    text = "\n".join(memory.assumptions(shape_of("dsv3-h100-4k")))
    assert "nothing was calibrated on a GPU" in text
    assert "1.2 times its even share" in text
    assert "FP8" in text


def test_a_plan_takes_milliseconds():
    started = time.perf_counter()
    ranks("mixtral-8x22b-h100")
    # A few milliseconds; the margin is for a busy machine.
    assert time.perf_counter() - started < 0.2
