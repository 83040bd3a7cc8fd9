"""Constants."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'builtins.langVersion == 6 && builtins.storeDir == "/nix/store"',
        'builtins.compareVersions builtins.nixVersion "2.18" >= 0',
        "builtins.true && !builtins.false && builtins.null == null",
        "builtins.nixPath == [ ]",
        "builtins.isInt builtins.currentTime && builtins.isString builtins.currentSystem",
        "builtins.builtins.length [ ] == 0",
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builtins.nonexistent", "'nonexistent' missing"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
