"""Arithmetic."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        "builtins.div (-7) 2 == -3",
        "builtins.bitAnd 12 10 == 8 && builtins.bitOr 12 10 == 14 && builtins.bitXor 12 10 == 6",
        "builtins.ceil 1.2 == 2 && builtins.floor (-1.5) == -2 && builtins.ceil 3 == 3",
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builtins.div 1 0", "division by zero"),
        ("9223372036854775807 + 1", "overflow"),
        ("builtins.mul 9223372036854775807 2", "overflow"),
        ("builtins.bitAnd 1.0 1", "a float while an integer"),
        ('builtins.floor "a"', "a string while a float"),
        ("builtins.ceil 1.0e30", "does not fit"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
