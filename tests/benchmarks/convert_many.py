"""What a conversion costs where there are many small tensors: DeepSeek-V3's 91,991, made tiny.

    .venv/training/bin/python tests/benchmarks/convert_many.py FOLDER

FOLDER gets a model with DeepSeek-V3's layers, experts and FP8 scales, and matrices of a few values,
and conversions of it at PP16 EP64 in both formats. What is measured is the CPU time of all
processes: there is next to nothing to copy.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SIZES = {
    "--hidden-size": 64,
    "--ffn-hidden-size": 64,
    "--num-attention-heads": 4,
    "--q-lora-rank": 16,
    "--kv-lora-rank": 16,
    "--qk-head-dim": 16,
    "--qk-pos-emb-head-dim": 8,
    "--v-head-dim": 16,
    "--moe-ffn-hidden-size": 16,
    "--moe-shared-expert-intermediate-size": 16,
    "--num-layers": 61,
    "--num-experts": 256,
    "--moe-router-topk": 8,
    "--moe-layer-freq": "([0]*3+[1]*58)",
}
CONFIG = {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 61,
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "moe_intermediate_size": 16, "num_experts_per_tok": 8,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
    },
}  # fmt: skip


def main() -> None:
    """Measure both formats."""
    from tests.support.synthetic import Family, environment, publish

    folder = Path(sys.argv[1])
    family = Family("deepseek-v3", "DeepSeek-V3", SIZES, mtp=1, config=CONFIG)
    source = folder / "many"
    if not source.exists():
        publish(source, family, fp8=True, shards=16)
    model = folder / "tiny-DeepSeek-V3.yaml"
    count = sum(
        len(json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]))
        - 1
        for path in source.glob("*.safetensors")
    )
    for form in ("torch_dist", "legacy"):
        target = folder / f"made-{form}"
        shutil.rmtree(target, ignore_errors=True)
        environ = environment(
            model,
            family,
            SOURCE_CKPT_PATH=source,
            TARGET_CKPT_PATH=target,
            FORMAT=form,
            PP=16,
            EP=64,
            PP_FIRST=4,
            PP_LAST=1,
        )
        before, started = _cpu(), time.monotonic()
        command = [sys.executable, "-m", "launcher.convert", family.table]
        subprocess.run(command, env={**os.environ, **environ}, cwd=ROOT, check=True)
        print(
            f"{form}: {count} tensors, {_cpu() - before:.1f} s of CPU, "
            f"{time.monotonic() - started:.1f} s",
            flush=True,
        )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
