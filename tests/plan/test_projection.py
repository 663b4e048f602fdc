"""The projection: sane where physics leaves no choice, and as close to measurements as it says."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import re

import pytest

from launcher.config.arguments import Arguments, parse
from launcher.errors import UsageError
from launcher.plan import published, shape, stages
from launcher.plan.projection import anchor, calibration, constants, execution, layers
from launcher.plan.projection.projection import Projection, project
from tests.plan.test_parameters import words
from tests.support.launching import preview

RECIPE = "qwen3-235b-h100-4k"


@functools.cache
def base() -> Arguments:
    return parse(words(RECIPE), "recipe")


def projected(
    *further: str, gpu: str = "H100", world: int = 256, without: tuple[str, ...] = ()
) -> Projection:
    """The recipe's step with other arguments."""
    given = {flag: one for flag, one in base().items() if flag not in without}
    given = {**given, **parse(further, "test")}
    read = shape.read(given, world)
    how = execution.read(given, {}, 2026.5, bound=True)
    return project(read, stages.split(read), how, gpu)


def test_parts_add_up_to_the_step():
    there = projected()
    assert sum(there.by.values()) == pytest.approx(there.seconds)
    assert there.tflops == pytest.approx(4851 / there.seconds, rel=0.01)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        (("--recompute-granularity", "selective", "--recompute-modules", "moe", "layernorm"), ()),
        (("--moe-token-dispatcher-type", "alltoall"), ()),
        (("--global-batch-size", "4096"), ()),
        ((), ("--global-batch-size", "1024")),
    ],
)
def test_more_work_takes_longer(slower, faster):
    assert projected(*slower).seconds > projected(*faster).seconds


@pytest.mark.parametrize(
    "flags",
    [
        ("--overlap-moe-expert-parallel-comm",),
        ("--cuda-graph-impl",),
        ("--moe-router-fusion",),
        ("--moe-permute-fusion",),
        ("--moe-grouped-gemm",),
    ],
)
def test_what_an_argument_saves_is_lost_without_it(flags):
    assert projected(without=flags).seconds > projected().seconds


def test_full_graphs_leave_nothing_to_the_cpu():
    there = projected("--cuda-graph-impl", "full_iteration", without=("--cuda-graph-modules",))
    assert there.by["host"] == pytest.approx(0, abs=1e-9)
    assert there.seconds < projected().seconds


def test_faster_gpus_are_faster():
    """Without the CPU, of which GB200 has a slower one than B200."""
    full = ("--cuda-graph-impl", "full_iteration")
    names = ("H100", "H200", "B200", "GB200", "GB300")
    seconds = [
        projected(*full, gpu=name, without=("--cuda-graph-modules",)).seconds for name in names
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_twice_the_batch_takes_about_twice_as_long():
    twice = projected("--global-batch-size", "4096").seconds / projected().seconds
    assert 1.9 < twice < 2.0


def test_natural_routing_is_slower_than_forced_balance():
    natural = projected(without=("--moe-router-force-load-balancing",))
    assert natural.seconds > projected().seconds


def test_layers_of_a_kind_take_the_same():
    read = shape.read(base(), 256)
    job = layers.workload(
        read, execution.read(base(), {}, 2026.5), constants.GPUS["H100"], constants.fitted()
    )
    one = stages.Layer(3, True, False, False)
    there = layers.layer(job, one)
    assert there == layers.layer(job, dataclasses.replace(one, number=7))
    assert there.backward.seconds > there.forward.seconds > 0


# Published rows


def rows() -> list[dict[str, str]]:
    with published.DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_published_rows_state_what_decides():
    for row in rows():
        assert row["dispatcher"] in ("alltoall", "deepep", "hybridep"), row
        assert row["known"] in ("0", "1")
        assert row["source"]
        assert row["seconds"] or row["tflops"]
        assert float(row["released"]) > 2025


def test_band_holds_most_of_the_measurements_of_a_model():
    """Rows of the recipe's model on H100 with known settings, in the band for projections alone."""
    mine = [
        row for row in rows()
        if (row["model"], row["gpu"], row["known"]) == ("Qwen3-235B-A22B", "H100", "1")
    ]  # fmt: skip
    off = [math.log(anchor.correction(row, base())) for row in mine]
    inside = sum(abs(each) <= math.log(anchor.bands()["alone"]) for each in off)
    assert len(mine) >= 15
    assert inside >= 0.75 * len(mine)


def test_bands_widen_with_what_is_not_known():
    found = anchor.bands()
    assert 1 < found["exact"] < found["near"] < found["alone"] < 1.5


def test_every_constant_says_where_it_comes_from():
    for name, entry in constants.described().items():
        assert name in constants.NAMES
        assert entry["source"]
        # A fitted constant stays within three deviations of what was believed before.
        assert abs(math.log(entry["value"] / entry["prior"])) < 3 * entry["sd"], name


# The sheet


def test_sheet_shows_the_projection_and_its_anchor():
    seen = preview(MODEL="Qwen3-235B-A22B", GPU="H100").stderr
    assert re.search(r"projected  [\d,]+ TFLOPS/GPU \([\d,]+ to [\d,]+\), [\d.]+ s a step", seen)
    assert "anchored to " in seen


def test_dispatcher_is_a_difference():
    """All-to-all does not get HybridEP's figure."""
    seen = preview(
        MODEL="Qwen3-235B-A22B", GPU="GB200", DISPATCHER="alltoall", GB200_CLUSTER="1", NNODES="64"
    ).stderr
    assert "dispatcher alltoall instead of hybridep" in seen
    assert "measured: " not in seen


def test_depth_that_was_never_measured_is_projected_alone():
    seen = preview(
        ["--num-layers", "46"], MODEL="Qwen3-235B-A22B", GPU="H100", PP="2", VPP="1"
    ).stderr
    assert "no measurement is like it" in seen
    assert "published  nothing for this model on H100" in seen


def test_offloading_is_outside_of_what_was_measured():
    seen = preview(MODEL="DeepSeek-V3", GPU="H100", OPTIMIZER_OFFLOAD="1").stderr
    assert "outside of what was measured: an offloaded optimizer" in seen


# A cluster's own measurements


def test_own_constants_replace_the_fitted_ones(tmp_path):
    path = tmp_path / calibration.FILE
    calibration.write(path, {"constants": {"e_bf16_hopper": 0.5}})
    found = calibration.read(path)
    assert found.constants.e_bf16_hopper == 0.5
    assert found.constants.hidden == constants.fitted().hidden
    assert found.measured == ("e_bf16_hopper",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        (json.dumps({"constants": {"speed": 1}}), "nobody knows: speed"),
        (json.dumps({"constants": {"hidden": 0}}), "not above 0"),
    ],
)
def test_broken_calibration_is_refused(tmp_path, text, message):
    path = tmp_path / calibration.FILE
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        calibration.read(path)
