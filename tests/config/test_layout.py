"""Layout strings and layer patterns."""

from __future__ import annotations

import pytest

from launcher.config.layout import balanced, expand, layer_pattern, uneven_fits


@pytest.mark.parametrize(
    ("text", "chunks", "layers", "first", "last"),
    [
        ("Et|(tt|)*30mL", 32, 61, "Et", "mL"),
        ("Et*4|(tttt|)*14tmL", 16, 61, "Etttt", "tmL"),
        ("Et*2|(tt|)*22t|(tt|)*7mL", 32, 61, "Ett", "mL"),
        ("Et|t|(tt|)*29tL", 32, 61, "Et", "tL"),
        ("E,t|t*2,L", 2, 3, "Et", "ttL"),
    ],
)
def test_expand(text, chunks, layers, first, last):
    parts = expand(text)
    assert (len(parts), sum(part.count("t") for part in parts)) == (chunks, layers)
    assert (parts[0], parts[-1]) == (first, last)


def test_expand_refuses_open_groups():
    with pytest.raises(ValueError, match="unbalanced"):
        expand("Et|(tt|L")


@pytest.mark.parametrize("layers", range(16, 70))
@pytest.mark.parametrize("mtp", [0, 1])
def test_balanced_holds_every_layer_once_and_is_even(layers, mtp):
    parts = expand(balanced(layers, 16, mtp))
    sizes = [part.count("t") for part in parts]
    assert (len(parts), sum(sizes)) == (16, layers)
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes), "the loss makes the last chunk the heaviest"
    assert parts[0].startswith("E")
    assert parts[-1].endswith("m" * mtp + "L")


def test_uneven_fits():
    assert uneven_fits(61, 16, 1, 4, 1)
    assert not uneven_fits(61, 8, 1, 4, 1)
    assert not uneven_fits(61, 4, 4, 4, 1), "the last stage has fewer layers than chunks"
    assert uneven_fits(14, 4, 1, 2, 2)
    assert uneven_fits(3, 2, 1, 2, 1)


def test_layer_pattern():
    assert layer_pattern("([0]*3+[1]*58)", 61) == [0] * 3 + [1] * 58
    assert layer_pattern("2", 4) == [1, 0, 1, 0]
    for bad in ("'([0]*1+[1]*60)'", "__import__('os')", "[0]*"):
        with pytest.raises(ValueError, match="layer pattern"):
            layer_pattern(bad, 61)
