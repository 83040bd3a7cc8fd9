"""Hashes."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.hashString "md5" "a" == "0cc175b9c0f1b6a831c399e269772661"',
        'builtins.convertHash { hash = builtins.hashString "md5" "a"; hashAlgo = "md5"; toHashFormat = '
        '"sri"; } == "md5-DMF1ucDxtqgxw5niaXcmYQ=="',
        'builtins.convertHash { hash = "md5-DMF1ucDxtqgxw5niaXcmYQ=="; toHashFormat = "base16"; } == '
        '"0cc175b9c0f1b6a831c399e269772661"',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('builtins.hashString "crc" "a"', "unknown hash algorithm 'crc'"),
        ('builtins.convertHash { hash = "zz"; hashAlgo = "md5"; toHashFormat = "sri"; }', "zz"),
        ('builtins.convertHash { hash = "md5-DMF1ucDxtqgxw5niaXcmYQ=="; toHashFormat = "base17"; }', "base17"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
