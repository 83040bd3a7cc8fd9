"""Emitted code: what it computes, and what it does not compute."""

from __future__ import annotations

import ast
from functools import reduce
from typing import Any

import pytest

from tvix.eval import operators, values
from tvix.eval.compiler import compile_tree, to_code
from tvix.eval.errors import MissingAttribute, NixTypeError, UndefinedVariable
from tvix.eval.parser import parse
from tvix.eval.runtime import ENTRY
from tvix.eval.source import Source
from tvix.eval.stack import run_with_large_stack
from tvix.eval.values import Attrs, PositionTable, Thunk, force

GLOBALS = frozenset({"true", "false", "null", "builtins", "fail", "__sub", "__mul", "__div", "__lessThan"})


def fail(message: Any) -> Any:
    raise NixTypeError(str(force(message)))


NAMESPACE: dict[str, Any] = {
    **{name: getattr(operators, name) for name in dir(operators) if not name.startswith("_")},
    **{name: getattr(values, name) for name in dir(values) if not name.startswith("_")},
    "add": lambda *operands: reduce(operators.add_numbers, operands),
    "add_one": operators.add_numbers,
    "interpolate": lambda *parts: "".join(parts),
    "attribute_name": lambda value: value,
    "make_formals": operators.Formals,
    "make_positions": lambda flat: PositionTable("«test»", flat),
    "B_fail": fail,
    "D_fail": fail,
}


def module_of(text: str) -> ast.Module:
    source = Source(text, "«test»", "/")
    return compile_tree(parse(source), source, globals_=GLOBALS, saturated={"fail": "s"})


def evaluate(text: str) -> Any:
    namespace = dict(NAMESPACE)
    exec(to_code(module_of(text), Source(text, "«test»", "/")), namespace)
    return deep(namespace[ENTRY]())


def deep(value: Any) -> Any:
    value = force(value)
    if isinstance(value, list):
        return [deep(item) for item in value]
    if isinstance(value, Attrs):
        return {name: deep(item) for name, item in value.items()}
    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("let a = b; b = 1; in a", 1),
        ("let xs = [ y ]; y = 1; in xs", [1]),
        ("let x = 1; in let x = 2; in x", 2),
        ("let x = 1; in (let x = 2; in x) + x", 3),
        ("(x: y: x - y) 5 3", 2),
        ("({ a, b ? a + 1, ... }@all: [ a b (all ? c) ]) { a = 1; c = 2; }", [1, 2, True]),
        ("({ a ? b, b ? 2 }: a) { }", 2),
        ("rec { a = 1; b = a + c; c = 2; }", {"a": 1, "b": 3, "c": 2}),
        ("rec { a = 1; b = { inherit a; }; }.b.a", 1),
        ("let s = { a = 1; }; in { inherit (s) a; }", {"a": 1}),
        ("let inherit (s) a; s = { a = 1; }; in a", 1),
        ("with { x = 1; y = 1; }; with { x = 2; }; [ x y ]", [2, 1]),
        ("let x = 1; in with { x = 2; }; x", 1),
        ("with { true = 1; }; true", True),
        ("let true = 1; in true", 1),
        ("if 1 < 2 && !(2 <= 1) then 1 else 2", 1),
        ("(if true then { a = 1; } else { }).a or 2", 1),
        ("{ }.a.b or 2", 2),
        ("{ a.b = 1; } ? a.b && !({ a = 1; } ? a.b)", True),
        ("let n = \"x\"; in { ${n} = 1; }.${n}", 1),
        ("{ ${null} = 1; }", {}),
        ("let { a = 1; body = a; }", 1),
        ("false -> fail 1", True),
        ("true || fail 1", True),
        ("assert 1 == 1; 2", 2),
        ("{ a = 1; } // { b = 2; } // { a = 3; }", {"a": 3, "b": 2}),
        ("[ 1 ] ++ [ 2 ] ++ [ 3 ]", [1, 2, 3]),
        ("1 + 2 + 3 - 4 * 5", -14),
        ("-(1) + 2", 1),
        ("let __sub = a: b: 42; in 1 - 2", 42),
        ("let __lessThan = a: b: true; in 2 < 1", True),
        ("rec { a = 1; b = a; __overrides = { a = 5; }; }.b", 5),
        ("\"a${\"b\"}c\"", "abc"),
        ("(x: x + 1) <| 1", 2),
        ("1 |> (x: x + 1)", 2),
        ("let f = n: if n == 0 then 0 else f (n - 1); in f 50", 0),
        ("null == null", True),
        ("\"a\" != \"b\"", True),
    ],
)  # fmt: skip
def test_values(text: str, expected: Any) -> None:
    NAMESPACE["add_dynamic"] = add_dynamic
    assert evaluate(text) == expected


def add_dynamic(attrs: Attrs, *pairs: Any) -> Attrs:
    made = Attrs(attrs)
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if name is not None:
            made[name] = value
    return made


@pytest.mark.parametrize(
    "text",
    ["(x: 1) (fail 1)", "let a = fail 1; in 1", "{ a = fail 1; b = 2; }.b", "if true then 1 else fail 1",
     "with fail 1; 1", "({ a ? fail 1 }: 1) { }", "rec { a = fail 1; b = 1; }.b", "{ a = 1; }.a or (fail 1)"],
)  # fmt: skip
def test_what_is_not_needed_is_not_computed(text: str) -> None:
    assert evaluate(text) in (1, 2)


def test_variables_constants_and_functions_make_no_thunk() -> None:
    emitted = ast.unparse(ast.fix_missing_locations(module_of('x: { a = x; b = 1; c = "s"; d = y: y; e = [ x ]; }')))
    assert "Thunk(" not in emitted


def test_positions_are_those_of_the_source() -> None:
    namespace = dict(NAMESPACE)
    text = "let\n  a = { };\nin\n  a.b"
    exec(to_code(module_of(text), Source(text, "here.nix", "/")), namespace)
    with pytest.raises(MissingAttribute) as caught:
        namespace[ENTRY]()
    frames = []
    traceback = caught.value.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    assert ("here.nix", 4) in frames


def test_an_undefined_variable_is_found_before_anything_runs() -> None:
    with pytest.raises(UndefinedVariable, match="undefined variable 'y'") as caught:
        module_of("x: if true then x else\n  y")
    assert str(caught.value.position) == "«test»:2:3"


def test_deep_nesting_compiles() -> None:
    assert run_with_large_stack(lambda: evaluate("x: " * 200 + "1")) is not None
    assert run_with_large_stack(lambda: evaluate("1" + " + 1" * 5000)) == 5001
    assert len(run_with_large_stack(lambda: evaluate("[ 1 ]" + " ++ [ 1 ]" * 1000))) == 1001


def test_thunks_are_what_later_code_gets() -> None:
    namespace = dict(NAMESPACE)
    text = "{ a = 1 + 1; }"
    exec(to_code(module_of(text), Source(text, "x", "/")), namespace)
    result = namespace[ENTRY]()
    assert isinstance(result["a"], Thunk)
    assert force(result["a"]) == 2
