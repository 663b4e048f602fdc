"""Known faults of releases: each is told of where it strikes, and nowhere else."""

from __future__ import annotations

import re

import pytest

from launcher.config.arguments import merge, parse
from launcher.config.releases import SUPPORTED
from launcher.plan import flags
from launcher.plan.rules import Case, check
from launcher.plan.rules.faults import known
from tests.plan.test_rules import GOOD

SIZES = {
    "TP": "--tensor-model-parallel-size",
    "PP": "--pipeline-model-parallel-size",
    "CP": "--context-parallel-size",
    "EP": "--expert-model-parallel-size",
    "ETP": "--expert-tensor-parallel-size",
    "MBS": "--micro-batch-size",
    "EDP": "--expert-model-parallel-size",  # as large as the stage's ranks
    "MTP": "--mtp-num-layers",
    "KV": "--num-query-groups",
}
FAULTS = {f"{fault.request} {fault.when}": fault for fault in known()}


def struck(when: str) -> list[str]:
    """Arguments that meet a condition."""
    words: list[str] = ["--tensor-model-parallel-size", "2", "--context-parallel-size", "1"]
    for word in when.split():
        left, sign, right = re.fullmatch(r"(!?--[\w-]+|[A-Z]+)(?:(!=|[=<>])(\w+))?", word).groups()
        if left.startswith("!"):
            continue
        if left.startswith("--") and sign is None:
            known_flag = flags.load("0.19").get(left) or flags.load("dev").get(left)
            words += [left] if known_flag.switch is not None else [left, "2"]
        else:
            number = {"KV": "1", "ETP": "1"}.get(left, "2") if sign != "=" else right
            number = "32" if left == "EDP" else number
            words += [SIZES.get(left, left), number]
    return words


def faults_of(release: str, words: list[str], without: tuple[str, ...] = ()) -> list[str]:
    arguments = merge(parse(GOOD.split(), "test"), parse(words, "test"))
    arguments = {flag: one for flag, one in arguments.items() if flag not in without}
    found = check(Case(arguments, 64, release))
    return [one.message for one in found if one.rule == "faults.known_faults"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_of_until_the_release_that_fixed_it(name):
    fault = FAULTS[name]
    without = tuple(word[1:] for word in fault.when.split() if word.startswith("!"))
    for release in SUPPORTED:
        said = faults_of(release, struck(fault.when), without)
        told = any(
            f"#{fault.request}, {fault.commit}" in line and fault.what in line for line in said
        )
        assert told == fault.is_in(release), (release, said)


def test_there_are_enough_and_each_is_complete():
    assert len({fault.request for fault in known()}) >= 25
    for fault in known():
        assert re.fullmatch(r"\d{4}", fault.request)
        assert re.fullmatch(r"[0-9a-f]{10}", fault.commit)
        assert fault.fixed in ("", *SUPPORTED[1:-1])
        assert fault.dev in ("yes", "no")
        assert all(
            word.lstrip("!").split("=")[0].split(">")[0] in flags.load("dev").entries
            or word.lstrip("!").split("=")[0].split(">")[0] in flags.load("0.19").entries
            for word in fault.when.split()
            if "--" in word
        )


def test_a_job_without_the_cause_hears_nothing():
    assert faults_of("0.19", []) == []
