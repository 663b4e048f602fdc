"""Tune every recipe that has a published figure, and print how its sizes compare with the best.

    python tests/tools/tune_recipes.py [name …]

All sizes and recomputation are free; expert overlap and CUDA graphs stay as the recipe has them.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher import tune  # noqa: E402
from launcher.config import bash_layers  # noqa: E402
from launcher.job import request  # noqa: E402
from launcher.job.build import build  # noqa: E402
from launcher.plan.tune import search  # noqa: E402

# A recipe's script under best_practice, the variables that choose it, its published TFLOPS/GPU.
RECIPES = {
    "mixtral-8x22b-h100": ("Mixtral/run_mixtral_8x22b_h100.sh", {}, 465),
    "qwen3-235b-h100-4k": ("Qwen3/run_qwen3_235b_h100.sh", {}, 320),
    "qwen3-235b-h100-16k": ("Qwen3/run_qwen3_235b_h100_long_context.sh", {}, 237),
    "qwen3-235b-gb200-4k-bf16": ("Qwen3/run_qwen3_235b_gb200_bf16.sh", {}, 750),
    "qwen3-235b-gb200-4k-mxfp8": ("Qwen3/run_qwen3_235b_gb200_mxfp8.sh", {}, 919),
    "qwen3-235b-gb200-128k": ("Qwen3/run_qwen3_235b_gb200_128k.sh", {}, 1150),
    "qwen3-235b-gb300-4k": ("Qwen3/run_qwen3_235b_gb300.sh", {}, 1055),
    "qwen3-next-80b-h100-4k": ("Qwen3/run_qwen3_next_80b_h100.sh", {}, 89),
    "dsv3-h100-4k": ("DeepSeekV3/run_deepseek_v3_h100.sh", {}, 338),
    "dsv3-gb200-4k": ("DeepSeekV3/run_deepseek_v3_gb200.sh", {}, 1048),
    "dsv3-gb300-4k": ("DeepSeekV3/run_deepseek_v3_gb300.sh", {}, 1233),
}


def main() -> None:
    names = sys.argv[1:] or list(RECIPES)
    print(
        f"{'recipe':26} {'published':>9} {'own':>6} {'best':>6} {'own/best':>8} {'rank':>5}  "
        "candidates, seconds of CPU, MiB; the best's sizes"
    )
    for name in names:
        script, variables, figure = RECIPES[name]
        environ = {
            "PATH": "/usr/bin:/bin", "CLUSTER": "template", "TIMESTAMP": "260101_120000",
            **variables,
        }  # fmt: skip
        layered, words = bash_layers.source(ROOT / "best_practice" / script, [], environ)
        read = request.read(bash_layers.settings_of(layered), words, layered)
        job = build(read)
        wish = tune.wish(["--free", "all"])
        task = tune._task(read, wish, job)
        began = time.process_time()
        found = search.search(task)
        spent = time.process_time() - began
        own, _, _ = search.evaluate(task, task.case.arguments)
        best = found.results[0]
        sizes = tuple(tune._sizes(task.case.arguments).values())
        places = [one.candidate.sizes[:2] + one.candidate.sizes[3:] for one in found.results]
        mine = sizes[:2] + sizes[3:]
        rank = str(places.index(mine) + 1) if mine in places else "-"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{name:26} {figure:>9} {own.tflops:>6.0f} {best.projection.tflops:>6.0f} "
            f"{own.seconds / best.projection.seconds:>8.2f} {rank:>5}  {found.considered:,}, "
            f"{spent:.0f}, {peak:.0f}; {tune._changed(best)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
