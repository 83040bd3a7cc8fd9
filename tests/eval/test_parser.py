"""The syntax tree: precedence, merging of attribute paths, indented strings, errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.eval import nodes
from tvix.eval.errors import NixSyntaxError
from tvix.eval.nodes import AttrSet, Binary, Call, HasAttr, Int, Lambda, Negate, Not, Select, Str, Var
from tvix.eval.parser import parse
from tvix.eval.source import Source


def tree(text: str) -> nodes.Expr:
    return parse(Source(text, "«test»", "/"))


def shape(node: nodes.Expr) -> str:
    """Write a tree with all its parentheses."""
    match node:
        case Binary():
            return f"({shape(node.left)} {node.operator} {shape(node.right)})"
        case Not():
            return f"(! {shape(node.operand)})"
        case Negate():
            return f"(- {shape(node.operand)})"
        case Call():
            return f"({' '.join(map(shape, [node.function, *node.arguments]))})"
        case HasAttr():
            return f"({shape(node.subject)} ? {'.'.join(map(str, node.path))})"
        case Select():
            default = f" or {shape(node.default)}" if node.default is not None else ""
            return f"({shape(node.subject)}.{'.'.join(map(str, node.path))}{default})"
        case Var():
            return node.name
        case Int():
            return str(node.value)
        case Lambda():
            return f"({node.parameter}: {shape(node.body)})"
    return type(node).__name__


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b * c", "(a + (b * c))"),
        ("a - b - c", "((a - b) - c)"),
        ("a ++ b ++ c", "(a ++ (b ++ c))"),
        ("a // b // c", "(a // (b // c))"),
        ("!a == b", "((! a) == b)"),
        ("!a + b", "(! (a + b))"),
        ("!a ? b", "(! (a ? b))"),
        ("-a * b", "((- a) * b)"),
        ("- -a", "(- (- a))"),
        ("a -> b -> c", "(a -> (b -> c))"),
        ("a || b && c", "(a || (b && c))"),
        ("a < b == c", "((a < b) == c)"),
        ("f a.b c or d", "(f (a.b) (c or) d)"),
        ("f a.b or c d", "(f (a.b or c) d)"),
        ("a.b or c.d", "(a.b or (c.d))"),
        ("x: x + 1", "(x: (x + 1))"),
        ("f -1", "(f - 1)"),
        ("a |> f |> g", "((a |> f) |> g)"),
        ("g <| f <| a", "(g <| (f <| a))"),
    ],
)
def test_precedence(text: str, expected: str) -> None:
    assert shape(tree(text)) == expected


def test_attribute_paths_are_unfolded_and_merged() -> None:
    outer = tree("{ a.b = 1; a = { c = 2; inherit (s) d; }; a.e.f = 3; }")
    assert isinstance(outer, AttrSet)
    inner = outer.bindings["a"].value
    assert isinstance(inner, AttrSet)
    assert list(inner.bindings) == ["b", "c", "d", "e"]
    assert inner.bindings["d"].inherit_from == 0


@pytest.mark.parametrize(
    "text",
    ["{ a = 1; a = 2; }", "{ a.b = 1; a.b = 2; }", "{ a = 1; a.b = 2; }", "{ a = x; a = { }; }",
     "{ inherit a; a = 1; }", "{ inherit a a; }", "{ inherit a; a.b = 1; }"],
)  # fmt: skip
def test_attributes_bound_twice_are_refused(text: str) -> None:
    with pytest.raises(NixSyntaxError, match="already defined at «test»:1:"):
        tree(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("''\n  a\n    b\n  ''", "a\n  b\n"),
        ("''\n  a\n\n  b''", "a\n\nb"),
        ("''  a''", "a"),
        ("''\n\ta''", "\ta"),
        ("''\n  ''\\ta\n    b''", "\ta\n  b"),
        ("''   ''", ""),
        ("''\n''", ""),
        ("''a\n  ''", "a\n"),
    ],
)
def test_indentation_is_stripped(text: str, expected: str) -> None:
    node = tree(text)
    assert isinstance(node, Str)
    assert "".join(str(part) for part in node.parts) == expected


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a b:", (1, 4), "unexpected ':'"),
        ("{ a = 1 }", (1, 9), "expecting ';'"),
        ("let a = 1;", (1, 11), "unexpected end of file"),
        ("[ 1, 2 ]", (1, 4), "unexpected ','"),
        ("\n  if a then b", (2, 14), "expecting 'else'"),
        ("{ a, a }: a", (1, 6), "duplicate formal function argument 'a'"),
        ("{ a }@a: a", (1, 3), "duplicate formal"),
        ("let ${a} = 1; in 2", (1, 5), "dynamic attributes not allowed in let"),
        ("{ inherit ${a}; }", (1, 11), "dynamic attributes not allowed in inherit"),
        ("a == b == c", (1, 8), "unexpected '=='"),
        ("99999999999999999999", (1, 1), "invalid integer"),
        (")", (1, 1), "unexpected '\\)'"),
    ],
)
def test_errors_name_place_and_cause(text: str, place: tuple[int, int], reason: str) -> None:
    with pytest.raises(NixSyntaxError, match=reason) as caught:
        tree(text)
    position = caught.value.position
    assert position is not None
    assert (position.line, position.column) == place


@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "b",
                "1",
                "+",
                "-",
                "!",
                "(",
                ")",
                "{",
                "}",
                "[",
                "]",
                ";",
                "=",
                ".",
                "?",
                ":",
                ",",
                "@",
                "let",
                "in",
                "rec",
                "if",
                "then",
                "else",
                "or",
                '"',
                "''",
            ]
        )
    )
)
def test_any_tokens_are_a_tree_or_a_syntax_error(words: list[str]) -> None:
    try:
        tree(" ".join(words))
    except NixSyntaxError as error:
        assert error.position is not None  # noqa: PT017
