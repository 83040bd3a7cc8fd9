"""Tokens: the longest match, strings, paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.eval.errors import NixSyntaxError
from tvix.eval.lexer import tokenize
from tvix.eval.source import Source


def kinds(text: str) -> list[str]:
    return [token.kind for token in tokenize(Source(text, "«test»", "/"))][:-1]


def texts(text: str) -> list[str]:
    return [token.text for token in tokenize(Source(text, "«test»", "/"))][:-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e10", ["int", "id"]),
        ("1.e10", ["float"]),
        (".5", ["float"]),
        ("1/0", ["path_start", "text", "path_end"]),
        ("a/b", ["path_start", "text", "path_end"]),
        ("a / b", ["id", "/", "id"]),
        ("a//b", ["id", "//", "id"]),
        ("x:x", ["uri"]),
        ("x: x", ["id", ":", "id"]),
        ("<a/b>", ["spath"]),
        ("a <b", ["id", "<", "id"]),
        ("a'b-c", ["id"]),
        ("...", ["..."]),
        ("a.b", ["id", ".", "id"]),
        ("if or", ["if", "or"]),
        ("/* a **/ 1 # b", ["int"]),
        ("~/x", ["path_start", "text", "path_end"]),
        ("./a${b}c/d", ["path_start", "text", "${", "id", "}", "text", "path_end"]),
        ("./${b}", ["path_start", "text", "${", "id", "}", "path_end"]),
        (
            '"a${"b${c}"}"',
            ["string_start", "text", "${", "string_start", "text", "${", "id", "}", "string_end", "}", "string_end"],
        ),
        ('"${{}}"', ["string_start", "${", "{", "}", "}", "string_end"]),
    ],
)  # fmt: skip
def test_kinds(text: str, expected: list[str]) -> None:
    assert kinds(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"a\n\t\\\"\q"', 'a\n\t\\"q'),
        ('"$${a}"', "$${a}"),
        ('"$"', "$"),
        ('"a$$"', "a$$"),
        (r'"\${a}"', "${a}"),
        ('"a\r\nb\rc"', "a\nb\nc"),
    ],
)
def test_string_text(text: str, value: str) -> None:
    assert texts(text)[1:-1] == [value]


def test_indented_escapes() -> None:
    assert texts("''a ''${b} ''' ''\\n $${c} '${d}''")[1:-1] == [
        "a ", "$", "{b} ", "''", " ", "\n", " $${c} ", "'", "${", "d", "}",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['"a', "''a", '"${a', "./a/", "./${a}/", "a & b", "^"])
def test_what_is_no_token_is_an_error_with_a_place(text: str) -> None:
    with pytest.raises(NixSyntaxError) as caught:
        tokenize(Source(text, "«test»", "/"))
    assert caught.value.position is not None


@given(st.text(alphabet="ab1.+-/\"'$ {}\\\n<>~:", max_size=30))
def test_any_text_is_tokens_or_a_syntax_error(text: str) -> None:
    try:
        tokens = tokenize(Source(text, "«test»", "/"))
    except NixSyntaxError:
        return
    assert tokens[-1].kind == "eof"
    assert [token.at for token in tokens] == sorted(token.at for token in tokens)
