"""Lists."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        "builtins.sort (a: b: a.k < b.k) [ { k = 1; v = 1; } { k = 0; v = 2; } { k = 1; v = 3; } ] == [ { "
        "k = 0; v = 2; } { k = 1; v = 1; } { k = 1; v = 3; } ]",
        "builtins.length (builtins.sort (a: b: true) [ 3 1 2 5 4 ]) == 5",
        'builtins.foldl\' (a: b: b) (throw "unused") [ 1 ] == 1',
        'builtins.elem (throw "unused") [ ] == false',
        'builtins.length (map (throw "unused") [ 1 2 ]) == 2',
        'builtins.groupBy (x: if x > 1 then "b" else "a") [ 1 2 3 ] == { a = [ 1 ]; b = [ 2 3 ]; }',
        "map (x: x.key) (builtins.genericClosure { startSet = [ { key = 1; } ]; operator = x: if x.key < 4 "
        "then [ { key = x.key + 1; } { key = 1.0; } ] else [ ]; }) == [ 1 2 3 4 ]",
        "builtins.length (builtins.genericClosure { startSet = builtins.genList (n: { key = n; }) 20000; "
        "operator = x: [ { key = 0; } ]; }) == 20000",
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builtins.elemAt [ 1 ] 1", "index 1 is out of bounds"),
        ("builtins.head [ ]", "empty"),
        ("builtins.tail [ ]", "empty"),
        ("builtins.genList (x: x) (-1)", "-1"),
        ("builtins.filter (x: 1) [ 1 ]", "a Boolean"),
        (
            'builtins.genericClosure { startSet = [ { key = 1; } { key = "a"; } ]; operator = x: [ ]; }',
            "cannot compare an integer with a string",
        ),
        ("builtins.genericClosure { startSet = [ { } ]; operator = x: [ ]; }", "'key' required"),
        ("builtins.concatLists [ 1 ]", "a list was expected"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
