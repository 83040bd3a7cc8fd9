"""Versions."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.compareVersions "1.0pre" "1.0" == -1',
        'builtins.compareVersions "1.10" "1.9" == 1',
        'builtins.compareVersions "1.0a" "1.0" == 1',
        'builtins.compareVersions "1-2" "1.2" == 0',
        'builtins.splitVersion "1.2-rc3.4pre" == [ "1" "2" "rc" "3" "4" "pre" ]',
        'builtins.parseDrvName "nix-0.12pre12876" == { name = "nix"; version = "0.12pre12876"; }',
        'builtins.parseDrvName "a-b" == { name = "a-b"; version = ""; }',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builtins.compareVersions 1 2", "an integer while a string"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
