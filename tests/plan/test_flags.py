"""The flag catalogue against the configs, the recipes, other releases and Megatron's own parser."""

from __future__ import annotations

import json
import random
import re
import shlex
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from launcher.config.arguments import Arguments, argv, parse
from launcher.config.releases import RENAMES, SUPPORTED, release_of, rename
from launcher.errors import UsageError
from launcher.plan.flags import CATALOGUE, OTHER_RENAMES, check, load

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "model_configs").rglob("*.yaml"))
GOLDEN = sorted((ROOT / "tests/golden").glob("*.sh"))

# What the configs and the recipes use that an older release has under no name.
# (A job of an older release has --moe-deepep- or --moe-hybridep-num-sms, and no --exit-signal.)
SINCE_0_19 = ["--delay-offload-until-cuda-graph", "--moe-flex-dispatcher-num-sms"]
SINCE_0_17 = ["--moe-permute-fusion-into-hybridep"]
SINCE_0_16 = [
    "--apply-wd-to-qk-layernorm",
    "--attention-output-gate",
    "--exit-signal",
    "--experimental-attention-variant",
    "--fine-grained-activation-offloading",
    "--linear-attention-freq",
    "--linear-conv-kernel-dim",
    "--linear-key-head-dim",
    "--linear-num-key-heads",
    "--linear-num-value-heads",
    "--linear-value-head-dim",
    "--moe-flex-dispatcher-backend",
    "--moe-shared-expert-gate",
    "--offload-modules",
]
MISSING = {
    "0.15": sorted([*SINCE_0_16, *SINCE_0_17, *SINCE_0_19]),
    "0.16": sorted([*SINCE_0_17, *SINCE_0_19]),
    "0.17": SINCE_0_19,
    "0.18": SINCE_0_19,
}

# Takes the lists of words on its standard input through the real parser.
JUDGE = """
import argparse, contextlib, json, os, sys
from megatron.training.arguments import add_megatron_arguments

class Parser(argparse.ArgumentParser):
    def error(self, message):  # without the usage, which takes longer than all the rest
        raise ValueError(message)

parser = add_megatron_arguments(Parser(allow_abbrev=False))

def accepts(words):
    try:
        parser.parse_args(words)
    except (SystemExit, Exception):  # a name that an enum lacks ends as a KeyError
        return False
    return True

with contextlib.redirect_stdout(open(os.devnull, "w")):
    verdicts = [accepts(words) for words in json.load(sys.stdin)]
print("VERDICTS" + json.dumps(verdicts))
"""


def _recipe(path: Path) -> Arguments:
    """Read Megatron's arguments off a golden job script."""
    text = re.search(r"^training_command=\((.*?)^\)", path.read_text(encoding="utf-8"), re.M | re.S)
    words = shlex.split(text[1])
    return parse(
        words[next(i for i, word in enumerate(words) if word.startswith("--")) :], path.stem
    )


def _used() -> dict[str, str]:
    """Return every flag of every config and recipe, with where it is used."""
    used = {}
    for path in YAMLS:
        for flag in yaml.safe_load(path.read_text(encoding="utf-8")).get("MODEL_ARGS") or {}:
            used[flag] = path.name
    for path in GOLDEN:
        used.update(dict.fromkeys(_recipe(path), path.stem))
    return used


def _said(words: str, release: str = "0.19") -> list[tuple[str, str]]:
    found = check(parse(shlex.split(words), "here"), release)
    return [(finding.severity, finding.message) for finding in found]


def test_every_flag_of_a_config_or_a_recipe_is_known_to_the_newest_release():
    used = _used()
    assert len(YAMLS) > 12
    assert len(used) > 150
    assert {flag: place for flag, place in used.items() if flag not in load("0.19")} == {}


@pytest.mark.parametrize("release", SUPPORTED)
def test_what_other_releases_do_not_know_of_them_is_listed(release):
    used = parse(list(_used()), "here")
    unknown = sorted(flag for flag in rename(used, release) if flag not in load(release))
    assert unknown == MISSING.get(release, [])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_newest_release_accepts_every_recipe(path):
    assert [f for f in check(_recipe(path), "0.19") if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("release", "words", "severity", "message"),
    [
        # renamed
        ("0.19", "--moe-router-padding-for-fp8", "warning", "--moe-router-padding-for-fp8 is --moe-router-padding-for-quantization since 0.16 (set by here)"),
        ("0.15", "--moe-router-padding-for-quantization", "error", "--moe-router-padding-for-quantization is no argument of Megatron-Core 0.15: it is the name since 0.16; write --moe-router-padding-for-fp8 (set by here)"),
        ("0.19", "--cuda-graph-scope attn", "warning", "--cuda-graph-scope is --cuda-graph-modules since 0.18 (set by here)"),
        ("0.17", "--cuda-graph-modules attn", "error", "--cuda-graph-modules is no argument of Megatron-Core 0.17: it is the name since 0.18; write --cuda-graph-scope (set by here)"),
        ("0.19", "--linear-attention-type gated_delta_net", "error", "--linear-attention-type is no argument of Megatron-Core 0.19: 0.16 renamed it to --experimental-attention-variant (set by here)"),
        ("dev", "--linear-attention-type gated_delta_net", "warning", "--linear-attention-type is --experimental-attention-variant since 0.16 (set by here)"),
        ("0.18", "--muon-use-nesterov", "error", "--muon-use-nesterov is no argument of Megatron-Core 0.18: 0.18 renamed it to --muon-nesterov (set by here)"),
        # elsewhere
        ("0.19", "--offload-optimizer-states", "error", "--offload-optimizer-states is no argument of Megatron-Core 0.19: only the dev branch has it (set by here)"),
        ("0.15", "--attention-output-gate", "error", "--attention-output-gate is no argument of Megatron-Core 0.15: it came with 0.16 (set by here)"),
        ("0.19", "--moe-use-legacy-grouped-gemm", "error", "--moe-use-legacy-grouped-gemm is no argument of Megatron-Core 0.19: 0.16 was the last release to have it (set by here)"),
        ("0.19", "--moe-extended-tp", "error", "--moe-extended-tp is no argument of Megatron-Core 0.19: 0.16 was the last release to have it. Megatron said: Use --expert-tensor-parallel-size instead (set by here)"),
        ("dev", "--flash-attention-version 3", "error", "--flash-attention-version is no argument of Megatron's dev branch: 0.19 was the last release to have it (set by here)"),
        # deprecated
        ("0.19", "--moe-enable-deepep", "warning", "--moe-enable-deepep is deprecated: Please use --moe-flex-dispatcher-backend=deepep instead (set by here)"),
        ("0.19", "--export-te-mcore-model", "warning", "--export-te-mcore-model is known only where the package nvidia-modelopt is installed (set by here)"),
        # values
        ("0.19", "--num-layers many", "error", "--num-layers takes a whole number, not 'many' (set by here)"),
        ("0.19", "--lr fast", "error", "--lr takes a number, not 'fast' (set by here)"),
        ("0.19", "--moe-layer-freq [0]*3+x", "error", "--moe-layer-freq takes a whole number or a list such as ([0]*3+[1]*58), not '[0]*3+x' (set by here)"),
        ("0.19", "--fp8-recipe mxpf8", "error", "--fp8-recipe takes tensorwise, delayed, mxfp8, blockwise, custom, not 'mxpf8'. Did you mean mxfp8? (set by here)"),
        ("0.19", "--sequence-parallel true", "error", "--sequence-parallel is a switch and takes no value, not 'true' (set by here)"),
        ("0.19", "--num-layers", "error", "--num-layers takes one value, not none (set by here)"),
        ("0.19", "--num-layers 4 5", "error", "--num-layers takes one value, not '4 5' (set by here)"),
        ("0.19", "--rampup-batch-size 1 2", "error", "--rampup-batch-size takes 3 values, not '1 2' (set by here)"),
        ("0.19", "--recompute-modules", "error", "--recompute-modules takes one or more values, not none (set by here)"),
    ],
)  # fmt: skip
def test_a_finding_says_what_is_wrong_what_is_allowed_and_where(release, words, severity, message):
    assert (severity, message) in _said(words, release)


def test_a_flag_that_no_release_has_gets_the_nearest_names():
    [(severity, message)] = _said("--use-separate-send-recv-groups")
    assert severity == "error"
    assert "No supported release has it either." in message
    [(_, message)] = _said("--moe-token-dispatcher-typ alltoall")
    assert "Did you mean --moe-token-dispatcher-type" in message


@pytest.mark.parametrize(
    "words",
    [
        "--num-layers 1_000",
        "--num-layers=4",
        "--lr 1e-6",
        "--lr nan",
        "--lr -.5",
        "--attention-backend flash",
        "--moe-layer-freq 2",
        "--moe-layer-freq ([0]*1+[1]*3)*2",
        "--recompute-modules moe mlp",
        "--rampup-batch-size 1 2 3 --data-path",
        "--window-size (128,0)",
        "--pipeline-model-parallel-layout='-x'",
    ],
)
def test_values_that_argparse_accepts_are_no_errors(words):
    assert [text for severity, text in _said(words) if severity == "error"] == []


def test_a_pattern_longer_than_any_model_is_refused_at_once():
    started = time.monotonic()
    assert _said("--moe-layer-freq [1]*9999999999")
    assert _said("--moe-layer-freq [1]*9**9**9**9")
    assert time.monotonic() - started < 1


def test_any_text_of_a_true_or_false_value_is_true():
    flag = next(name for name in load("0.19").entries if load("0.19").get(name).type == "bool")
    assert [severity for severity, _ in _said(f"{flag} False")] == ["warning"]


def test_aliases_carry_what_is_known_of_the_flag():
    flags = load("0.19")
    assert flags.get("--persistent-save-interval") == flags.get("--save-interval")
    assert flags.get("--micro-batch-size").default is None
    assert flags.get("--disable-bias-linear").dest == "add_bias_linear"


def test_a_checkout_tells_its_release(tmp_path):
    for folder in ("core", "training"):
        (tmp_path / "megatron" / folder).mkdir(parents=True)
    assert release_of(tmp_path) is None
    (tmp_path / "megatron/core/package_info.py").write_text("MAJOR = 0\nMINOR = 18\nPATCH = 3\n")
    (tmp_path / "megatron/training/arguments.py").write_text("")
    assert release_of(tmp_path) == "0.18"
    (tmp_path / "megatron/training/arguments.py").write_text(
        "def _add_varlen_dataset_args(parser):"
    )
    assert release_of(tmp_path) == "dev"


def test_each_rename_is_in_the_catalogues():
    for entry in (*RENAMES, *OTHER_RENAMES):
        assert entry.new in load(entry.release), entry
        assert any(entry.old in load(release) for release in SUPPORTED), entry


def test_the_data_is_small_sorted_and_a_flag_a_line():
    paths = sorted(CATALOGUE.glob("*.json"))
    assert {path.stem for path in paths} == set(SUPPORTED)
    assert sum(path.stat().st_size for path in paths) < 700_000
    for path in paths:
        text = path.read_text(encoding="utf-8")
        flags = list(json.loads(text)["flags"])
        assert flags == sorted(flags)
        assert text.count("\n") == len(flags) + 2
        assert path.stat().st_size < 150_000


WORDS = [
    "abc", "", "0", "1", "-1", "-.5", "-1e-3", "3.5", "1e-6", "1_000", "0x10", "nan", "inf", "٣",
    "true", "None", "fp32", "full", "auto", "x=y", "-", "-x", "- x", " 7 ", "a b", "(1,2)", "1,,2",
    "[1]*3", "([0]*3+[1]*58)", "[1", "[1]**2", "[[1],2][0]", "[*[1],2]", "[1][3]", "[01]", "[1](2)",
]  # fmt: skip


def _draw(dice: random.Random, recipes: Sequence[Arguments], names: Sequence[str]) -> list[str]:
    """Return the words of a recipe with none to three things changed, most of them for the worse."""
    flags = load("0.19")
    words = {flag: list(argument.values) for flag, argument in dice.choice(recipes).items()}
    for _ in range(dice.choice([0, 1, 1, 1, 2, 3])):
        flag = dice.choice(list(words))
        kind = dice.randrange(7)
        if kind == 0:  # a misspelt flag
            at = dice.randrange(3, len(flag))
            letter = dice.choice([*string.ascii_lowercase, "-", "_", ""])
            words[flag[:at] + letter + flag[at + 1 :]] = words.pop(flag)
        elif kind == 1:
            words[flag] = [dice.choice(WORDS) for _ in words[flag]]
        elif kind == 2:
            words[flag] = [*words[flag], dice.choice([*WORDS, *words[flag]])]
        elif kind == 3:
            words[flag] = words[flag][:-1]
        elif kind == 4:
            words[dice.choice(names)] = dice.choices(WORDS, k=dice.choice([0, 0, 1, 1, 1, 2, 3]))
        elif kind == 5:  # a flag with values that it allows
            flag = dice.choice(names)
            known = flags.get(flag)
            many = {None: 1, "+": 2, "*": 2}.get(known.nargs, known.nargs)
            pool = known.choices or ("1", "2", "8")
            words[flag] = (
                [] if known.switch is not None else [str(dice.choice(pool)) for _ in range(many)]
            )
        else:
            words[f"{flag}={dice.choice([*WORDS, *words[flag]])}"] = []
            words.pop(flag)
    return [word for flag, values in words.items() for word in (flag, *values)]


def _lists() -> list[list[str]]:
    dice = random.Random(20)
    recipes = [_recipe(path) for path in GOLDEN]
    flags = load("0.19")
    names = [name for name in flags.entries if not flags.get(name).needs]
    drawn = [_draw(dice, recipes, names) for _ in range(800)]
    for flag in names:  # every flag by itself, with anything
        known = flags.get(flag)
        drawn.append([flag])
        for pool in (WORDS, WORDS, [str(choice) for choice in known.choices] or ["1", "2"]):
            drawn.append([flag, *dice.choices(pool, k=dice.choice([1, 1, 1, 2, 3]))])
    return drawn


@pytest.mark.slow
def test_errors_are_exactly_what_the_real_parser_refuses(tmp_path):
    pytest.importorskip("megatron.core")
    cases = []
    for words in _lists():
        try:
            cases.append(parse(words, "here"))
        except UsageError:
            continue  # refused before it could reach a parser
    judged = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JUDGE],
        input=json.dumps([argv(arguments) for arguments in cases]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    verdicts = json.loads(judged.stdout.rpartition("VERDICTS")[2])
    ours = [
        not any(finding.severity == "error" for finding in check(arguments, "0.19"))
        for arguments in cases
    ]
    different = [
        (argv(arguments)[-12:], theirs, [f.message for f in check(arguments, "0.19")])
        for arguments, theirs, mine in zip(cases, verdicts, ours)
        if theirs != mine
    ]
    print(f"{len(cases)} lists, {sum(verdicts)} accepted, {len(different)} judged differently")
    assert different == []
    assert 0.2 < sum(verdicts) / len(cases) < 0.8


def test_a_catalogue_is_read_quickly():
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import yaml"], check=True)
    other = time.perf_counter() - started
    text = CATALOGUE / "0.19.json"
    started = time.perf_counter()
    json.loads(text.read_text(encoding="utf-8"))
    took = time.perf_counter() - started
    print(f"{took * 1e3:.1f} ms; a Python that imports yaml takes {other * 1e3:.0f} ms")
