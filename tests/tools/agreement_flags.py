"""How often the plan and Megatron agree on jobs drawn by flags, not by recipes.

    python tests/tools/agreement_flags.py judge SEED COUNT FILE [none]    draw, ask, append to FILE
    python tests/tools/agreement_flags.py report FILE              ask the plan again; list

Each draw sets two flags of the release's catalogue on a small job of one of three kinds, to legal
and illegal values. The first flags come in turn, in an order of the seed's, and so do the second:
as many draws as there are flags have each of them twice. FILE is as agreement.py's, and an
interrupted run goes on where it stopped. With `none`, the model is not built: parser, validation,
configuration and groups alone, which takes a third of the time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [*(p for p in sys.path if p != str(Path(__file__).parent)), str(ROOT)]

from launcher.plan import flags  # noqa: E402
from tests.tools import agreement  # noqa: E402
from tests.tools.agreement import Job  # noqa: E402

GOOD = """
--num-layers 8 --hidden-size 1024 --ffn-hidden-size 4096 --num-attention-heads 16
--max-position-embeddings 4096 --seq-length 4096 --micro-batch-size 1 --global-batch-size 64
--num-experts 16 --moe-router-topk 2 --moe-ffn-hidden-size 512 --moe-grouped-gemm
--moe-token-dispatcher-type alltoall --moe-aux-loss-coeff 1e-3 --swiglu --disable-bias-linear
--untie-embeddings-and-output-weights --position-embedding-type rope --normalization RMSNorm --bf16
--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --train-samples 1000000
--lr 1e-4 --min-lr 1e-5 --mock-data --transformer-impl transformer_engine --attention-dropout 0.0
--hidden-dropout 0.0 --vocab-size 32000 --tokenizer-type NullTokenizer
"""
KINDS = {
    "flat": "--group-query-attention --num-query-groups 4 --kv-channels 64 --expert-model-parallel-size 4",
    "split": "--group-query-attention --num-query-groups 4 --kv-channels 64 --tensor-model-parallel-size 2"
    " --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --context-parallel-size 2"
    " --expert-model-parallel-size 4 --expert-tensor-parallel-size 1 --sequence-parallel",
    "latent": "--multi-latent-attention --q-lora-rank 128 --kv-lora-rank 64 --qk-head-dim 64 --v-head-dim 64"
    " --qk-pos-emb-head-dim 32 --pipeline-model-parallel-size 2 --expert-model-parallel-size 4"
    " --moe-shared-expert-intermediate-size 512 --mtp-num-layers 1 --rope-type yarn",
}  # fmt: skip
WORLD = 32
NUMBERS = {
    "int": ("0", "1", "2", "3", "4", "8", "16", "64", "128", "-1", "1.5", "x"),
    "float": ("0.0", "0.1", "0.5", "1.0", "2.0", "1e-3", "-1.0", "nan", "x"),
    "str": ("none", "1", "a", "./nothing", "0,1", "2 2", "[1,0]"),
}
LISTS = ("1", "2", "4", "([0]*1+[1]*7)", "([1]*8)", "([1]*3)", "0")


def bases() -> dict[str, Job]:
    """Return the small jobs that draws start from."""
    found = {}
    for kind, further in KINDS.items():
        words = f"{GOOD} {further}".split()
        arguments: dict[str, list[str]] = {}
        for word in words:
            if word.startswith("--"):
                arguments[word] = []
            else:
                arguments[list(arguments)[-1]].append(word)
        environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
        found[kind] = Job(kind, arguments, WORLD, environment, "H100", 8)
    return found


def value(rng: random.Random, known: flags.Flag) -> list[str]:
    """Return the words of a flag: mostly what its parser takes, sometimes not."""
    if known.switch is not None:
        return [] if rng.random() < 0.97 else ["1"]
    if known.choices and rng.random() < 0.9:
        words = [str(rng.choice(known.choices))]
    elif "freq" in known.type or "ratios" in known.type:
        words = [rng.choice(LISTS)]
    elif known.default not in (None, "") and rng.random() < 0.3:
        words = [str(known.default)]
    else:
        words = [rng.choice(NUMBERS.get(known.type, NUMBERS["str"]))]
    if isinstance(known.nargs, int):
        words *= known.nargs
    return words


def draw(start: Mapping[str, Job], seed: int, number: int) -> Job:
    """Return draw `number` of a seed: its flags are those whose turn it is."""
    rng = random.Random(f"flags-{seed}-{number}")
    base = start[rng.choice(sorted(start))]
    job = Job(
        base.base, {flag: list(values) for flag, values in base.flags.items()}, base.world_size,
        dict(base.environment), rng.choice(("H100", "B200")), base.tasks_per_node,
    )  # fmt: skip
    catalogue = flags.load(agreement.RELEASE)
    orders = (sorted(catalogue.entries), sorted(catalogue.entries))
    random.Random(seed).shuffle(orders[0])
    random.Random(f"second {seed}").shuffle(orders[1])
    for flag in (order[number % len(order)] for order in orders):
        job.set(flag, *value(rng, catalogue.get(flag)))
        job.changed.append(flag)
    return job


def packaged(record: Mapping[str, Any]) -> bool:
    """Say whether Megatron refused a draw because a package is missing here that a flag needs."""
    catalogue = flags.load(agreement.RELEASE)
    known = [catalogue.get(flag) for flag in record["changed"]]
    return record["refused_by"] == "parser" and (
        any(one is not None and one.needs for one in known)
        or "package is not installed" in record["message"]
    )


def report(path: Path) -> None:
    """Print the agreement on draws by flags; those for which a package is missing are left out."""
    start, records = agreement.load(path)
    judged = {name: one for name, one in records.items() if not packaged(one)}
    print(f"{len(records) - len(judged)} of {len(records)} need a package that is missing here")
    compared = agreement.compare(start, judged.values())
    ours = [one for one in compared if not one.record["accepted"] and not one.agrees]
    theirs = [one for one in compared if one.record["accepted"] and not one.agrees]
    for one in (*ours, *theirs):
        said = one.record["message"] or "accepts"
        drawn = {flag: one.record["set"].get(flag) for flag in one.record["changed"]}
        print(f"{one.record['name']} {one.record['base']} {drawn}")
        print(f"   Megatron: {said}\n   the plan: {'; '.join(one.errors) or 'accepts'}")
    print(
        f"{len(compared)} judged; accepted by the plan and refused by Megatron {len(ours)} "
        f"({len(ours) / len(compared):.2%}), the other way {len(theirs)}"
    )


def judge(seed: int, count: int, path: Path, build: str) -> None:
    """Draw, ask Megatron, append to the file."""
    start = bases()
    jobs = {f"{seed}-{number}": draw(start, seed, number) for number in range(count)}
    agreement.record(start, jobs, path, build)


if __name__ == "__main__":
    if sys.argv[1] == "judge":
        judge(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), *(sys.argv[5:] or ["ends"]))
    else:
        report(Path(sys.argv[2]))
