"""The ordered set of Megatron arguments."""

from __future__ import annotations

import pytest

from launcher.config.arguments import argv, merge, parse, quote, value
from launcher.errors import UsageError


def test_parse_keeps_order_values_and_the_last_of_a_repeated_flag():
    found = parse(
        ["--b", "1", "2", "--a", "--b", "3", "--c=x=y", "--d", "-1", "--e", "-1e-3"], "here"
    )
    assert argv(found) == ["--a", "--b", "3", "--c", "x=y", "--d", "-1", "--e=-1e-3"]
    assert found["--b"].origin == "here"


def test_parse_refuses_a_word_without_a_flag():
    with pytest.raises(UsageError, match="'fast'"):
        parse(["fast", "--b"], "here")


def test_a_value_that_looks_like_a_flag_is_tied_to_its_own():
    assert argv(parse(["--a=--b", "--c=-x"], "here")) == ["--a=--b", "--c=-x"]


def test_merge_replaces_a_flag_with_all_its_values_in_its_place():
    merged = merge(parse(["--m", "x", "y", "--n"], "low"), parse(["--m", "z"], "high"))
    assert argv(merged) == ["--m", "z", "--n"]


@pytest.mark.parametrize(
    ("low", "high", "left"),
    [
        (["--train-samples", "9", "--lr-decay-samples", "8"], ["--train-iters", "5"], ["--train-iters", "5"]),
        (["--recompute-granularity", "full", "--recompute-method", "uniform"], ["--recompute-granularity", "selective"], ["--recompute-granularity", "selective"]),
        (["--num-virtual-stages-per-pipeline-rank", "4"], ["--pipeline-model-parallel-layout", "Et|L"], ["--pipeline-model-parallel-layout", "Et|L"]),
        (["--data-path", "a"], ["--mock-data"], ["--mock-data"]),
        (["--bf16"], ["--fp16"], ["--fp16"]),
    ],
)  # fmt: skip
def test_merge_drops_what_megatron_refuses_beside_the_new_flag(low, high, left):
    assert argv(merge(parse(low, "low"), parse(high, "high"))) == left


def test_merge_leaves_pairs_of_one_layer_to_megatron():
    words = ["--recompute-granularity", "full", "--recompute-method", "uniform"]
    assert argv(merge(parse(words, "one"))) == words


def test_value():
    found = parse(["--a", "1", "2", "--b"], "here")
    assert (value(found, "--a"), value(found, "--b"), value(found, "--c")) == ("1", None, None)


def test_quote_keeps_commas_together_for_bash_arrays():
    assert quote("99,1,0") == "'99,1,0'"
    assert quote("it's, two") == "'it'\"'\"'s, two'"
