"""Attribute paths."""

from __future__ import annotations

import pytest

from tvix.eval.attribute_path import parse_attribute_path
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    ("text", "names"),
    [("", []), ("a", ["a"]), ("a.b.0", ["a", "b", "0"]), ('a."b.c".d', ["a", "b.c", "d"]), ('""', [""])],
)
def test_names_are_separated_by_dots(text: str, names: list[str]) -> None:
    assert parse_attribute_path(text) == names


def test_an_open_quote_is_an_error() -> None:
    with pytest.raises(EvalError, match="closing quote"):
        parse_attribute_path('a."b')
