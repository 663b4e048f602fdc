"""The tuner: what it considers, what it finds, and the sweep that it writes."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher import tune
from launcher.config.layout import expand
from launcher.errors import UsageError
from launcher.plan.tune import candidates
from launcher.sweep import grid
from tests.plan.test_parameters import shape_of
from tests.support.launching import ROOT, STAMP, launch


@functools.cache
def tuned(folder: str) -> subprocess.CompletedProcess[str]:
    """A tuning of Qwen3-30B-A3B on 32 H100, written to this folder; sizes but TP and CP are free."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["bash", str(ROOT / "sbatch_benchmarking.sh"), "--moe-router-force-load-balancing"],
        env={
            **kept, "LAUNCHER_COMMAND": "tune", "MODEL": "Qwen3-30B-A3B", "GPU": "H100",
            "NNODES": "4", "GBS": "256", "TP": "1", "CP": "1", "MBS": "1",
            "OUTPUT_PATH": folder, "TIMESTAMP": STAMP,
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_gpu_that_is_not_projected(tmp_path):
    seen = launch(
        LAUNCHER_COMMAND="tune", MODEL="Qwen3-30B-A3B", GPU="VR200", OUTPUT_PATH=str(tmp_path)
    )
    assert seen.status == 1
    assert "GPU=VR200 cannot be projected; allowed: H100" in seen.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tune")


def test_an_option_that_is_misspelt_is_an_error(tmp_path):
    seen = launch(
        ["--fre", "all"], LAUNCHER_COMMAND="tune", MODEL="Qwen3-30B-A3B", OUTPUT_PATH=str(tmp_path)
    )
    assert (seen.status, seen.stdout) == (1, "")
    assert "--fre is no argument of Megatron-Core 0.19" in seen.stderr
    assert "Options of tune: --free SIZES, --keep-recompute, --sweep-file FILE" in seen.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ten_distinct_results_that_keep_what_is_fixed(folder):
    done = tuned(str(folder))
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^ +(\d+) .*  (TP=1 PP=\d+ VPP=\d+ EP=\d+ CP=1 MBS=1);", done.stdout, re.M)
    assert [number for number, _ in found] == [str(n) for n in range(1, len(found) + 1)]
    assert len({sizes for _, sizes in found}) == len(found) >= 5
    assert "fixed: TP=1 CP=1 MBS=1" in done.stdout
    assert re.search(r"^measured   \d", done.stdout, re.M)


@pytest.mark.slow
def test_results_are_ordered_and_fit(folder):
    rows = re.findall(r"^ +\d+ +([\d.]+) (m?s) .* +(\d+)  TP=", tuned(str(folder)).stdout, re.M)
    seconds = [float(number) / (1000 if unit == "ms" else 1) for number, unit, _ in rows]
    assert seconds == sorted(seconds)
    assert all(int(memory) < 79 for _, _, memory in rows)


@pytest.mark.slow
def test_the_sweep_has_the_best_as_points(folder):
    tuned(str(folder))
    path = folder / "tune.yaml"
    content = yaml.safe_load(path.read_text())
    points = content["variables"]["TRAINING_PARAMS"]
    assert len(points) == len(set(points)) == 5
    assert all("--pipeline-model-parallel-size" in point for point in points)
    assert len(grid.read(path).points()) == 5


@pytest.mark.slow
def test_two_searches_find_the_same(folder, tmp_path):
    first = tuned(str(folder)).stdout.split("\n\n")[1]
    assert tuned(str(tmp_path)).stdout.split("\n\n")[1] == first


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--free", "XP"], "--free XP"), (["--free"], "needs a value"), (["--sweep-file"], "needs a")],
)
def test_words_that_mean_nothing_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        tune.wish(words)


def test_words_for_megatron_pass_through():
    wanted = tune.wish(["--free=all", "--moe-router-fusion", "--keep-recompute"])
    assert wanted.rest == ("--moe-router-fusion",)
    assert wanted.free == set(candidates.SIZES)
    assert not wanted.recompute


@pytest.mark.parametrize("name", ["dsv3-h100-4k", "qwen3-235b-h100-4k", "mixtral-8x22b-h100"])
def test_candidates_divide(name):
    one = shape_of(name)
    found = list(candidates.candidates(one, {}))
    assert len(found) == len(set(found)) > 100
    world, training = one.parallel.world, one.training
    for each in found:
        ranks = each.tensor * each.pipeline * each.context
        assert world % ranks == 0
        assert training.global_batch % (world // ranks * each.micro_batch) == 0
        assert world % (each.pipeline * each.expert) == 0
        assert one.model.experts.count % each.expert == 0
        assert each.virtual * each.pipeline <= one.model.layers
    here = one.parallel
    own = (
        here.tensor,
        here.pipeline,
        here.virtual,
        here.expert,
        here.context,
        training.micro_batch,
    )
    assert own in {each.sizes for each in found}


def test_fixed_sizes_stay():
    found = list(candidates.candidates(shape_of("dsv3-h100-4k"), {"TP": 2, "PP": 8, "VPP": 4}))
    assert {(each.tensor, each.pipeline, each.virtual) for each in found} == {(2, 8, 4)}


@pytest.mark.parametrize(
    ("layers", "extra", "chunks"), [(61, 2.4, 16), (61, 1.2, 32), (94, 0.8, 32), (48, 3.0, 8)]
)
def test_layouts_hold_every_layer_once_and_weigh_the_loss(layers, extra, chunks):
    sizes = candidates.pack([1.0] * layers, extra, chunks)
    assert sizes is not None
    assert sum(sizes) == layers
    loads = [float(size) for size in sizes[:-1]] + [sizes[-1] + extra]
    assert min(sizes) >= 1
    assert max(loads) < (layers + extra) / chunks + 1
    text = candidates.written(sizes, 1)
    assert [part.count("t") for part in expand(text)] == sizes
    assert expand(tune.short(text)) == expand(text)


def test_deepseeks_published_layout_is_found():
    """Et*4|(tttt|)*14tmL: loss and MTP weigh about as much as two and a half layers."""
    sizes = candidates.pack([0.7] * 3 + [1.0] * 58, 2.3, 16)
    assert sizes == [4] * 15 + [1]
