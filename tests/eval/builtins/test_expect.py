"""Checks of arguments."""

from __future__ import annotations

import pytest

from tvix.eval.builtins import expect
from tvix.eval.errors import NixTypeError
from tvix.eval.values import Attrs


def test_values_of_the_type_pass() -> None:
    assert expect.expect_list([1], "x") == [1]
    assert expect.expect_set(Attrs(), "x") == {}
    assert expect.expect_int(1, "x") == 1
    assert expect.expect_text("a", "x") == "a"
    assert expect.expect_bool(True, "x") is True
    assert expect.expect_function(len, "x") is len
    functor = Attrs(__functor=len)
    assert expect.expect_function(functor, "x") is functor


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (expect.expect_int, True, "a Boolean while an integer was expected, in here"),
        (expect.expect_bool, 1, "an integer while a Boolean"),
        (expect.expect_list, Attrs(), "a set while a list"),
        (expect.expect_set, None, "null while a set"),
        (expect.expect_text, 1.0, "a float while a string"),
        (expect.expect_function, Attrs(), "a set while a function"),
        (expect.expect_function, None, "null while a function"),
    ],
)
def test_others_are_named(check: object, value: object, message: str) -> None:
    with pytest.raises(NixTypeError, match=message):
        check(value, "here")  # type: ignore[operator]
