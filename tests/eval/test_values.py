"""Thunks, sets, contexts."""

from __future__ import annotations

import pytest

from tvix.eval.errors import InfiniteRecursion, MissingAttribute, NixTypeError, Position
from tvix.eval.values import (
    Attrs,
    Opaque,
    PositionTable,
    Thunk,
    context_of,
    find_position,
    force,
    new_set,
    positions_of,
    type_name,
    with_context,
)


def test_a_thunk_is_computed_once() -> None:
    computed: list[int] = []

    def compute() -> int:
        computed.append(1)
        return 7

    thunk = Thunk(compute)
    assert [force(thunk), force(thunk)] == [7, 7]
    assert computed == [1]


def test_a_thunk_that_needs_itself_is_an_error_each_time() -> None:
    thunks: list[Thunk] = []
    thunks.append(Thunk(lambda: force(thunks[0])))
    for _ in range(2):
        with pytest.raises(InfiniteRecursion):
            force(thunks[0])


def test_a_failure_is_not_remembered_as_recursion() -> None:
    thunk = Thunk(lambda: Attrs()["x"])
    for _ in range(2):
        with pytest.raises(MissingAttribute):
            force(thunk)


def test_missing_attributes_suggest_near_names() -> None:
    with pytest.raises(MissingAttribute, match="attribute 'nmae' missing; did you mean 'name'\\?"):
        Attrs({"name": 1, "other": 2})["nmae"]


def test_a_set_with_a_functor_is_called() -> None:
    functor = Attrs({"__functor": lambda self: lambda argument: (force(self)["n"], argument), "n": 3})
    assert functor(4) == (3, 4)
    with pytest.raises(NixTypeError, match="not a function but a set"):
        Attrs()(1)


def test_contexts_stay_with_strings_that_have_one() -> None:
    context = frozenset({Opaque("/nix/store/x")})
    string = with_context("a", context)
    assert string == "a"
    assert context_of(string) == context
    assert type(with_context("a", frozenset())) is str
    assert context_of("a") == frozenset()


def test_positions_follow_attributes_through_updates() -> None:
    left = PositionTable("l.nix", ("a", 1, 2, "b", 3, 4))
    right = PositionTable("r.nix", ("b", 5, 6))
    both = (left, right)
    assert find_position(both, "a") == Position("l.nix", 1, 2)
    assert find_position(both, "b") == Position("r.nix", 5, 6)
    assert find_position(both, "c") is None
    assert positions_of(new_set({"a": 1}, left)) is left
    assert positions_of(Attrs()) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "bool"), (1, "int"), (1.0, "float"), ("", "string"), ([], "list"), (Attrs(), "set")],
)
def test_type_names(value: object, name: str) -> None:
    assert type_name(value) == name
    assert type_name(lambda x: x) == "lambda"
