"""Control."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.tryEval (throw "a") == { success = false; value = false; }',
        "(builtins.tryEval (assert false; 1)).success == false",
        '(builtins.tryEval { a = throw "x"; }).success',
        'builtins.seq [ (throw "unused") ] true',
        "builtins.deepSeq { a = [ 1 ]; } true",
        'builtins.trace "x" true && builtins.warn "x" true && builtins.break true && builtins.traceVerbose '
        '(throw "unused") true',
        "let x = { a = x; }; in builtins.deepSeq x true",
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('builtins.tryEval (abort "now")', "now"),
        ("builtins.tryEval (1 + { })", "cannot|while|coerce"),
        ('builtins.deepSeq { a = [ (throw "deep") ]; } 1', "deep"),
        ('builtins.seq (throw "shallow") 1', "shallow"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
