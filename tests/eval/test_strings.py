"""Coercion, concatenation, contexts."""

from __future__ import annotations

from typing import Any

import pytest

from tvix.eval.errors import EvalError, NixTypeError
from tvix.eval.strings import Strings, canonical_path, join, without_context
from tvix.eval.values import Attrs, Built, Opaque, Path, Thunk, context_of, with_context

A, B = Opaque("/nix/store/a"), Built("/nix/store/b.drv", "out")


def copy_path(path: str) -> str:
    return with_context(f"/nix/store/copied{path}", frozenset({A}))


STRINGS = Strings(copy_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (True, "1"),
        (False, ""),
        (12, "12"),
        (1.0, "1.000000"),
        ("s", "s"),
        ([1, [2, [], 3], "x"], "1 2 3 x"),
        ([[], 1], "1"),
        ([1, []], "1 "),
        (Attrs(outPath="p"), "p"),
        (Attrs(outPath="p", __toString=lambda self: "t"), "t"),
        (Attrs(outPath=Thunk(lambda: Attrs(outPath="deep"))), "deep"),
    ],
)
def test_what_to_string_accepts(value: Any, expected: str) -> None:
    assert STRINGS.coerce(value, more=True) == expected


@pytest.mark.parametrize("value", [None, True, 1, 1.5, [], Attrs(), lambda x: x])
def test_what_interpolation_refuses(value: Any) -> None:
    with pytest.raises(NixTypeError, match="cannot coerce"):
        STRINGS.interpolate("a", value)


def test_paths_are_copied_where_nix_copies_them() -> None:
    interpolated = STRINGS.interpolate("x", Path("/p"))
    assert interpolated == "x/nix/store/copied/p"
    assert context_of(interpolated) == {A}
    assert STRINGS.add("x", Path("/p")) == "x/nix/store/copied/p"
    assert STRINGS.add(Path("/p"), "/../q", "r") == Path("/qr")
    assert STRINGS.coerce(Path("/p"), copy=False) == "/p"


def test_contexts_are_joined() -> None:
    one, two = with_context("1", frozenset({A})), with_context("2", frozenset({B}))
    assert context_of(STRINGS.interpolate(one, "-", two)) == {A, B}
    assert context_of(STRINGS.add("a", one)) == {A}
    assert context_of(join(["a", "b"])) == frozenset()
    assert type(STRINGS.interpolate("a", "b")) is str


def test_what_may_not_refer_to_the_store() -> None:
    string = with_context("s", frozenset({A}))
    with pytest.raises(EvalError, match="not allowed to refer to a store path, in a name"):
        without_context(string, "in a name")
    with pytest.raises(EvalError, match="cannot be appended to a path"):
        STRINGS.append_to_path(Path("/p"), string)


def test_numbers_are_added_as_numbers() -> None:
    assert STRINGS.add(1, 2, 3.5) == 6.5
    with pytest.raises(NixTypeError):
        STRINGS.add(1, "2")
    with pytest.raises(NixTypeError):
        STRINGS.add("1", 2)


@pytest.mark.parametrize(
    ("text", "expected"), [("/a/./b//c/..", "/a/b"), ("/..", "/"), ("//a", "/a"), ("/", "/"), ("/a/", "/a")]
)
def test_canonical_paths(text: str, expected: str) -> None:
    assert canonical_path(text) == expected
