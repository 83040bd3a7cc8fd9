"""Functions."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        "builtins.functionArgs ({ a, b ? 1, ... }: a) == { a = false; b = true; }",
        "builtins.functionArgs (x: x) == { } && builtins.functionArgs map == { }",
        '(builtins.unsafeGetAttrPos "a" (builtins.functionArgs ({ b, a ? 2 }: a))).column == 61',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builtins.functionArgs 1", "a function was expected"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
