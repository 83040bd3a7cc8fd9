"""Contexts of strings."""

from __future__ import annotations

import pytest

from tests.eval.support import shown
from tvix.eval.errors import EvalError


@pytest.mark.parametrize(
    "text",
    [
        'let s = builtins.appendContext "a" { "/nix/store/ffffffffffffffffffffffffffffffff-x.drv" = { '
        'outputs = [ "out" "dev" ]; allOutputs = true; path = true; }; }; in builtins.getContext (s + "b") '
        '== { "/nix/store/ffffffffffffffffffffffffffffffff-x.drv" = { allOutputs = true; outputs = [ "dev" '
        '"out" ]; path = true; }; }',
        'let s = builtins.appendContext "abc" { "/nix/store/ffffffffffffffffffffffffffffffff-x" = { path = '
        'true; }; }; in builtins.all builtins.hasContext [ "${s}" (builtins.substring 0 0 s) (toString s) '
        '(builtins.concatStringsSep s [ ]) (builtins.replaceStrings [ "z" ] [ "y" ] s) (builtins.toJSON [ '
        "s ]) (baseNameOf s) ]",
        'let s = builtins.appendContext "a" { "/nix/store/ffffffffffffffffffffffffffffffff-x.drv" = { path '
        "= true; }; }; in builtins.getContext (builtins.unsafeDiscardOutputDependency "
        "(builtins.addDrvOutputDependencies s)) == builtins.getContext s",
        '!(builtins.hasContext (builtins.unsafeDiscardStringContext (builtins.appendContext "a" { '
        '"/nix/store/ffffffffffffffffffffffffffffffff-x" = { path = true; }; })))',
    ],
)
def test_it_holds(text: str) -> None:
    assert shown(text) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('builtins.appendContext "a" { "/x" = { path = true; }; }', "not a store path"),
        (
            'builtins.appendContext "a" { "/nix/store/ffffffffffffffffffffffffffffffff-x" = { allOutputs = true; }; }',
            "not a derivation",
        ),
        ('builtins.addDrvOutputDependencies "a"', "exactly one element"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text)
