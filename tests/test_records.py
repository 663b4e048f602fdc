"""Records are dataclasses in all that matters."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from launcher.records import dataclass


@dataclass(frozen=True)
class Base:
    """Two fields."""

    one: int
    two: tuple[int, ...] = ()


@dataclass(frozen=True)
class Child(Base):
    """A third, which does not count."""

    three: list[int] = dataclasses.field(default_factory=list, compare=False)


def test_construction_equality_hash_and_representation():
    assert Base(1) == Base(one=1, two=()) == Base(1, two=())
    assert Base(1) != Base(2)
    assert hash(Base(1)) == hash(Base(1, ()))
    assert Child(1, (2,), [3]) == Child(1, (2,), [4])
    assert Child(1) != Base(1)
    assert Child(1).three is not Child(1).three
    assert repr(Child(1)) == "Child(one=1, two=(), three=[])"
    assert dataclasses.replace(Child(1), one=5).one == 5
    assert dataclasses.asdict(Base(1)) == {"one": 1, "two": ()}
    assert pickle.loads(pickle.dumps(Base(1, (2,)))) == Base(1, (2,))


@pytest.mark.parametrize(
    ("given", "named"),
    [((), {}), ((1, (), 3), {}), ((1,), {"one": 2}), ((1,), {"four": 4}), ((1, ()), {"two": ()})],
)
def test_wrong_arguments(given, named):
    with pytest.raises(TypeError):
        Base(*given, **named)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Base(1).one = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del Base(1).one
