"""How often the plan and Megatron agree on random jobs around the recipes.

    python tests/tools/agreement.py judge SEED COUNT FILE     draw, ask both, append to FILE
    python tests/tools/agreement.py report FILE               ask the plan again; list disagreements

Run it with the Python of the training environment. A draw starts from a published recipe or a
model's defaults and changes one to three things about it, into something valid or not. FILE is
JSON lines (`.gz` too for a report): the bases first, then a line for each draw with what it changed
and Megatron's verdict, so that it can be judged again without this repository's configs. An
interrupted run goes on where it stopped. Draw number I of a seed is always the same.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.config.arguments import parse  # noqa: E402
from launcher.config.gpus import GPUS  # noqa: E402
from launcher.config.layout import balanced, expand  # noqa: E402
from launcher.plan import flags  # noqa: E402
from launcher.plan.plan import plan  # noqa: E402
from launcher.plan.rules import RUN_TIME, Case  # noqa: E402
from launcher.plan.rules import name as name_of  # noqa: E402
from tests.support.launching import launch  # noqa: E402

JUDGE = ROOT / "launcher" / "megatron" / "verify.py"
RELEASE = "0.19"
DRAWN_GPUS = ("H100", "B200", "GB200", "GB300")


@dataclass
class Job:
    """A job to be judged; drawing changes it in place."""

    base: str
    flags: dict[str, list[str]]
    world_size: int
    environment: dict[str, str]
    gpu: str
    tasks_per_node: int
    changed: list[str] = field(default_factory=list)  # by which mutations

    @property
    def argv(self) -> list[str]:
        """Megatron's words."""
        return [word for flag, values in self.flags.items() for word in (flag, *values)]

    def number(self, flag: str, default: int = 1) -> int:
        """A flag's number, `default` where it is absent or none."""
        text = (self.flags.get(flag) or [""])[0]
        return int(text) if text.lstrip("-").isdigit() else default

    def set(self, flag: str, *values: object) -> None:
        """Give a flag; without values it is a switch."""
        self.flags[flag] = [str(value) for value in values]

    def drop(self, *flags: str) -> None:
        """Take flags away."""
        for flag in flags:
            self.flags.pop(flag, None)


def bases() -> dict[str, Job]:
    """Read every recipe's stored script, and preview every model's defaults."""
    scripts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests" / "golden").glob("*.sh"))
    }
    models = sorted(path.stem for path in (ROOT / "model_configs" / "benchmarking").glob("*.yaml"))

    def preview(model: str) -> str:
        seen = launch(MODEL=model, DRY_RUN="1", CLUSTER="template", OUTPUT_PATH="/output")
        if seen.status:
            raise RuntimeError(seen.stderr)
        return seen.script.replace(str(ROOT), "/workspace")

    with ThreadPoolExecutor() as pool:
        scripts.update(zip(models, pool.map(preview, models)))
    return {name: _base(name, text) for name, text in scripts.items()}


def _base(name: str, text: str) -> Job:
    nodes, tasks = (
        int(re.search(rf"--{key}=(\d+)", text)[1]) for key in ("nodes", "ntasks-per-node")
    )
    command = shlex.split(re.search(r"training_command=\((.*?)\n\)", text, re.DOTALL)[1])
    script = next(i for i, word in enumerate(command) if word.endswith("pretrain_gpt.py"))
    flags: dict[str, list[str]] = {}
    for word in command[script + 1 :]:
        if word.startswith("--"):
            flags[word] = last = []
        else:
            last.append(word)
    exports = (
        shlex.split(line)[0] for line in re.findall(r"^export (\w+=.*)$", text, re.MULTILINE)
    )
    gpu = next((gpu for gpu in DRAWN_GPUS if f"-{gpu.lower()}" in name), "H100")
    environment = dict(entry.split("=", 1) for entry in exports)
    return Job(name, flags, nodes * tasks, environment, gpu, tasks)


# --- what a draw changes ------------------------------------------------------------------------


def _sizes(rng: random.Random, job: Job) -> None:
    """Other parallel sizes that fit each other, most of the time."""
    heads = job.number("--num-attention-heads")
    experts = job.number("--num-experts", 8)
    tensor = rng.choice([size for size in (1, 1, 2, 4, 8) if heads % size == 0])
    pipeline = job.number("--pipeline-model-parallel-size")
    context = rng.choice([1, 1, 2, 4])
    expert_tensor = rng.choice([1, 1, 1, 2])
    expert = rng.choice([size for size in (1, 2, 4, 8, 16, 32, 64) if experts % size == 0])
    job.set("--tensor-model-parallel-size", tensor)
    job.set("--context-parallel-size", context)
    job.set("--expert-tensor-parallel-size", expert_tensor)
    job.set("--expert-model-parallel-size", expert)
    job.world_size = (
        max(tensor * context, expert * expert_tensor) * pipeline * rng.choice([1, 2, 4])
    )
    _batch(rng, job)


def _batch(rng: random.Random, job: Job) -> None:
    """A batch of whole micro-batches, in the groups that an interleaved schedule wants."""
    model = (
        job.number("--tensor-model-parallel-size")
        * job.number("--pipeline-model-parallel-size")
        * job.number("--context-parallel-size")
    )
    micro = rng.choice([1, 1, 2, 4])
    groups = job.number("--pipeline-model-parallel-size") * rng.choice([1, 2, 4, 8])
    job.set("--micro-batch-size", micro)
    job.set("--global-batch-size", max(1, job.world_size // model) * micro * groups)


def _pipeline(rng: random.Random, job: Job) -> None:
    """Another pipeline with a balanced layout of its own."""
    pipeline = rng.choice([2, 4, 8, 16])
    virtual = rng.choice([1, 2, 3, 4])
    job.drop(*SPLIT)
    layers = job.number("--num-layers")
    mtp = job.number("--mtp-num-layers", 0)
    text = balanced(layers, pipeline * virtual, mtp) if layers >= pipeline * virtual else "EtL"
    job.set("--pipeline-model-parallel-layout", text)
    job.set("--pipeline-model-parallel-size", pipeline)
    _sizes(rng, job)


SPLIT = (
    "--pipeline-model-parallel-layout",
    "--num-virtual-stages-per-pipeline-rank",
    "--num-layers-per-virtual-pipeline-stage",
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
    "--account-for-embedding-in-pipeline-split",
    "--account-for-loss-in-pipeline-split",
)


def _depth(rng: random.Random, job: Job) -> None:
    """Another depth, sometimes without telling the layer pattern or the layout."""
    layers = rng.choice([16, 24, 32, 47, 48, 60, 61, 64, 94])
    job.set("--num-layers", layers)
    dense = rng.choice([0, 1, 3])
    if rng.random() < 0.7 and "--num-experts" in job.flags:
        job.set("--moe-layer-freq", f"([0]*{dense}+[1]*{layers - dense})")
    if rng.random() < 0.7:
        job.drop(*SPLIT)
        pipeline = job.number("--pipeline-model-parallel-size")
        if layers % pipeline:
            text = balanced(layers, pipeline, job.number("--mtp-num-layers", 0))
            job.set("--pipeline-model-parallel-layout", text)


def _layout(rng: random.Random, job: Job) -> None:
    """A layout with something missing, added or in another place."""
    pipeline = job.number("--pipeline-model-parallel-size")
    virtual = rng.choice([1, 2, 4])
    layers, mtp = job.number("--num-layers"), job.number("--mtp-num-layers", 0)
    text = (job.flags.get("--pipeline-model-parallel-layout") or [""])[0]
    if not text or rng.random() < 0.5:
        text = balanced(layers, max(pipeline * virtual, 1), mtp)
    try:
        parts = expand(text)
    except ValueError:
        return
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(len(parts))
        other = rng.randrange(len(parts))
        kind = rng.randrange(8)
        if kind == 0:
            parts[at] += "t"
        elif kind == 1:
            parts[at] = parts[at].replace("t", "", 1)
        elif kind == 2 and "t" in parts[at]:  # an even move: still the same layers
            parts[at] = parts[at].replace("t", "", 1)
            parts[other] = (
                parts[other].replace("m", "tm", 1)
                if "m" in parts[other]
                else parts[other][:-1] + "tL"
                if parts[other].endswith("L")
                else parts[other] + "t"
            )
        elif kind == 3:
            parts[at] = rng.choice(["x", "e", "T", "L", "E", "m"]) + parts[at]
        elif kind == 4:
            parts[at] = parts[at].replace(rng.choice("ELm"), "", 1)
        elif kind == 5 and mtp:  # MTP alone, or earlier
            parts = [part.replace("m", "") for part in parts]
            parts[-(pipeline + 1) if rng.random() < 0.3 else -2 % len(parts)] += "m" * mtp
        elif kind == 6:
            parts.append("")
        elif kind == 7 and len(parts) > 1:
            parts[at], parts[other] = parts[other], parts[at]
    job.drop(*SPLIT)
    job.set("--pipeline-model-parallel-layout", "|".join(parts))


def _counts(rng: random.Random, job: Job) -> None:
    """A split by counts: virtual stages, first and last stage, embedding and loss as layers."""
    job.drop(*SPLIT)
    pipeline, layers = job.number("--pipeline-model-parallel-size"), job.number("--num-layers")
    share = max(1, layers // pipeline)
    if rng.random() < 0.5:
        job.set("--num-virtual-stages-per-pipeline-rank", rng.choice([1, 2, 3, 4, 5, 6]))
    elif rng.random() < 0.3:
        job.set("--num-layers-per-virtual-pipeline-stage", rng.choice([1, 2, 3, 4]))
    near = [share, share - 1, share + 1, share // 2, layers % pipeline, 0, layers]
    if rng.random() < 0.5:
        job.set("--decoder-first-pipeline-num-layers", rng.choice(near))
    if rng.random() < 0.5:
        job.set("--decoder-last-pipeline-num-layers", rng.choice(near))
    for flag in SPLIT[-2:]:
        if rng.random() < 0.25:
            job.set(flag)


def _schedule(rng: random.Random, job: Job) -> None:
    """Iterations in place of samples, sometimes both."""
    if rng.random() < 0.8:
        job.drop("--train-samples", "--lr-decay-samples", "--lr-warmup-samples")
    job.set("--train-iters", rng.choice([10, 100, 1000]))
    if rng.random() < 0.5:
        job.set("--lr-decay-iters", rng.choice([10, 1000]))
    if rng.random() < 0.5:
        job.set("--lr-warmup-iters", rng.choice([0, 5, 2000]))
    elif rng.random() < 0.3:
        job.set("--lr-warmup-fraction", "0.01")


MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
GRAPHS = ("attn", "mlp", "moe", "moe_router", "moe_preprocess", "mamba")
OFFLOADED = (
    "core_attn",
    "attn_proj",
    "expert_fc1",
    "moe_act",
    "attn_norm",
    "mlp_norm",
    "qkv_linear",
)


def _recompute(rng: random.Random, job: Job) -> None:
    """Another recomputation."""
    job.drop("--recompute-granularity", "--recompute-method", "--recompute-num-layers")
    job.drop("--recompute-modules", "--recompute-activations")
    kind = rng.choice(["selective", "selective", "full", "none", "activations", "mixed"])
    if kind == "selective":
        job.set("--recompute-granularity", "selective")
        fits = [
            name
            for name in MODULES
            if (name != "mla_up_proj" or "--multi-latent-attention" in job.flags)
            and (name != "moe" or "--overlap-moe-expert-parallel-comm" not in job.flags)
        ]
        names = fits if rng.random() < 0.7 else (*MODULES, "gdn_norm_out", "moe_layer")
        job.set("--recompute-modules", *rng.sample(list(names), rng.choice([1, 2, 3])))
    elif kind in ("full", "mixed"):
        job.set("--recompute-granularity", "full" if kind == "full" else "selective")
        if rng.random() < 0.8:
            job.set("--recompute-method", rng.choice(["uniform", "block"]))
        if rng.random() < 0.8:
            job.set("--recompute-num-layers", rng.choice([1, 2]))
    elif kind == "activations":
        job.set("--recompute-activations")


def _graphs(rng: random.Random, job: Job) -> None:
    """Other CUDA graphs."""
    job.drop("--cuda-graph-impl", "--cuda-graph-modules", "--cuda-graph-scope")
    implementation = rng.choice(["transformer_engine", "transformer_engine", "local", "none"])
    if rng.random() < 0.1:
        implementation = "full_iteration"
    job.set("--cuda-graph-impl", implementation)
    if implementation != "none":
        job.environment["NCCL_GRAPH_REGISTER"] = rng.choice(["0", "0", "0", "1"])
    if rng.random() < 0.85 and implementation != "full_iteration":
        usual = [["attn"], ["attn", "moe_router"], ["attn", "moe_router", "moe_preprocess"]]
        chosen = rng.choice(usual) if rng.random() < 0.6 else rng.sample(GRAPHS, rng.choice([1, 2]))
        job.set("--cuda-graph-modules", *chosen)


def _precision(rng: random.Random, job: Job) -> None:
    """Another precision."""
    job.drop("--fp8-format", "--fp8-recipe", "--fp8-param-gather", "--fp4-format", "--fp4-recipe")
    job.drop("--reuse-grad-buf-for-mxfp8-param-ag", "--moe-router-padding-for-quantization")
    kind = rng.choice(["bf16", "blockwise", "mxfp8", "tensorwise", "delayed", "fp4"])
    if kind == "fp4":
        job.set("--fp4-format", "e2m1")
    elif kind != "bf16":
        job.set("--fp8-format", rng.choice(["e4m3", "hybrid"]))
        job.set("--fp8-recipe", kind)
    if rng.random() < (0.4 if kind != "bf16" else 0.1):
        job.set("--fp8-param-gather")
        if kind == "mxfp8" or rng.random() < 0.1:
            job.set("--reuse-grad-buf-for-mxfp8-param-ag")
    if rng.random() < (0.5 if kind != "bf16" else 0.05):
        job.set("--moe-router-padding-for-quantization")


def _optimizer(rng: random.Random, job: Job) -> None:
    """Another optimizer precision or place."""
    if rng.random() < 0.8:
        job.set("--use-precision-aware-optimizer")
    else:
        job.drop("--use-precision-aware-optimizer")
    for flag in ("--main-grads-dtype", "--main-params-dtype", "--exp-avg-dtype"):
        if rng.random() < 0.4:
            job.set(flag, rng.choice(["fp32", "bf16" if "grads" in flag else "fp16"]))
    if rng.random() < 0.3:
        job.set("--optimizer-cpu-offload")
        job.set("--optimizer-offload-fraction", rng.choice(["0.5", "1.0"]))


def _dispatcher(rng: random.Random, job: Job) -> None:
    """Another dispatcher."""
    job.drop("--moe-flex-dispatcher-backend", "--moe-flex-dispatcher-num-sms")
    job.drop("--moe-permute-fusion-into-hybridep")
    kind = rng.choice(["allgather", "alltoall", "flex", "flex"])
    job.set("--moe-token-dispatcher-type", kind)
    if kind == "flex" or rng.random() < 0.1:
        job.set("--moe-flex-dispatcher-backend", rng.choice(["deepep", "hybridep"]))


def _overlap(rng: random.Random, job: Job) -> None:
    """Overlap of the expert all-to-all, with what it needs or without."""
    job.set("--overlap-moe-expert-parallel-comm")
    if rng.random() < 0.6:
        job.set("--delay-wgrad-compute")
    if rng.random() < 0.7:
        job.set("--moe-token-dispatcher-type", "alltoall")
        job.drop("--moe-shared-expert-overlap")
        if "moe" in job.flags.get("--recompute-modules", []):
            _recompute(rng, job)
    job.environment["CUDA_DEVICE_MAX_CONNECTIONS"] = rng.choice(["1", "32"])


def _offload(rng: random.Random, job: Job) -> None:
    """Activations to the CPU."""
    job.set("--fine-grained-activation-offloading")
    if rng.random() < 0.8:
        job.environment["NVTE_CPU_OFFLOAD_V1"] = "1"
    if rng.random() < 0.9:
        job.set("--offload-modules", *rng.sample(OFFLOADED, rng.choice([1, 2])))


def _router(rng: random.Random, job: Job) -> None:
    """Another routing."""
    experts = job.number("--num-experts", 8)
    job.set("--moe-router-topk", rng.choice([1, 2, 4, 6, 8, experts, experts + 1]))
    if rng.random() < 0.4:
        groups = rng.choice([1, 2, 4, 8, 3])
        job.set("--moe-router-num-groups", groups)
        job.set("--moe-router-group-topk", rng.choice([1, groups, groups + 1]))
    if rng.random() < 0.4:
        job.set("--moe-router-score-function", rng.choice(["sigmoid", "softmax"]))
    if rng.random() < 0.3:
        job.set("--moe-router-pre-softmax")
    if rng.random() < 0.3:
        kinds = ["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"]
        chosen = rng.sample(kinds, rng.choice([1, 1, 2]))
        job.set("--moe-router-load-balancing-type", *chosen)
        if rng.random() < 0.7:
            job.set("--moe-aux-loss-coeff", *(["1e-3"] * len(chosen)))
    if rng.random() < 0.3:
        job.set("--moe-expert-capacity-factor", rng.choice(["1.0", "1.5", "-1"]))
        if rng.random() < 0.5:
            job.set("--moe-pad-expert-input-to-capacity")


# One flag and its natural values, None: without it.
VALUES: Mapping[str, tuple[object, ...]] = {
    "--tensor-model-parallel-size": (1, 2, 3, 4, 8),
    "--pipeline-model-parallel-size": (1, 2, 3, 4, 5, 8, 16),
    "--context-parallel-size": (1, 2, 3, 4),
    "--expert-model-parallel-size": (1, 2, 4, 8, 12, 16, 32, 64, 128),
    "--expert-tensor-parallel-size": (1, 2, 3, 4, None),
    "--micro-batch-size": (1, 2, 3, 4, 0),
    "--global-batch-size": (1, 64, 100, 128, 256, 512, 1000, 1024, 2048, None),
    "--seq-length": (4095, 4098, 8192, 1024, 2048, 1048576),
    "--max-position-embeddings": (2048, 4096, 262144, None),
    "--num-attention-heads": (16, 32, 48, 60, 64, 128),
    "--num-query-groups": (1, 2, 3, 4, 8, 16),
    "--kv-channels": (64, 96, 128, None),
    "--hidden-size": (2048, 4096, 4100, 7168),
    "--ffn-hidden-size": (8192, 18432, 10001, None),
    "--moe-ffn-hidden-size": (1024, 1536, 2048, 1001, None),
    "--num-experts": (8, 64, 100, 128, 256, 0, None),
    "--moe-router-topk": (1, 2, 8, 16, 300),
    "--moe-layer-freq": (1, 2, "([0]*1+[1]*60)", "([1]*48)", None),
    "--moe-shared-expert-intermediate-size": (0, 512, 2048, 1001, None),
    "--mtp-num-layers": (0, 1, 2, None),
    "--vocab-size": (32000, 129280, 100003),
    "--make-vocab-size-divisible-by": (1, 128, 3232),
    "--position-embedding-type": ("rope", "learned_absolute", "none", "yarn", "relative", "mrope"),
    "--rope-type": ("rope", "yarn", None),
    "--normalization": ("RMSNorm", "LayerNorm"),
    "--lr": ("1e-7", "1e-4"),
    "--min-lr": ("1e-3", "1e-9"),
    "--save-interval": (0, 10, None),
    "--log-memory-to-tensorboard": ((), None),
    "--weight-decay-incr-style": ("constant", "linear", "cosine"),
    "--train-samples": (1000, None),
    "--lr-warmup-fraction": ("0.01",),
    "--ckpt-format": ("torch", "torch_dist", "torch_dcp", "fsdp_dtensor", "zarr"),
    "--optimizer": ("adam", "sgd", "muon"),
    "--cross-entropy-fusion-impl": ("native", "te"),
    "--transformer-impl": ("transformer_engine", "local"),
    "--attention-backend": ("flash", "fused", "auto", "unfused"),
    "--cp-comm-type": ("p2p", "a2a", "allgather", "a2a+p2p"),
    "--moe-shared-expert-overlap": ((),),
    "--moe-router-enable-expert-bias": ((), None),
    "--moe-grouped-gemm": ((), None),
    "--moe-permute-fusion": ((), None),
    "--moe-router-fusion": ((), None),
    "--moe-router-dtype": ("fp32", "fp64", None),
    "--moe-latent-size": (0, -1),
    "--sequence-parallel": ((), None),
    "--use-distributed-optimizer": ((), None, None),
    "--overlap-grad-reduce": ((), None, None),
    "--overlap-param-gather": ((), None),
    "--overlap-param-gather-with-optimizer-step": ((),),
    "--tp-comm-overlap": ((), None),
    "--group-query-attention": ((), None),
    "--multi-latent-attention": ((), None),
    "--q-lora-rank": (512, 1536, None),
    "--qk-layernorm": ((), None),
    "--swiglu": ((), None),
    "--disable-bias-linear": ((), None),
    "--add-qkv-bias": ((),),
    "--untie-embeddings-and-output-weights": ((), None),
    "--bf16": ((), None),
    "--fp16": ((),),
    "--fp32-residual-connection": ((),),
    "--grad-reduce-in-bf16": ((),),
    "--accumulate-allreduce-grads-in-fp32": ((),),
    "--mock-data": ((), None),
    "--data-path": ("/data/corpus",),
    "--split": ("99,1,0", None),
    "--use-megatron-fsdp": ((),),
    "--use-torch-fsdp2": ((),),
    "--disable-gloo-process-groups": ((),),
    "--use-tp-pp-dp-mapping": ((),),
    "--no-rope-fusion": ((),),
    "--rotary-interleaved": ((),),
    "--attention-output-gate": ((),),
    "--calculate-per-token-loss": ((),),
    "--defer-embedding-wgrad-compute": ((),),
    "--no-gradient-accumulation-fusion": ((),),
    "--no-overlap-p2p-communication": ((),),
    "--distribute-saved-activations": ((),),
    "--cpu-offloading-num-layers": (1,),
    "--microbatch-group-size-per-virtual-pipeline-stage": (1, 2, 4, 8, 16),
    "--attention-dropout": ("0.0", "0.1"),
    "--hidden-dropout": ("0.0", "0.1"),
    "--eval-micro-batch-size": (1, 3),
    "--eval-global-batch-size": (64, 100),
    "--decrease-batch-size-if-needed": ((),),
    "--num-distributed-optimizer-instances": (1, 2, 3),
    "--first-last-layers-bf16": ((),),
    "--async-save": ((),),
    "--moe-use-upcycling": ((),),
    "--moe-enable-deepep": ((),),
    "--moe-router-topk-limited-devices": (2,),
    "--moe-input-jitter-eps": ("0.01",),
    "--squared-relu": ((),),
    "--quick-geglu": ((),),
    "--qk-clip": ((),),
    "--log-max-attention-logit": ((),),
    "--window-size": ("1024,0",),
    "--use-rotary-position-embeddings": ((),),
    "--no-position-embedding": ((),),
    "--standalone-embedding-stage": ((),),
    "--deterministic-mode": ((),),
    "--load": ("/checkpoints",),
    "--no-persist-layer-norm": ((),),
    "--delay-wgrad-compute": ((),),
    "--te-rng-tracker": ((),),
    "--nccl-ub": ((),),
    "--ddp-num-buckets": (8, 0),
    "--ddp-bucket-size": (40000000,),
    "--rotary-percent": ("0.5", "1.0"),
    "--linear-num-key-heads": (16, 8, 12),
    "--linear-num-value-heads": (32, 16, 24),
    "--linear-attention-freq": (4, "([1]*3+[0]*1)*12", None),
    "--experimental-attention-variant": ("gated_delta_net", None),
    "--moe-single-grouped-weight": ((),),
    "--mla-down-proj-fusion": ((),),
}
# Valid whatever else is there, so that draws are not mostly broken.
HARMLESS: Mapping[str, tuple[object, ...]] = {
    "--seed": (1, 1234),
    "--log-interval": (1, 10),
    "--lr": ("1e-4", "3e-4"),
    "--min-lr": ("1e-8",),
    "--clip-grad": ("0.5", "1.0"),
    "--adam-beta2": ("0.95", "0.999"),
    "--num-workers": (0, 2, 8),
    "--moe-aux-loss-coeff": ("1e-2", "1e-4"),
    "--init-method-std": ("0.006", "0.02"),
    "--eval-iters": (0, 8),
    "--save-interval": (50, 1000),
    "--ckpt-format": ("torch_dist",),
    "--exit-duration-in-mins": (30, 120),
    "--mtp-loss-scaling-factor": ("0.3",),
    "--moe-router-force-load-balancing": ((),),
    "--recompute-activations": ((),),
    "--log-params-norm": ((), None),
    "--manual-gc-interval": (10, 100),
    "--norm-epsilon": ("1e-5", "1e-6"),
    "--attention-backend": ("flash", "auto"),
    "--check-weight-hash-across-dp-replicas-interval": (100,),
    "--timing-log-level": (0, 2),
}


def _value(rng: random.Random, job: Job) -> None:
    """One flag with another natural value, or without."""
    _choose(rng, job, VALUES)


def _harmless(rng: random.Random, job: Job) -> None:
    """Something that is valid whatever else is there."""
    _choose(rng, job, HARMLESS)


def _choose(rng: random.Random, job: Job, table: Mapping[str, tuple[object, ...]]) -> None:
    flag = rng.choice(list(table))
    value = rng.choice(table[flag])
    if value is None:
        job.drop(flag)
    elif value == ():
        job.set(flag)
    else:
        job.set(flag, value)
    job.changed.append(flag)


# Of these a draw would need a file, another library or another kind of training.
ELSEWHERE = re.compile(
    r"path|file|dir|url|name|config|load|retro|vision|dino|biencoder|ict|yaml|inference|^--rl-|grpo|langrl"
    r"|mamba|hybrid|export|kd|heterogeneous|fim|tokenizer|kitchen|straggler|wandb|one-logger|ckpt-conv"
    r"|energy|world-size|rank$|replication|non-persistent|perform-rl|spec|flight|dsa|engram|mup|muon"
)


def _any(rng: random.Random, job: Job) -> None:
    """Any flag of the release, with whatever its parser takes."""
    catalogue = flags.load(RELEASE)
    flag = rng.choice([each for each in sorted(catalogue.entries) if not ELSEWHERE.search(each)])
    known = catalogue.get(flag)
    if known.switch is not None:
        job.set(flag)
    elif known.choices:
        job.set(flag, rng.choice(known.choices))
    elif known.type in ("int", "float"):
        job.set(flag, rng.choice([1, 2, 4, 16] if known.type == "int" else ["0.0", "0.1", "1.0"]))
    job.changed.append(flag)


def _typing(rng: random.Random, job: Job) -> None:
    """A slip of the keyboard: an unknown flag, a wrong type or choice, a value too few or many."""
    kind = rng.randrange(7)
    flag = rng.choice(list(job.flags))
    if kind == 0:
        at = rng.randrange(3, len(flag))
        job.set(flag[:at] + rng.choice("aeiou-x") + flag[at + 1 :], *job.flags.pop(flag))
    elif kind == 1:
        job.set(flag, *job.flags[flag], rng.choice(["1", "yes", "x"]))
    elif kind == 2:
        job.set(flag)
    elif kind == 3:
        job.set(
            rng.choice(["--num-layers", "--seq-length", "--lr"]),
            rng.choice(["4k", "1e3", "", "8,"]),
        )
    elif kind == 4:
        job.set(rng.choice(["--moe-token-dispatcher-type", "--fp8-recipe", "--lr-decay-style", "--optimizer",
                            "--recompute-granularity", "--ckpt-format"]), rng.choice(["a2a", "mx", "Adam"]))  # fmt: skip
    elif kind == 5:
        job.set(
            rng.choice(["--moe-layer-freq", "--linear-attention-freq"]),
            rng.choice(["[1]*", "(1)", "0.5", "[0]*3+[1]*x"]),
        )
    else:
        job.set(rng.choice(["--batch-size", "--warmup", "--model-parallel-size", "--num-expert", "--recompute",
                            "--tp-size", "--use-flash-attn"]), rng.choice(["1", "2"]))  # fmt: skip


def _world(rng: random.Random, job: Job) -> None:
    """Another number of GPUs."""
    job.world_size = rng.choice(
        [job.world_size * 2, job.world_size // 2 or 1, job.world_size + 8, 8, 96, 192]
    )


VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NCCL_GRAPH_REGISTER",
    "NVTE_CPU_OFFLOAD_V1",
    "PYTORCH_CUDA_ALLOC_CONF",
    "NVTE_FUSED_ATTN",
    "NVTE_FLASH_ATTN",
    "NCCL_ALGO",
    "CUBLAS_WORKSPACE_CONFIG",
)
SETTINGS = {
    "PYTORCH_CUDA_ALLOC_CONF": ("expandable_segments:True",),
    "NCCL_ALGO": ("Ring", "Tree"),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8",),
}


def _environment(rng: random.Random, job: Job) -> None:
    """An environment variable that Megatron reads, otherwise or absent."""
    name = rng.choice(VARIABLES)
    values = SETTINGS.get(name, ("0", "1", "8", "32"))
    if rng.random() < 0.3:
        job.environment.pop(name, None)
    else:
        job.environment[name] = rng.choice(values)


def _gpu(rng: random.Random, job: Job) -> None:
    """Another GPU."""
    job.gpu = rng.choice(DRAWN_GPUS)


Mutation = Callable[[random.Random, Job], None]
TENDING_VALID: Mapping[Mutation, int] = {
    _sizes: 4, _pipeline: 3, _batch: 3, _recompute: 2, _dispatcher: 2, _precision: 2,
    _optimizer: 1, _graphs: 1, _overlap: 1, _harmless: 6, _gpu: 1, _depth: 1, _schedule: 1,
}  # fmt: skip
TENDING_BROKEN: Mapping[Mutation, int] = {
    _value: 16, _layout: 3, _counts: 2, _typing: 2, _world: 1, _environment: 2, _router: 2,
    _offload: 1, _graphs: 1, _overlap: 1, _recompute: 1, _precision: 1, _optimizer: 1,
    _depth: 1, _schedule: 1, _sizes: 1, _gpu: 1, _any: 3,
}  # fmt: skip


def draw(start: Mapping[str, Job], seed: int, number: int) -> Job:
    """Return draw `number` of a seed."""
    rng = random.Random(f"{seed}-{number}")
    base = start[rng.choice(sorted(start))]
    job = Job(
        base.base, {flag: list(values) for flag, values in base.flags.items()}, base.world_size,
        dict(base.environment), base.gpu, base.tasks_per_node,
    )  # fmt: skip
    table = TENDING_VALID if rng.random() < 0.5 else TENDING_BROKEN
    for _ in range(rng.choice([1, 1, 2, 3])):
        (mutation,) = rng.choices(list(table), list(table.values()))
        job.changed.append(mutation.__name__[1:])
        mutation(rng, job)
    return job


# --- asking both ----------------------------------------------------------------------------------


LATER = frozenset(map(name_of, RUN_TIME))


def ours(job: Job) -> tuple[list[str], list[str]]:
    """Return the plan's errors: those at the start, and those that Megatron meets later."""
    environment = {name: (text, "drawn") for name, text in job.environment.items()}
    # As argparse would read the words, whatever shape they have.
    case = Case(
        arguments=parse(job.argv, "drawn"),
        world_size=job.world_size,
        release=RELEASE,
        environment=environment,
        gpu=job.gpu,
        tasks_per_node=job.tasks_per_node,
    )
    errors = [one for one in plan(case).findings if one.severity == "error"]
    start = [f"{one.rule}: {one.message}" for one in errors if one.rule not in LATER]
    return start, [f"{one.rule}: {one.message}" for one in errors if one.rule in LATER]


def verdicts(jobs: Mapping[str, Job], build: str = "ends") -> Iterator[dict[str, Any]]:
    """Let Megatron judge jobs by name; yield its verdicts as they come."""
    # Some drawn flags write files where the judge runs.
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        [sys.executable, str(JUDGE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, cwd=folder,
    ) as judge:  # fmt: skip
        for name, job in jobs.items():
            request = {
                "name": name, "argv": job.argv, "world_size": job.world_size, "build": build,
                "environment": job.environment, "compute_capability": GPUS[job.gpu].capability,
            }  # fmt: skip
            judge.stdin.write(json.dumps(request) + "\n")
        judge.stdin.close()
        yield from map(json.loads, judge.stdout)
    if judge.returncode:
        raise RuntimeError(f"the judge ended with status {judge.returncode}")


def changes(job: Job, base: Job) -> dict[str, Any]:
    """Return what makes a job out of its base."""
    return {
        "base": job.base,
        "changed": job.changed,
        "set": {flag: words for flag, words in job.flags.items() if base.flags.get(flag) != words},
        "unset": [flag for flag in base.flags if flag not in job.flags],
        "world_size": job.world_size,
        "environment": {
            name: job.environment.get(name)
            for name in sorted(job.environment.keys() | base.environment.keys())
            if job.environment.get(name) != base.environment.get(name)
        },
        "gpu": job.gpu,
    }


def rebuild(record: Mapping[str, Any], start: Mapping[str, Job]) -> Job:
    """Return the job of a stored draw."""
    base = start[record["base"]]
    flags = {flag: words for flag, words in base.flags.items() if flag not in record["unset"]}
    environment = {**base.environment, **record["environment"]}
    return Job(
        base.base, {**flags, **record["set"]}, record["world_size"],
        {name: text for name, text in environment.items() if text is not None},
        record["gpu"], base.tasks_per_node, record["changed"],
    )  # fmt: skip


def load(path: Path) -> tuple[dict[str, Job], dict[str, dict[str, Any]]]:
    """Return the bases of a file and its draws by name."""
    start, records = {}, {}
    text = path.read_bytes()
    text = gzip.decompress(text) if path.suffix == ".gz" else text
    for line in text.splitlines():
        entry = json.loads(line)
        if "flags" in entry:
            start[entry["base"]] = Job(**entry)
        else:
            records[entry["name"]] = entry
    return start, records


def judge(seed: int, count: int, path: Path) -> None:
    """Draw, ask Megatron, and append to the file what is not there yet."""
    start = load(path)[0] if path.exists() else bases()
    record(start, {f"{seed}-{i}": draw(start, seed, i) for i in range(count)}, path)


def record(
    start: Mapping[str, Job], jobs: Mapping[str, Job], path: Path, build: str = "ends"
) -> None:
    """Ask Megatron about jobs, and append to the file what is not there yet."""
    done = load(path)[1] if path.exists() else {}
    if not path.exists():
        with path.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(asdict(base)) + "\n" for base in start.values())
    left = {name: job for name, job in jobs.items() if name not in done}
    began, accepted = time.monotonic(), 0
    with path.open("a", encoding="utf-8") as out:
        for number, verdict in enumerate(verdicts(left, build), 1):
            name = verdict["name"]
            said = {key: verdict[key] for key in ("accepted", "refused_by")}
            message = verdict["message"][:160]
            made = {"name": name, **changes(jobs[name], start[jobs[name].base]), **said}
            out.write(json.dumps({**made, "message": message}) + "\n")
            out.flush()
            accepted += verdict["accepted"]
            rate = (time.monotonic() - began) / number
            print(
                f"\r{number}/{len(left)} judged, {accepted / number:.0%} accepted, {rate:.2f} s each",
                end="", file=sys.stderr,
            )  # fmt: skip
    print(file=sys.stderr)


@dataclass(frozen=True)
class Compared:
    """A stored draw and the plan's word on it."""

    record: Mapping[str, Any]
    errors: list[str]  # for which Megatron would not start
    later: list[str]  # which Megatron meets only in a step

    @property
    def agrees(self) -> bool:
        """Whether both say the same of the start; a refusal may be one that we name later."""
        if self.record["accepted"]:
            return not self.errors
        return bool(self.errors or self.later)

    @property
    def refused_later(self) -> list[str]:
        """The rules for which the plan alone refuses a job that Megatron starts."""
        if not self.record["accepted"] or self.errors:
            return []
        return [error.split(":")[0] for error in self.later]


def compare(start: Mapping[str, Job], records: Iterable[Mapping[str, Any]]) -> list[Compared]:
    """Ask the plan about stored draws. What Megatron could not judge is left out."""
    return [
        Compared(record, *ours(rebuild(record, start)))
        for record in records
        if record["accepted"] or record["refused_by"]
    ]


def report(path: Path) -> None:
    """Print how often both agree, and each disagreement."""
    start, records = load(path)
    compared = compare(start, records.values())
    differ = [one for one in compared if not one.agrees]
    for one in differ:
        record = one.record
        said = f"{record['refused_by']}: {record['message']}" if record["refused_by"] else "accepts"
        print(f"{record['name']} {record['base']} {record['changed']}\n   Megatron {said}")
        print(f"   ours {'; '.join(one.errors) or 'accepts'}")
    taken = sum(one.record["accepted"] for one in compared)
    stages = Counter(one.record["refused_by"] for one in compared if one.record["refused_by"])
    later = Counter(rule for one in compared for rule in one.refused_later)
    unjudged = len(records) - len(compared)
    print(f"{len(compared)} judged ({unjudged} could not be), {taken} accepted, {dict(stages)}")
    print(f"refused by the plan alone, for what Megatron meets later: {dict(later)}")
    print(f"agreement {1 - len(differ) / len(compared):.2%}, {len(differ)} disagreements")


if __name__ == "__main__":
    if sys.argv[1:2] == ["judge"] and len(sys.argv) == 5:
        judge(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["report"] and len(sys.argv) == 3:
        report(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
