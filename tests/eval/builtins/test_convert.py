"""JSON, TOML, XML."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.fromJSON "{\\"a\\":[1,2.5,null,true,\\"\\\\u00e9\\"]}" == { a = [ 1 2.5 null true "é" ]; }',
        'builtins.toJSON { b = 1.0; a = "x\\n"; } == "{\\"a\\":\\"x\\\\n\\",\\"b\\":1}"',
        'builtins.fromTOML "a = 1\\n[b.c]\\nd = [1.5, \\"x\\"]" == { a = 1; b.c.d = [ 1.5 "x" ]; }',
        'builtins.typeOf (builtins.fromJSON "99999999999999999999") == "float"',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('builtins.fromJSON "[1"', "JSON.*line 1"),
        ('builtins.fromJSON "NaN"', "JSON"),
        ('builtins.fromTOML "a = "', "error parsing TOML"),
        ('builtins.fromTOML "a = 1979-05-27"', "dates and times"),
        ("builtins.toJSON (x: x)", "function to JSON"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
