"""Strings."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.stringLength "héllo" == 6',
        'builtins.substring 3 (-1) "héllo" == "llo"',
        'builtins.substring 5 1 "abc" == ""',
        'builtins.replaceStrings [ "" "a" ] [ "x" "y" ] "abc" == "xaxbxcx"',
        'builtins.replaceStrings [ "a" ] [ (throw "unused") ] "b" == "b"',
        'builtins.replaceStrings [ "aa" "a" ] [ "1" "2" ] "aaa" == "12"',
        'toString [ 1 [ ] true null [ 2.5 "x" ] ] == "1 1  2.500000 x"',
        'map baseNameOf [ "/a/b/" "a" "/" "a//" ] == [ "b" "a" "" "" ]',
        'map dirOf [ "/a/b" "a" "/a" /a/b ] == [ "/a" "." "/" /a ]',
        'builtins.match "(a)?b" "b" == [ null ]',
        'builtins.split "(,)" "a,b" == [ "a" [ "," ] "b" ]',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('builtins.substring (-1) 1 "a"', "negative start"),
        ('builtins.replaceStrings [ "a" ] [ ] "a"', "different lengths"),
        ('builtins.concatStringsSep "," [ 1 ]', "cannot coerce an integer"),
        ("toString (x: x)", "cannot coerce a function"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
