"""Published results of the same model on the same GPU, which a job can be compared with.

published.csv has a line for each published measurement, with the settings that decide:

    recompute, graphs   modules joined by +; full; full_iteration
    overlap, fused      expert communication behind computation; experts in one fused kernel
    also                what no argument says: a fusion that was missing, processes bound to nodes
    known               1: the source or the preset of its release states these settings; else
                        they are those of the most similar preset
    seconds, tflops     of a step; model TFLOPS/GPU as the source counts them. One may be empty;
                        rows of the zoo's models have TFLOPS
    released            year of the software

Settings of Megatron-Bridge's rows come from scripts/performance/configs at the tag of their release
(https://github.com/NVIDIA-NeMo/Megatron-Bridge), those of Megatron-LM's from examples/moe_recipes
and from the documents that `source` names.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launcher.config.arguments import Arguments, merge, parse
from launcher.plan.projection.execution import Execution
from launcher.plan.shape import Shape
from launcher.records import dataclass

DATA = Path(__file__).parent / "published.csv"
SIZES = ("gpus", "tp", "pp", "vpp", "ep", "etp", "cp", "mbs", "gbs")
WORDS = ("precision", "routing", "dispatcher", "graphs", "overlap", "recompute", "fused", "mtp")
SWITCH = {"0": "off", "1": "on"}
# The weight of a difference in the search for the nearest; of numbers, for each factor of two.
WEIGHT = {
    "layers": 20.0,
    "precision": 8.0,
    "dispatcher": 3.0,
    "routing": 2.0,
    "graphs": 2.0,
    "overlap": 1.5,
    "recompute": 1.0,
    "fused": 1.0,
    "mtp": 1.0,
    "sequence": 2.0,
    "gbs": 0.3,
}


@dataclass(frozen=True)
class Result:
    """One published measurement, and its differences from the job."""

    settings: dict[str, str]  # the columns of published.csv
    differences: tuple[str, ...]  # 'GBS 8192 instead of 2048'
    distance: float

    @property
    def tflops(self) -> float:
        """Model TFLOPS of one GPU."""
        return float(self.settings["tflops"])

    @property
    def sizes(self) -> str:
        """The configuration in a few words."""
        row = self.settings
        sizes = [name for name in SIZES[1:] if name != "etp" or row[name] != "1"]
        words = " ".join(f"{name.upper()}{row[name]}" for name in sizes)
        return f"{row['gpus']} {row['gpu']}, {row['precision']}, {words}"


def nearest(
    model: str | None,
    gpu: str | None,
    shape: Shape,
    execution: Execution,
    runs: Sequence[Mapping[str, str]] = (),
) -> Result | None:
    """Return the measurement most like a job; None where none is of its model and GPU.

    `runs` are the user's own, with the same columns; of equally near ones theirs come first, then
    the latest: software gets faster.
    """
    found = [row for row in (*runs, *_rows()) if row["model"] == model and row["gpu"] == gpu]
    if not found:
        return None
    job = describe(shape, execution)
    row = min(found, key=lambda row: (distance(row, job), row in _rows(), -float(row["released"])))
    return Result(dict(row), tuple(_differences(row, job)), distance(row, job))


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    with DATA.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def describe(shape: Shape, execution: Execution) -> dict[str, str]:
    """Return a job in the words of the table's columns."""
    parallel, training, experts = shape.parallel, shape.training, shape.model.experts
    routing = "dropless"
    if experts and experts.capacity_factor:
        routing = "dropped tokens"
    elif experts and experts.balanced:
        routing = "forced balance"
    graphs = "+".join(sorted(execution.graph_modules))
    if execution.graphs == "modules" and not graphs:
        graphs = "layer"
    sizes = {
        "layers": shape.model.layers,
        "gpus": parallel.world,
        "tp": parallel.tensor,
        "pp": parallel.pipeline,
        "vpp": parallel.virtual,
        "ep": parallel.expert,
        "etp": parallel.expert_tensor,
        "cp": parallel.context,
        "mbs": training.micro_batch,
        "gbs": training.global_batch,
        "sequence": training.sequence,
        "mtp": shape.model.mtp,
        "overlap": int(training.overlap_experts),
        "fused": int(execution.fused_experts),
    }
    return {
        "precision": training.fp8 or execution.precision,
        "routing": routing,
        "dispatcher": training.dispatcher,
        "recompute": "full"
        if training.recompute == "full"
        else "+".join(sorted(training.recompute_modules)),
        "graphs": "full_iteration" if execution.graphs == "full" else graphs,
        **{name: str(size) for name, size in sizes.items()},
    }


def row(model: str, gpu: str, shape: Shape, execution: Execution) -> dict[str, str]:
    """Return a job as a row of the table, but for what was measured of it and where."""
    also = [
        word
        for word, holds in (
            ("bound", execution.bound),
            ("no-router-fusion", not execution.fused_router),
            ("no-permute-fusion", not execution.fused_permute),
        )
        if holds
    ]
    return {
        "model": model,
        "gpu": gpu,
        **describe(shape, execution),
        "layout": shape.split.layout or "",
        "fp8_attention": str(int(execution.fp8_attention)),
        "also": "+".join(also),
        "known": "1",
        "released": f"{execution.released:.2f}",
    }


def distance(row: Mapping[str, str], job: Mapping[str, str]) -> float:
    """Return how unlike a row and a job are: 0 for the same settings."""
    total = 0.0
    for name in WORDS:
        if name in ("recompute", "graphs"):
            one, other = set(row[name].split("+")), set(job[name].split("+"))
            total += WEIGHT[name] * len((one ^ other) - {""}) / 2
        elif row[name] and row[name] != job[name]:
            total += WEIGHT[name]
    for name in ("layers", "sequence", *SIZES):
        total += WEIGHT.get(name, 1.0) * abs(math.log2(int(row[name]) / int(job[name])))
    return total


def _differences(row: Mapping[str, str], job: Mapping[str, str]) -> Iterator[str]:
    for name in ("layers", *WORDS, "sequence", *SIZES):
        one, other = set(row[name].split("+")), set(job[name].split("+"))
        if one != other and (row[name] or name in ("recompute", "graphs")):
            word = name.upper() if name in SIZES[1:] or name == "mtp" else name
            ours, theirs = (
                SWITCH.get(each[name], "") if name in ("overlap", "fused") else each[name]
                for each in (job, row)
            )
            yield f"{word} {ours or 'none'} instead of {theirs or 'none'}"


# Settings that a published row decides, and that replace those of the base model.
_SETTLED = (
    "--recompute-granularity",
    "--recompute-modules",
    "--recompute-method",
    "--recompute-num-layers",
    "--recompute-activations",
    "--cuda-graph-impl",
    "--cuda-graph-modules",
    "--cuda-graph-scope",
    "--enable-cuda-graph",
    "--external-cuda-graph",
    "--overlap-moe-expert-parallel-comm",
    "--delay-wgrad-compute",
    "--fp8-format",
    "--fp8-recipe",
    "--fp8-param-gather",
    "--tp-comm-overlap",
    "--grad-reduce-in-bf16",
    "--moe-router-force-load-balancing",
    "--moe-expert-capacity-factor",
    "--moe-pad-expert-input-to-capacity",
    "--use-transformer-engine-op-fuser",
    "--optimizer-cpu-offload",
    "--offload-optimizer-states",
    "--fine-grained-activation-offloading",
    "--pipeline-model-parallel-layout",
    "--num-virtual-stages-per-pipeline-rank",
    "--num-layers-per-virtual-pipeline-stage",
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
    "--microbatch-group-size-per-virtual-pipeline-stage",
    "--mtp-num-layers",
    "--moe-router-fusion",
    "--moe-permute-fusion",
)


def arguments(row: Mapping[str, str], base: Arguments) -> Arguments:
    """Return the Megatron arguments of a published row; `base` has those of its model."""
    kept = {flag: one for flag, one in base.items() if flag not in _SETTLED}
    return merge(kept, parse(_words(row), "published"))


def environment(row: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a published row was run with, as far as they count."""
    return {"NVTE_CUTEDSL_FUSED_GROUPED_MLP": "1"} if row["fused"] == "1" else {}


def _words(row: Mapping[str, str]) -> list[str]:
    words = [word for flag, name in _FLAGS.items() for word in (flag, row[name])]
    words += ["--moe-grouped-gemm", "--overlap-grad-reduce", "--overlap-param-gather"]
    words += [
        "--use-distributed-optimizer",
        "--sequence-parallel",
        "--use-precision-aware-optimizer",
    ]
    words += ["--bf16", "--exp-avg-dtype", "bf16", "--exp-avg-sq-dtype", "bf16"]
    if row["layout"]:
        words += ["--pipeline-model-parallel-layout", row["layout"]]
    elif int(row["vpp"]) > 1:
        words += ["--num-virtual-stages-per-pipeline-rank", row["vpp"]]
    if int(row["mtp"]):
        words += ["--mtp-num-layers", row["mtp"]]
    if row["precision"] not in ("bf16", "fp16", "fp32"):
        kind = row["precision"]
        words += [
            "--fp8-format",
            "hybrid" if kind == "tensorwise" else "e4m3",
            "--fp8-recipe",
            kind,
        ]
        words += ["--fp8-param-gather"]
    if row["dispatcher"] in ("deepep", "hybridep"):
        words += ["--moe-token-dispatcher-type", "flex"]
        words += ["--moe-flex-dispatcher-backend", row["dispatcher"]]
    else:
        words += ["--moe-token-dispatcher-type", "alltoall"]
    if row["routing"] == "forced balance":
        words += ["--moe-router-force-load-balancing"]
    elif row["routing"] == "dropped tokens":
        words += ["--moe-expert-capacity-factor", "1.0", "--moe-pad-expert-input-to-capacity"]
    words += [*_recompute(row["recompute"]), *_graphs(row["graphs"])]
    if row["overlap"] == "1":
        words += ["--overlap-moe-expert-parallel-comm", "--delay-wgrad-compute"]
    if row["fused"] == "1":
        words += ["--use-transformer-engine-op-fuser"]
    if row["fp8_attention"] == "1":
        words += ["--fp8-dot-product-attention"]
    also = row["also"].split("+")
    words += [] if "no-router-fusion" in also else ["--moe-router-fusion"]
    words += [] if "no-permute-fusion" in also else ["--moe-permute-fusion"]
    # Megatron-Bridge and NeMo reduce gradients in BF16; Megatron-LM's own recipes in FP32.
    if "Bridge" in row["software"] or "NeMo" in row["software"]:
        words += ["--grad-reduce-in-bf16"]
    return words


def _recompute(modules: str) -> list[str]:
    if modules == "full":
        words = ["--recompute-granularity", "full", "--recompute-method", "uniform"]
        return [*words, "--recompute-num-layers", "1"]
    if not modules:
        return []
    return ["--recompute-granularity", "selective", "--recompute-modules", *modules.split("+")]


def _graphs(modules: str) -> list[str]:
    if modules == "full_iteration":
        return ["--cuda-graph-impl", "full_iteration"]
    if not modules:
        return []
    return ["--cuda-graph-impl", "transformer_engine", "--cuda-graph-modules", *modules.split("+")]


_FLAGS = {
    "--seq-length": "sequence",
    "--tensor-model-parallel-size": "tp",
    "--pipeline-model-parallel-size": "pp",
    "--expert-model-parallel-size": "ep",
    "--expert-tensor-parallel-size": "etp",
    "--context-parallel-size": "cp",
    "--micro-batch-size": "mbs",
    "--global-batch-size": "gbs",
}
