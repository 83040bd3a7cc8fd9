"""POSIX extended regular expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.eval.errors import EvalError
from tvix.eval.regexes import any_of, match, split


@pytest.mark.parametrize(
    ("pattern", "text", "groups"),
    [
        ("a(b)?c", "ac", (None,)),
        ("a(b)?c", "abc", ("b",)),
        ("a", "ab", None),
        ("(a|ab)(c|bcd)(d*)", "abcd", ("a", "bcd", "")),
        ("[[:space:]]*([^[:space:]]+)[[:space:]]*", " x ", ("x",)),
        ("a.c", "a\nc", ()),
        ("[]a]+", "]a", ()),
        ("[a\\]+", "a\\", ()),
        ("a**", "aaa", ()),
        ("a+?", "aa", ()),
        ("h..", "hé", ()),
        ("[[:ALPHA:]]", "a", ()),
        ("^a$", "a", ()),
    ],
)
def test_matches_are_of_the_whole_text(pattern: str, text: str, groups: tuple[str | None, ...] | None) -> None:
    assert match(pattern, text) == groups


@pytest.mark.parametrize("pattern", ["(", ")", "[", "*", "a{2,1}", "[[:foo:]]", "\\d", "[z-a]", "a|*b", "{", "[a-z-9]"])
def test_bad_patterns_are_errors_that_show_them(pattern: str) -> None:
    with pytest.raises(EvalError, match=re.escape(pattern)):
        match(pattern, "a")


@pytest.mark.parametrize(
    ("pattern", "text", "parts"),
    [
        (",", "a,b", ["a", (), "b"]),
        ("(a|ab)", "abab", ["", ("ab",), "", ("ab",), ""]),
        ("", "ab", ["", (), "a", (), "b", (), ""]),
        ("(x)|y", "axbyc", ["a", ("x",), "b", (None,), "c"]),
        ("^a", "aa", ["", (), "a"]),
        ("é", "aéb", ["a", (), "b"]),
    ],
)
def test_splits_take_the_leftmost_longest(pattern: str, text: str, parts: list[object]) -> None:
    assert list(split(pattern, text)) == parts


@given(st.text(alphabet="ab]-^é\\", min_size=1, max_size=5))
def test_any_text_matches_itself_escaped(text: str) -> None:
    escaped = "".join(f"\\{character}" if character in "^\\" else character for character in text)
    assert match(escaped, text) == ()


def test_any_of_prefers_the_first() -> None:
    assert any_of(("a", "ab")).findall("abab") == ["a", "a"]
