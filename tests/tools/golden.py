"""Render the job script of every recipe of best_practice/ into this folder.

    python tests/tools/golden.py            rewrite the files
    python tests/tools/golden.py --check    write nothing; list the files that would change

A file shows what one recipe submits, so a change to a knob or a model config shows as a diff.
Nothing of this machine is in them: the time stamp and OUTPUT_PATH are fixed, the cluster config is
the template, and the repository's own path reads /workspace.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ROOT = GOLDEN.parents[1]
SCRIPTS = ROOT / "best_practice"

BEGIN = "=== DRY RUN - SLURM Job Script ===\n"
END = "=== End of DRY RUN ===\n"
FIXED = {
    "DRY_RUN": "1",
    "CLUSTER": "template",
    "OUTPUT_PATH": "/output",
    "TIMESTAMP": "260101_000000",
}


@dataclass(frozen=True)
class Recipe:
    """A script of best_practice/ and the variables that choose one of its recipes."""

    script: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def _series(script: str, name: str, values: Mapping[str, str]) -> dict[str, Recipe]:
    return {recipe: Recipe(script, {name: value}) for recipe, value in values.items()}


RECIPES: Mapping[str, Recipe] = {
    "dsv3-h100-4k": Recipe("DeepSeekV3/run_deepseek_v3_h100.sh"),
    "dsv3-b200-4k": Recipe("DeepSeekV3/run_deepseek_v3_b200.sh"),
    "dsv3-gb200-4k": Recipe("DeepSeekV3/run_deepseek_v3_gb200.sh"),
    "dsv3-gb300-4k": Recipe("DeepSeekV3/run_deepseek_v3_gb300.sh"),
    **_series(
        "DeepSeekV3/run_deepseek_v3_h100_long_context.sh",
        "SEQ_LEN",
        {
            "dsv3-h100-256gpu-4k": "4096",
            "dsv3-h100-16k": "16384",
            "dsv3-h100-32k": "32768",
            "dsv3-h100-64k": "65536",
            "dsv3-h100-128k": "131072",
            "dsv3-h100-256k": "262144",
        },
    ),
    "qwen3-235b-h100-4k": Recipe("Qwen3/run_qwen3_235b_h100.sh"),
    "qwen3-235b-b200-4k": Recipe("Qwen3/run_qwen3_235b_b200.sh"),
    "qwen3-235b-gb200-4k-bf16": Recipe("Qwen3/run_qwen3_235b_gb200_bf16.sh"),
    "qwen3-235b-gb200-4k-mxfp8": Recipe("Qwen3/run_qwen3_235b_gb200_mxfp8.sh"),
    "qwen3-235b-gb200-128k": Recipe("Qwen3/run_qwen3_235b_gb200_128k.sh"),
    "qwen3-235b-gb300-4k": Recipe("Qwen3/run_qwen3_235b_gb300.sh"),
    **_series(
        "Qwen3/run_qwen3_235b_h100_long_context.sh",
        "SEQ_LEN",
        {
            "qwen3-235b-h100-16k": "16384",
            "qwen3-235b-h100-32k": "32768",
            "qwen3-235b-h100-64k": "65536",
            "qwen3-235b-h100-128k": "131072",
        },
    ),
    **_series(
        "Qwen3/run_qwen3_30b_h100.sh",
        "RECOMPUTE",
        {"qwen3-30b-h100-4k": "none", "qwen3-30b-h100-4k-full-recompute": "full"},
    ),
    "qwen3-30b-b200-1node": Recipe("Qwen3/run_qwen3_30b_b200.sh"),
    "qwen3-next-80b-h100-4k": Recipe("Qwen3/run_qwen3_next_80b_h100.sh"),
    **_series(
        "Mixtral/run_mixtral_8x22b_h100.sh",
        "VARIANT",
        {
            "mixtral-8x22b-h100": "dropless",
            "mixtral-8x22b-h100-balanced": "balanced",
            "mixtral-8x22b-h100-fp8": "fp8",
            "mixtral-8x22b-h100-drop": "drop",
        },
    ),
    "kimi-k2-gb200-128k": Recipe("KimiK2/run_kimi_k2_gb200_128k.sh"),
}


class RenderError(Exception):
    """A recipe's dry run failed; the message is what it said."""


def start(
    script: str,
    environment: Mapping[str, str],
    flags: Sequence[str] = (),
    folder: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Run a script of best_practice/ in `folder`, with nothing else from this process's environment."""
    search_path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *flags],
        env={"PATH": search_path, "HOME": os.environ.get("HOME", "/"), **FIXED, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def render(
    recipe: Recipe,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    folder: Path = ROOT,
) -> str:
    """Return the job script of a recipe's dry run. Raises RenderError."""
    done = start(recipe.script, {**recipe.parameters, **(environment or {})}, flags, folder)
    _, begin, rest = done.stdout.partition(BEGIN)
    text, end, _ = rest.partition(END)
    if done.returncode != 0 or not begin or not end:
        raise RenderError(
            f"{recipe.script} {dict(recipe.parameters)}: {done.stderr.strip() or done.stdout.strip()}"
        )
    # A path with a space is quoted in the script; the fixed one never needs it.
    return re.sub(r"'(/workspace[\w/.+-]*)'", r"\1", text.replace(str(ROOT), "/workspace"))


def render_all() -> dict[str, str]:
    """Return every recipe's job script, by the recipe's id. Raises RenderError."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(RECIPES, pool.map(render, RECIPES.values())))


def main(words: Sequence[str]) -> int:
    """Rewrite or check the files; the exit status is 1 where something failed or would change."""
    if words not in ([], ["--check"]):
        print(f"error: {' '.join(words)!r} is not allowed: nothing, --check", file=sys.stderr)
        return 2
    try:
        rendered = render_all()
    except RenderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wanted = {GOLDEN / f"{recipe}.sh": text for recipe, text in rendered.items()}
    present = {path: path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.sh")}
    changed = sorted(
        path for path in {**wanted, **present} if wanted.get(path) != present.get(path)
    )
    for path in changed:
        print(
            f"{'changed' if path in wanted and path in present else 'new' if path in wanted else 'removed'}: {path.name}"
        )
    if words:
        return 1 if changed else 0
    for path in changed:
        if path in wanted:
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    print(f"{len(wanted)} recipes, {len(changed)} files written or removed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
