"""Types."""

from __future__ import annotations

import pytest

from tests.eval.support import shown


@pytest.mark.parametrize(
    "text",
    [
        'map builtins.typeOf [ 1 1.0 "a" /a null true [ ] { } (x: x) map ] == [ "int" "float" "string" '
        '"path" "null" "bool" "list" "set" "lambda" "lambda" ]',
        "builtins.isFunction map && !(builtins.isFunction { __functor = x: x; })",
        "builtins.isString (toString /a) && builtins.isPath /a",
        "builtins.lessThan 1 1.5",
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"
