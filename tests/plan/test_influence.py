"""Every flag of every catalogue is modelled, without influence, or named where it is used."""

from __future__ import annotations

import re

import pytest

from launcher.config.arguments import parse
from launcher.config.releases import SUPPORTED
from launcher.plan import data, flags, influence, sheet
from launcher.plan.plan import Site, plan, too_full
from launcher.plan.rules import Case
from tests.plan.test_parameters import ROOT, words, world_size

JOB = "Mixtral-8x2B"


def planned(*further: str):
    arguments = parse([*words(JOB), *further], "test")
    return plan(Case(arguments, world_size(JOB), "0.19", gpu="H100"))


@pytest.mark.parametrize("release", SUPPORTED)
def test_every_flag_is_in_the_table(release):
    catalogue = flags.load(release)
    assert sorted(catalogue.entries.keys() - influence.table().keys()) == []


def test_the_table_has_no_flag_that_nobody_knows():
    known = {flag for release in SUPPORTED for flag in flags.load(release).entries}
    assert sorted(influence.table().keys() - known) == []


def test_every_line_says_why():
    for flag, lines in influence.table().items():
        assert all(line.values for line in lines[:-1]), f"{flag}: a line that nothing passes"
        for line in lines:
            assert line.influence in (influence.MODELLED, influence.NONE, influence.UNMODELLED)
            assert (line.spoils in influence.SPOILED) == (line.influence == influence.UNMODELLED)
            assert line.why or line.values, flag


def test_what_is_modelled_names_a_part_of_the_plan():
    for flag, lines in influence.table().items():
        for line in lines:
            if line.influence == influence.MODELLED:
                path, _, name = line.why.partition(": ")
                text = (ROOT / "launcher" / path).read_text(encoding="utf-8")
                assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE) or not name, flag


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ("--enable-hyper-connections", {"parameters", "memory", "FLOPs"}),
        ("--experimental-attention-variant dsv4_hybrid", {"parameters", "memory", "FLOPs"}),
        ("--moe-paged-stash", {"memory"}),
        ("--optimizer soap", {"memory"}),
        ("--fp4-format e2m1", {"memory"}),
        ("--optimizer sgd", set()),
        ("--optimizer muon", set()),
        ("--attention-backend unfused", set()),
        ("--attention-backend flash", set()),
        ("--log-progress", set()),
    ],
)
def test_no_number_that_a_flag_spoils(given, gone):
    made = planned(*given.split())
    assert made.shaped is not None
    assert made.shaped.unknown == gone
    site = Site("Mixtral-8x7B", 1, 8, "H100")
    lines = "\n".join(sheet.sheet(made.shaped, site))
    assert ("GiB" in lines) == ("memory" not in gone)
    assert ("GFLOP" in lines) == ("FLOPs" not in gone)
    assert ("parameters" in lines) == ("parameters" not in gone)
    told = data.as_data(made.shaped, site)
    assert (told["flops"] is None) == ("FLOPs" in gone)
    assert (told["parameters"] is None) == ("parameters" in gone)
    assert all(("memory" in stage) == ("memory" not in gone) for stage in told["stages"])
    said = [one.message for one in made.findings if one.rule == "influence"]
    assert bool(said) == bool(gone)
    if "memory" in gone:
        assert too_full(made.shaped, site) is None
        with pytest.raises(ValueError, match="not modelled"):
            _ = made.shaped.memory


def test_an_alias_means_its_flag():
    """argparse's other spellings of a flag spoil what the flag spoils."""
    others = [
        (flag, entry["alias"])
        for flag, entry in flags.load("0.19").entries.items()
        if "alias" in entry
    ]
    assert others
    for flag, meant in others:
        spoiled, _ = influence.unknown(parse([flag], "test"))
        expected, _ = influence.unknown(parse([meant], "test"))
        assert spoiled == expected, flag
