"""Operators on values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tvix.eval import operators
from tvix.eval.errors import AssertionFailed, NixTypeError, UndefinedVariable
from tvix.eval.operators import equal, less_than
from tvix.eval.values import MAX_INT, MIN_INT, Attrs, Path, Thunk

FUNCTION = lambda x: x  # noqa: E731


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.0, True),
        (1, True, False),
        (None, None, True),
        (None, False, False),
        ("a", "a", True),
        ("/a", Path("/a"), False),
        ([1, [2]], [1, [Thunk(lambda: 2)]], True),
        ([1], [1, 2], False),
        (Attrs(a=1), Attrs(a=1.0), True),
        (Attrs(a=1), Attrs(b=1), False),
        (FUNCTION, FUNCTION, False),
        ([FUNCTION], [FUNCTION], True),
        (Attrs(type="derivation", outPath="x", n=1), Attrs(type="derivation", outPath="x", n=2), True),
        (Attrs(type="derivation", outPath="x"), Attrs(type="derivation", outPath="y"), False),
    ],
)
def test_equality(left: Any, right: Any, expected: bool) -> None:
    assert equal(left, right) is expected
    assert equal(right, left) is expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.5, True),
        ("a", "b", True),
        ("Z", "a", True),
        ("é", "z", False),
        (Path("/a"), Path("/b"), True),
        ([], [1], True),
        ([1, 2], [1, 3], True),
        ([2], [1, 9], False),
        ([1], [1], False),
    ],
)
def test_ordering(left: Any, right: Any, expected: bool) -> None:
    assert less_than(left, right) is expected


@pytest.mark.parametrize(("left", "right"), [(None, 1), (True, False), (Attrs(), Attrs()), ("a", 1), ([None], [1])])
def test_what_has_no_order(left: Any, right: Any) -> None:
    with pytest.raises(NixTypeError, match="cannot compare"):
        less_than(left, right)


def test_arithmetic_is_sixty_four_bits_and_errors_beyond() -> None:
    assert operators.add_numbers(1, 0.5) == 1.5
    assert operators.divide(-7, 2) == -3
    assert operators.divide(7, 2.0) == 3.5
    assert operators.subtract(MIN_INT, -1) == MIN_INT + 1
    overflows: list[tuple[Callable[[Any, Any], Any], int, int]] = [
        (operators.add_numbers, MAX_INT, 1),
        (operators.subtract, MIN_INT, 1),
        (operators.multiply, MAX_INT, 2),
        (operators.divide, MIN_INT, -1),
    ]
    for operation, left, right in overflows:
        with pytest.raises(NixTypeError, match="integer overflow"):
            operation(left, right)
    with pytest.raises(NixTypeError, match="division by zero"):
        operators.divide(1, 0)
    with pytest.raises(NixTypeError, match="a string while a number was expected"):
        operators.subtract("a", 1)


def test_update_and_concatenation_of_many() -> None:
    assert operators.update(Attrs(a=1), Attrs(b=1), Attrs(a=2)) == {"a": 2, "b": 1}
    assert operators.concatenate([1], [], [2, 3]) == [1, 2, 3]
    with pytest.raises(NixTypeError, match="an integer while a set was expected"):
        operators.update(Attrs(), 1)
    with pytest.raises(NixTypeError, match="a set while a list was expected"):
        operators.concatenate([], Attrs())


def test_formals_name_what_is_wrong() -> None:
    formals = operators.Formals(("name", False, "b", True), False, ())
    assert operators.match_formals(Attrs(name=1), formals) == {"name": 1}
    with pytest.raises(NixTypeError, match="without required argument 'name'"):
        operators.match_formals(Attrs(b=1), formals)
    with pytest.raises(NixTypeError, match="unexpected argument 'nmae'; did you mean 'name'"):
        operators.match_formals(Attrs(name=1, nmae=2), formals)
    with pytest.raises(NixTypeError, match="a list while a set"):
        operators.match_formals([], formals)


def test_with_looks_from_the_inside_out() -> None:
    assert operators.look_up_with("x", Attrs(), Thunk(lambda: Attrs(x=1))) == 1
    with pytest.raises(UndefinedVariable):
        operators.look_up_with("x", Attrs())
    with pytest.raises(NixTypeError):
        operators.look_up_with("x", 1)


def test_assertions_and_conditions() -> None:
    with pytest.raises(AssertionFailed, match="assertion 'x == 1' failed"):
        operators.assertion_failed("x == 1")
    with pytest.raises(NixTypeError, match="null while a Boolean"):
        operators.not_a_boolean(None)


def test_overrides_replace() -> None:
    assert operators.apply_overrides(Attrs(a=1, __overrides=Attrs(a=2)))["a"] == 2
