"""Random values in every variable, argument, YAML and .conf: a line, never a traceback or a hang.

    python tests/tools/fuzz.py [--count 5000] [--seed N] [--entry 20]

Each launch is built in this process from real layers; `--entry` of them go through the entry point
with a random cluster file besides. Prints what failed, and ends with status 1 if anything did.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [*(p for p in sys.path if p != str(Path(__file__).parent)), str(ROOT)]

from launcher import secrets  # noqa: E402
from launcher.config import bash_layers  # noqa: E402
from launcher.config.settings import FIELDS  # noqa: E402
from launcher.errors import UsageError  # noqa: E402
from launcher.job import request, summary  # noqa: E402
from launcher.job.build import build  # noqa: E402
from launcher.job.script import render  # noqa: E402
from launcher.plan import flags  # noqa: E402

MODELS = ("DeepSeek-V3", "Qwen3-30B-A3B", "Qwen3-Next-80B-A3B", "Mixtral-8x7B")
RELEASES = ("0.15", "0.16", "0.17", "0.18", "0.19", "dev")
SECONDS = 5.0  # a launch that takes longer hangs
# What breaks readers: empty, signs, bases, sizes, expressions, quoting, other scripts' digits.
VALUES = (
    "", " ", "0", "1", "-1", "+1", "2", "3", "8", "64", "007", "1.0", "1e3", "0x10", "1_000", "nan",
    "inf", "-inf", "1e999", "9" * 18, "9" * 400, "9" * 5000, "-" + "9" * 400, "½", "²", "٣", "１２",
    "true", "false", "None", "null", "a b", "a,b", "2,4", "(1,2)", "[1,2]", "([0]*3+[1]*58)",
    "([1]*10000000000)", "([0]*" + "9" * 400 + ")", "[" * 300, "((((", "Et|(tt|)*30mL", "E|t*99999999999L",
    "Et*61|L", "(" * 2000, "'", '"', "\\", "$HOME", "${TP}", "$${TP}", "${NOPE}", "`id`", "--", "-", "--tp",
    "=", "a=b", "x" * 3000, "/" + "y" * 3000, "../../etc", "/dev/null", "/nonexistent/file.yaml", "é漢字",
    "\t", "a\nb", "*", "?", "~", "%s", "{}", "{{x}}", "0.19", "dev", "1:2:3", "9-99:99:99", "H100", "none",
)  # fmt: skip
YAML_VALUES = (*VALUES, "[1, 2]", "{a: b}", "[[1], [2]]", "&a [*a]", "!!python/object:x {}", "2026-01-01", "1:20", ".inf", "~")  # fmt: skip
YAML_KEYS = ("[a, b]", "{a: b}", "? [x]\n  ", "''", "1", "null", "--num-layers", "--x y", "-x", "${TP}", "é")  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One random launch: variables, words of the command line, and the text of a model's YAML."""

    model: str
    variables: Mapping[str, str]
    words: tuple[str, ...]
    yaml: str | None


def launches(seed: int, count: int) -> Iterator[Launch]:
    """Yield random launches, the same ones for a seed."""
    rng = random.Random(seed)
    known = {release: sorted(flags.load(release).entries) for release in RELEASES}
    names = [name for name in FIELDS if name not in ("WORKSPACE", "MODEL_NAME")]
    for _ in range(count):
        variables = {
            name: rng.choice(VALUES) for name in rng.sample(names, rng.choice((0, 0, 1, 1, 2, 4)))
        }
        release = rng.choice(RELEASES)
        if rng.random() < 0.7:
            variables.setdefault("MCORE_RELEASE_VERSION", release)
        words: list[str] = []
        for flag in rng.sample(known[release], rng.choice((0, 1, 1, 2, 3, 6))):
            words += [flag, *rng.choices(VALUES, k=rng.choice((0, 1, 1, 1, 2)))]
        yaml = _yaml(rng, known[release]) if rng.random() < 0.2 else None
        yield Launch(rng.choice(MODELS), variables, tuple(words), yaml)


def _yaml(rng: random.Random, known: Sequence[str]) -> str:
    keys = [rng.choice(YAML_KEYS) if rng.random() < 0.2 else rng.choice(known) for _ in range(4)]
    entries = "".join(f"  {key}: {rng.choice(YAML_VALUES)}\n" for key in keys)
    head = rng.choice(("", "EXTENDS: base/common.yaml\n", f"EXTENDS: {rng.choice(YAML_VALUES)}\n"))
    return f"{head}{rng.choice(('MODEL_ARGS', 'ENV_VARS', rng.choice(YAML_KEYS)))}:\n{entries}"


class Fuzz:
    """Builds launches in this process; the layers of each model are sourced once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        common = {**kept, "CLUSTER": "template", "OUTPUT_PATH": str(folder), "DRY_RUN": "1"}
        self.layers = {
            model: bash_layers.source(bash_layers.ENTRY, [], {**common, "MODEL": model})[0]
            for model in MODELS
        }

    def run(self, launch: Launch) -> str:
        """Return what went wrong with a launch: a traceback, or that it took too long; else ''."""
        environ = {**self.layers[launch.model], **launch.variables}
        if launch.yaml is not None:
            path = self.folder / "model.yaml"
            path.write_text(launch.yaml, encoding="utf-8")
            environ["MODEL"] = str(path)
        begun = time.process_time()
        try:
            with contextlib.suppress(UsageError):
                job = build(request.read(bash_layers.settings_of(environ), launch.words, environ))
                secrets.check(render(job), environ, "the job script")
                summary.summary(job, everything=True)
                summary.as_json(job)
                summary.explain(job)
        except Exception:
            return traceback.format_exc()
        seconds = time.process_time() - begun
        return f"{seconds:.1f} s" if seconds > SECONDS else ""


def through_the_entry(seed: int, count: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what the entry point says of launches with random cluster files, where it fails."""
    from tests.support.launching import launch

    rng = random.Random(seed)
    for number in range(count):
        config = folder / f"{number}.conf"
        lines = [f": \"${{{rng.choice(list(FIELDS))}:={rng.choice(VALUES[:40])}}}\"" for _ in range(3)]  # fmt: skip
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        value = rng.choice([text for text in VALUES if "\0" not in text])
        name = rng.choice(list(FIELDS))
        variables = {"MODEL": "DeepSeek-V3", "DRY_RUN": "1", "CLUSTER": str(config), name: value}
        seen = launch(**variables, cwd=folder)
        if "Traceback" in seen.stderr or "Traceback" in seen.stdout:
            yield f"{lines} {name}={value!r}", seen.stderr


def main() -> int:
    """Run the fuzz and tell what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--entry", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for launch in launches(chosen.seed, chosen.count):
            if said := fuzz.run(launch):
                failed += 1
                print(f"{launch}\n{said}")
        for what, said in through_the_entry(chosen.seed, chosen.entry, Path(folder)):
            failed += 1
            print(f"{what}\n{said}")
    print(f"{chosen.count + chosen.entry} launches, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
