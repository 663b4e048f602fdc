"""The expected speed of a job: its projection, corrected by measurements of similar jobs.

An exact measurement counts as it is. The nearest one of the same model and GPU corrects the
projection by the factor between measurement and projection there. The correction is weaker, the
less alike the two jobs are.
A figure of another model or another GPU corrects nothing: on held-out rows it does harm.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.config.arguments import Arguments
from launcher.plan import flops, published, shape, stages
from launcher.plan.projection import execution
from launcher.plan.projection.calibration import Calibration
from launcher.plan.projection.constants import GPUS, Constants
from launcher.plan.projection.execution import Execution
from launcher.plan.projection.projection import Projection, project, replaced
from launcher.plan.published import Result
from launcher.plan.shape import Shape
from launcher.plan.stages import Stage
from launcher.records import dataclass

BANDS = Path(__file__).parent / "bands.json"
EXACT = 0.05  # a smaller distance is the same configuration
FARTHEST = 10.0  # a larger one says nothing of a job


@dataclass(frozen=True)
class Expectation:
    """The expected speed of a job."""

    projection: Projection  # anchored
    low: float  # seconds of a step; the band holds 80 % of held-out rows
    high: float
    kind: str  # "exact", "near" or "alone"
    factor: float  # by which the anchor changed the seconds
    anchor: Result | None
    warnings: tuple[str, ...]

    @property
    def tflops(self) -> tuple[float, float]:
        """Model TFLOPS of a GPU at the ends of the band, the lower first."""
        operations = self.projection.tflops * self.projection.seconds
        return operations / self.high, operations / self.low


def expect(
    one: Shape,
    split: Sequence[Stage],
    how: Execution,
    gpu: str,
    model: str | None,
    arguments: Arguments,
    known: Calibration,
) -> Expectation:
    """Return the expected speed of a job. Raises ValueError where it cannot be projected."""
    constants = known.constants
    alone = project(one, split, how, gpu, constants)
    found = published.nearest(model, gpu, one, how, known.runs)
    kind, factor = "alone", 1.0
    if found is not None and found.distance < FARTHEST:
        kind = "exact" if found.distance < EXACT else "near"
        off = correction(found.settings, arguments, constants)
        factor = off ** weight(found.distance)
    band = bands()[kind]
    if found is not None and kind == "alone":
        found = None
    there = replaced(alone, factor)
    return Expectation(
        projection=there,
        low=there.seconds / band,
        high=there.seconds * band,
        kind=kind,
        factor=factor,
        anchor=found,
        warnings=tuple(warnings(one, how, gpu)),
    )


def weight(distance: float) -> float:
    """Return the weight of a measurement's correction at a distance."""
    return math.exp(-distance / bands()["reach"])


@functools.cache
def bands() -> Mapping[str, float]:
    """Return the factors that 80 % of held-out rows are within, by kind of expectation.

    `reach` is the distance at which an anchor's correction has faded to 1/e. All are fitted.
    """
    return json.loads(BANDS.read_text(encoding="utf-8"))


def correction(
    row: Mapping[str, str], arguments: Arguments, constants: Constants | None = None
) -> float:
    """Return measured over projected seconds of a published row; `arguments` have its model."""
    given = published.arguments(row, arguments)
    read = shape.read(given, int(row["gpus"]))
    how = execution.read(
        given, published.environment(row), float(row["released"]), "bound" in row["also"].split("+")
    )
    there = project(read, stages.split(read), how, row["gpu"], constants)
    if row["seconds"]:
        return float(row["seconds"]) / there.seconds
    measured = flops.iteration(read) / read.parallel.world / float(row["tflops"]) / 1e12
    return measured / there.seconds


def warnings(one: Shape, how: Execution, gpu: str) -> list[str]:
    """Return a line for each setting that no fitted measurement has."""
    parallel, training, experts = one.parallel, one.training, one.model.experts
    found = []
    ranks = parallel.expert * parallel.expert_tensor
    if experts and ranks > GPUS[gpu].nvlink_domain:
        if training.dispatcher == "alltoall" and experts.top_k > 8:
            found.append(
                f"all-to-all with top-{experts.top_k} over the network: no measurement is like it"
            )
        if training.dispatcher == "allgather":
            found.append("all-gather dispatch over the network: no measurement is like it")
    if experts is None:
        found.append("a dense model: the constants were fitted to mixtures of experts")
    if one.model.linear_attention is not None:
        found.append("linear attention: one measurement, which its authors call not well tuned")
    if training.offloaded or training.states_offloaded:
        found.append("an offloaded optimizer: no measurement is like it")
    if training.activations_offloaded:
        found.append("offloaded activations are taken to travel behind the computation")
    if parallel.expert_tensor > 1:
        found.append("expert tensor parallelism: no measurement is like it")
    if parallel.context > 8:
        found.append(f"CP{parallel.context}: measurements end at CP8")
    if parallel.tensor > 8:
        found.append(f"TP{parallel.tensor}: measurements end at TP8")
    if parallel.world > 8192:
        found.append(f"{parallel.world} GPUs: measurements end at 8192")
    if training.fp8 not in (None, "mxfp8", "blockwise", "tensorwise"):
        found.append(f"FP8 recipe {training.fp8}: no measurement is like it")
    if training.weight_bytes == 4:
        found.append("FP32 training: the plan takes its products for BF16")
    return found
