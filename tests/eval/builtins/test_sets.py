"""Sets."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.attrNames { b = 1; "é" = 2; a = 3; Z = 4; } == [ "Z" "a" "b" "é" ]',
        'builtins.listToAttrs [ { name = "a"; value = 1; } { name = "a"; value = 2; } ] == { a = 1; }',
        '(builtins.unsafeGetAttrPos "a" (builtins.listToAttrs [ { name = "a"; value = 1; } ])).column == 70',
        '(builtins.unsafeGetAttrPos "a" ({ a = 1; } // { a = 2; })).column == 49',
        'builtins.unsafeGetAttrPos "a" (builtins.mapAttrs (n: v: v) { a = 1; }) == null',
        "builtins.intersectAttrs { a = 1; b = 2; } { b = 3; c = 4; } == { b = 3; }",
        "builtins.zipAttrsWith (n: vs: vs) [ { a = 1; } { a = 2; b = 3; } ] == { a = [ 1 2 ]; b = [ 3 ]; }",
        "(builtins.mapAttrs (n: v: throw n) { a = 1; }) ? a",
        'removeAttrs { a = 1; b = 2; } [ "a" "c" ] == { b = 2; }',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('builtins.getAttr "ab" { abc = 1; }', "did you mean 'abc'"),
        ('builtins.listToAttrs [ { name = "a"; } ]', "'value' missing"),
        ("builtins.attrNames 1", "an integer while a set"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
