"""Parameters and FLOPs against Megatron's own numbers.

megatron_counts.json holds what the real model of every pipeline stage has, built on the meta
device: by job, its parameters and those reduced over the expert data parallel group. Again:

    python tests/plan/test_parameters.py jobs [NAME…] > /tmp/jobs
    python launcher/megatron/verify.py < /tmp/jobs > /tmp/verdicts
    python tests/plan/test_parameters.py store < /tmp/verdicts
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.config.arguments import argv, merge, parse  # noqa: E402
from launcher.config.releases import LATEST, SUPPORTED  # noqa: E402
from launcher.plan import flops, parameters, stages  # noqa: E402
from launcher.plan.shape import Shape, read  # noqa: E402

FLOPS_OF_RELEASES = Path(__file__).with_name("flops_of_releases.json")
COUNTS = Path(__file__).with_name("megatron_counts.json")
MODELS = sorted(path.stem for path in (ROOT / "model_configs" / "benchmarking").glob("*.yaml"))
RECIPES = sorted(path.stem for path in (ROOT / "tests" / "golden").glob("*.sh"))
# What no default and no recipe has: a model's defaults with further arguments.
VARIANTS = {
    "Qwen3-Next-80B-A3B MTP": "--mtp-num-layers 1",
    "Qwen3-30B-A3B more tensor ranks than key-value heads": "--tensor-model-parallel-size 8 --expert-tensor-parallel-size 2 --expert-model-parallel-size 4",
    "DeepSeek-V3-Proxy MTP before the loss": "--pipeline-model-parallel-layout Et*4|t*5|t*5m|L",
    "DeepSeek-V2-Lite no expert parallelism": "--expert-model-parallel-size 1 --tensor-model-parallel-size 2",
    "Mixtral-8x7B everything split by TP": "--expert-model-parallel-size 1 --tensor-model-parallel-size 2 --expert-tensor-parallel-size 2",
    "Mixtral-8x2B LayerNorm": "--normalization LayerNorm",
}
JOBS = [*MODELS, *RECIPES, *VARIANTS]


@functools.cache
def script(name: str) -> str:
    """The job script of a recipe, or of a model's defaults."""
    name = name.split()[0]
    if name in RECIPES:
        return (ROOT / "tests" / "golden" / f"{name}.sh").read_text(encoding="utf-8")
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        ["bash", str(ROOT / "sbatch_benchmarking.sh")],
        env={**kept, "MODEL": name, "DRY_RUN": "1", "CLUSTER": "template", "OUTPUT_PATH": "/out"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def words(name: str) -> list[str]:
    """Megatron's arguments of a job."""
    array = re.search(r"^training_command=\(\n(.*?)\n\)$", script(name), re.MULTILINE | re.DOTALL)
    command = shlex.split(array[1])
    start = next(n for n, word in enumerate(command) if word.startswith("--"))
    layers = (parse(command[start:], "script"), parse(VARIANTS.get(name, "").split(), "variant"))
    return argv(merge(*layers))


def world_size(name: str) -> int:
    sizes = re.findall(r"^#SBATCH --(?:nodes|ntasks-per-node)=(\d+)$", script(name), re.MULTILINE)
    return int(sizes[0]) * int(sizes[1])


def shape_of(name: str, *further: str, release: str = LATEST) -> Shape:
    """The shape of a job, with further arguments."""
    arguments = merge(parse(words(name), "job"), parse(further, "test"))
    return read(arguments, world_size(name), release)


def counted(shape: Shape) -> list[list[int]]:
    """Parameters and expert parameters of every stage."""
    counts = parameters.stages(shape, stages.split(shape))
    return [[count.total, parameters.expert_parameters(shape, count)] for count in counts]


def megatron(name: str) -> dict:
    """A job as launcher/megatron/verify.py reads it."""
    exports = re.findall(r"^export (\w+)=(\S*)$", script(name), re.MULTILINE)
    return {
        "name": name,
        "argv": words(name),
        "world_size": world_size(name),
        "environment": {key: shlex.split(text)[0] if text else "" for key, text in exports},
        "build": "all",
        "compute_capability": [10, 0] if re.search("b[23]00", name) else [9, 0],
        "own_training": True,  # for MTP beside an attention variant
    }


def verify(jobs: Sequence[dict]) -> dict[str, dict]:
    """Megatron's verdicts; of several on a job, the last and complete one."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "launcher" / "megatron" / "verify.py")],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    return {verdict["name"]: verdict for verdict in map(json.loads, done.stdout.splitlines())}


def stored() -> dict[str, list[list[int]]]:
    return json.loads(COUNTS.read_text(encoding="utf-8"))


def test_counts_are_stored_for_every_job():
    assert sorted(stored()) == sorted(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_every_stage_has_as_many_parameters_as_megatrons_model(name):
    assert counted(shape_of(name)) == stored()[name]


def test_deepseek_v3_on_1024_ranks():
    totals = [total for total, _ in counted(shape_of("dsv3-h100-4k"))]
    middle = [2_409_234_432] * 4
    assert totals == [2_569_584_640, 2_405_564_416, *middle, 2_409_241_600, 3_086_160_896]


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [  # billions, as published; of Qwen3-Next's "80B-A3B" the figures are rounder than the rest
        ("DeepSeek-V2-Lite", 15.7, 2.7),
        ("DeepSeek-V2", 235.7, 21.4),
        ("DeepSeek-V3", 671.0, 37.6),
        ("Kimi-K2", 1026.4, 32.9),
        ("Mixtral-8x22B", 140.6, 39.2),
        ("Mixtral-8x7B", 46.7, 12.9),
        ("Qwen2-57B-A14B", 57.4, 14.2),
        ("Qwen3-235B-A22B", 235.1, 22.2),
        ("Qwen3-30B-A3B", 30.5, 3.4),
        ("Qwen3-Next-80B-A3B", 79.7, 3.9),
    ],
)
def test_whole_model(name, total, active):
    whole = parameters.whole(shape_of(name).model)
    assert (round(whole.total / 1e9, 1), round(whole.active / 1e9, 1)) == (total, active)


def test_one_release_norms_queries_that_are_not_compressed():
    """Read off each branch's multi_latent_attention.py: only 0.19 has a norm of 2,048 a layer."""
    totals = {
        release: parameters.whole(shape_of("DeepSeek-V2-Lite", release=release).model).total
        for release in SUPPORTED
    }
    without = totals["0.18"]
    assert without == 15_706_484_224  # DeepSeek's own
    assert totals == {**dict.fromkeys(SUPPORTED, without), "0.19": without + 27 * 2048}


def test_whole_deepseek_v3_equals_megatrons_on_one_rank():
    whole = parameters.whole(shape_of("DeepSeek-V3", "--mtp-num-layers", "1").model)
    assert (whole.total, whole.total + whole.mtp) == (671_026_404_352, 682_636_472_320)


def test_stages_of_one_tensor_and_expert_rank_add_up_to_the_whole_model():
    shape = shape_of("Qwen3-30B-A3B", "--expert-model-parallel-size", "1")
    (only,) = counted(shape)
    assert only == [parameters.whole(shape.model).total, 0]


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (["--expert-tensor-parallel-size", "2", "--tensor-model-parallel-size", "2"], 0),
        (["--expert-tensor-parallel-size", "1", "--tensor-model-parallel-size", "2"], 1),
    ],
)
def test_experts_split_like_everything_else_are_reduced_with_it(flags, more):
    shape = shape_of("Qwen3-30B-A3B", "--expert-model-parallel-size", "1", *flags)
    assert [min(1, expert) for _, expert in counted(shape)] == [more]


def test_tied_embedding_has_its_copy_on_the_last_stage_only():
    untied = shape_of("Mixtral-8x7B")
    arguments = parse(words("Mixtral-8x7B"), "test")
    arguments = {
        flag: given for flag, given in arguments.items() if not flag.startswith("--untie-")
    }
    tied = read(arguments, world_size("Mixtral-8x7B"))
    assert counted(tied) == counted(untied)  # the output layer of stage 3 cannot share stage 0's
    word = untied.model.vocabulary * untied.model.hidden
    whole = [parameters.whole(shape.model).total for shape in (untied, tied)]
    assert whole[0] - whole[1] == word


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--num-layers", "many"), "--num-layers many is not a whole number below 10^18"),
        (("--hidden-size", "0"), "--hidden-size 0 is below 1"),
        (("--moe-layer-freq", "([0]*3+[1]*7)"), "describes 10 layers, the model has 61"),
        (("--moe-layer-freq", "0"), "below 1"),
        (("--exp-avg-dtype", "fp64"), "--exp-avg-dtype fp64 is none of fp32"),
    ],
)
def test_what_cannot_be_read(flags, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        shape_of("DeepSeek-V3", *flags)


@pytest.mark.parametrize("flag", ["--num-layers", "--vocab-size", "--num-attention-heads"])
def test_what_must_be_there(flag):
    arguments = {**parse(words("DeepSeek-V3"), "test")}
    del arguments[flag]
    with pytest.raises(ValueError, match=f"{flag} is not set"):
        read(arguments, 1024)


# FLOPs

REAL_FLOPS = """
import argparse, json, sys
from launcher.megatron import cpu_device
cpu_device.install()
from megatron.training.arguments import add_megatron_arguments
from megatron.training.training import num_floating_point_operations
parser = argparse.ArgumentParser()
add_megatron_arguments(parser)
found = {}
for job in json.load(sys.stdin):
    args, _ = parser.parse_known_args(job["argv"])
    args.padded_vocab_size = job["vocabulary"]
    found[job["name"]] = num_floating_point_operations(args, args.global_batch_size)
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("name", "operations"),
    [  # by Megatron's function, a token at sequence 4,096
        ("DeepSeek-V2-Lite", 16_386_180_096),
        ("DeepSeek-V3", 249_812_054_016),
        ("dsv3-h100-4k", 259_992_950_784),
        ("Mixtral-8x22B", 242_167_578_624),
        ("Qwen3-235B-A22B", 148_034_813_952),
        ("Qwen3-Next-80B-A3B MTP", 25_079_549_952),
    ],
)
def test_flops_per_token(name, operations):
    assert flops.per_token(shape_of(name)) == operations


def test_flops_grow_with_the_square_of_the_sequence():
    short, long = (shape_of(f"qwen3-235b-h100-{length}") for length in ("16k", "128k"))
    assert flops.per_token(long) > 3 * flops.per_token(short)


def megatrons_flops(checkout: str = "") -> dict[str, int]:
    """What Megatron's own function counts for each job, in a checkout or the installed release."""
    jobs = [
        {"name": name, "argv": words(name), "vocabulary": shape_of(name).model.vocabulary}
        for name in JOBS
    ]
    paths = ":".join(filter(None, (checkout, str(ROOT))))
    done = subprocess.run(
        [sys.executable, "-c", REAL_FLOPS],
        input=json.dumps(jobs),
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_flops_equal_megatrons_function():
    assert {name: flops.iteration(shape_of(name)) for name in JOBS} == megatrons_flops()


@pytest.mark.parametrize("release", ["0.15", "0.16", "0.17", "0.18"])
def test_flops_equal_older_releases(release):
    """0.15 does not know linear attention: it counts Qwen3-Next's as the attention of Qwen3."""
    stored = json.loads(FLOPS_OF_RELEASES.read_text("utf-8"))[release]
    assert sorted(stored) == sorted(JOBS)
    unlike = {
        name: round(stored[name] / flops.iteration(shape_of(name)), 4)
        for name in JOBS
        if stored[name] != pytest.approx(flops.iteration(shape_of(name)), rel=1e-12)
    }
    unknown = {
        "Qwen3-Next-80B-A3B": 0.9719,
        "Qwen3-Next-80B-A3B MTP": 0.9745,
        "qwen3-next-80b-h100-4k": 0.9719,
    }
    assert unlike == (unknown if release == "0.15" else {})


@pytest.mark.slow
def test_stored_counts_are_megatrons():
    names = ["DeepSeek-V2-Lite", "Mixtral-8x7B", "Qwen2-57B-A14B", "Qwen3-Next-80B-A3B MTP"]
    for name, verdict in verify([megatron(name) for name in names]).items():
        assert verdict["accepted"], verdict["message"]
        found = [[one["parameters"], one["expert_parameters"]] for one in verdict["stages"]]
        assert found == stored()[name], name


def main(action: str, *names: str) -> None:
    if action == "jobs":
        for name in names or JOBS:
            print(json.dumps(megatron(name)))
        return
    counts = {name: found for name, found in stored().items() if name in JOBS}
    for verdict in map(json.loads, sys.stdin):
        assert verdict["accepted"], verdict
        counts[verdict["name"]] = [
            [one["parameters"], one["expert_parameters"]] for one in verdict["stages"]
        ]
    rows = [f"  {json.dumps(name)}: {json.dumps(counts[name])}" for name in sorted(counts)]
    COUNTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
