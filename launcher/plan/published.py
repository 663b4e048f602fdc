"""What was published of the same model on the same GPU: what a job can be expected to reach.

published.csv has a line for each published configuration, the fastest where several software
versions ran it: TFLOPS/GPU are model FLOPs as its source counts them, `source` names the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.config.arguments import Arguments, merge, parse
from launcher.plan.shape import Shape

DATA = Path(__file__).parent / "published.csv"
SIZES = ("gpus", "tp", "pp", "vpp", "ep", "cp", "mbs", "gbs")
# What a difference is worth when the nearest is sought; of sizes, for each factor of two.
PRECISION, ROUTING, SEQUENCE, SIZE = 8.0, 2.0, 2.0, 1.0


@dataclass(frozen=True)
class Result:
    """One published measurement, and in what the job asked about differs from it."""

    settings: dict[str, str]  # the columns of published.csv
    differences: tuple[str, ...]  # 'GBS 8192 instead of 2048'

    @property
    def tflops(self) -> float:
        """Model TFLOPS of one GPU."""
        return float(self.settings["tflops"])

    @property
    def sizes(self) -> str:
        """The configuration in a few words."""
        row = self.settings
        words = " ".join(f"{name.upper()}{row[name]}" for name in SIZES[1:])
        return f"{row['gpus']} {row['gpu']}, {row['precision']}, {words}"


def nearest(model: str, gpu: str | None, shape: Shape) -> Result | None:
    """Return the published result most like a job; None where none is of its model and GPU."""
    job = _describe(shape)
    found = [row for row in _rows() if row["model"] == model and row["gpu"] == gpu]
    if not found:
        return None
    row = min(found, key=lambda row: (_distance(row, job), -float(row["tflops"])))
    return Result(row, tuple(_differences(row, job)))


def _rows() -> Iterator[dict[str, str]]:
    with DATA.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _describe(shape: Shape) -> dict[str, str]:
    """Return a job in the words of the table's columns."""
    parallel, training, experts = shape.parallel, shape.training, shape.model.experts
    precision = "bf16"
    if training.fp8:
        precision = "mxfp8" if training.fp8 == "mxfp8" else "fp8"
    routing = "dropless"
    if experts and experts.capacity_factor:
        routing = "dropped tokens"
    elif experts and experts.balanced:
        routing = "forced balance"
    sizes = {
        "gpus": parallel.world,
        "tp": parallel.tensor,
        "pp": parallel.pipeline,
        "vpp": parallel.virtual,
        "ep": parallel.expert,
        "cp": parallel.context,
        "mbs": training.micro_batch,
        "gbs": training.global_batch,
        "sequence": training.sequence,
    }
    return {
        "precision": precision,
        "routing": routing,
        **{name: str(size) for name, size in sizes.items()},
    }


def _distance(row: dict[str, str], job: dict[str, str]) -> float:
    def factors(name: str) -> float:
        return abs(math.log2(int(row[name]) / int(job[name])))

    return (
        PRECISION * (row["precision"] != job["precision"])
        + ROUTING * (row["routing"] != job["routing"])
        + SEQUENCE * factors("sequence")
        + SIZE * sum(map(factors, SIZES))
    )


def _differences(row: dict[str, str], job: dict[str, str]) -> Iterator[str]:
    for name in ("precision", "routing", "sequence", *SIZES):
        if row[name] and row[name] != job[name]:
            word = name.upper() if name in SIZES[1:] else name
            yield f"{word} {job[name]} instead of {row[name]}"


# What a published row settles, so that another job's own answer to it goes away.
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
    words += ["--use-distributed-optimizer", "--sequence-parallel", "--use-precision-aware-optimizer"]
    words += ["--bf16", "--exp-avg-dtype", "bf16", "--exp-avg-sq-dtype", "bf16"]
    if row["layout"]:
        words += ["--pipeline-model-parallel-layout", row["layout"]]
    elif int(row["vpp"]) > 1:
        words += ["--num-virtual-stages-per-pipeline-rank", row["vpp"]]
    if int(row["mtp"]):
        words += ["--mtp-num-layers", row["mtp"]]
    if row["precision"] != "bf16":
        kind = row["precision"]
        words += ["--fp8-format", "hybrid" if kind == "tensorwise" else "e4m3", "--fp8-recipe", kind]
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
    if row["recompute"] == "full":
        words += ["--recompute-granularity", "full", "--recompute-method", "uniform"]
        words += ["--recompute-num-layers", "1"]
    elif row["recompute"]:
        words += ["--recompute-granularity", "selective", "--recompute-modules"]
        words += row["recompute"].split("+")
    if row["graphs"] == "full_iteration":
        words += ["--cuda-graph-impl", "full_iteration"]
    elif row["graphs"]:
        words += ["--cuda-graph-impl", "transformer_engine", "--cuda-graph-modules"]
        words += row["graphs"].split("+")
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
