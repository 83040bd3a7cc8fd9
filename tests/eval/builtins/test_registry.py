"""The table of builtins, and what it is made into."""

from __future__ import annotations

import pytest

from tests.eval.support import make_evaluator, shown
from tvix.eval.builtins.registry import Primop, curry, primop_kind
from tvix.eval.values import Thunk

NIX_NAMES = """
abort add addErrorContext all any appendContext attrNames attrValues baseNameOf bitAnd bitOr bitXor builtins catAttrs
ceil compareVersions concatLists concatMap concatStringsSep currentSystem currentTime deepSeq dirOf div elem elemAt
false filter findFile floor foldl' fromJSON fromTOML functionArgs genList genericClosure getAttr getContext getEnv
groupBy hasAttr hasContext hashFile hashString head import intersectAttrs isAttrs isBool isFloat isFunction isInt
isList isNull isPath isString langVersion length lessThan listToAttrs map mapAttrs match mul nixPath nixVersion null
parseDrvName partition pathExists readDir readFile removeAttrs replaceStrings scopedImport seq sort split splitVersion
storeDir stringLength sub substring tail throw toJSON toPath toString toXML trace true tryEval typeOf
unsafeDiscardOutputDependency unsafeDiscardStringContext unsafeGetAttrPos zipAttrsWith
break traceVerbose readFileType convertHash addDrvOutputDependencies warn
"""
"""Those that need no store: of Nix 2.8, and newer ones in the last line."""


def test_builtins_are_those_of_nix() -> None:
    builtins = make_evaluator().registry.builtins
    assert [name for name in NIX_NAMES.split() if name not in builtins] == []


def test_strict_parameters_are_forced_and_lazy_ones_are_not() -> None:
    seen = []
    curried = curry(Primop("f", "slsl"[:3], lambda one, two, three: seen.append((one, two, three))))
    lazy = Thunk(lambda: 2)
    curried(Thunk(lambda: 1))(lazy)(Thunk(lambda: 3))
    assert seen == [(1, lazy, 3)]


@pytest.mark.parametrize("strictness", ["s", "l", "ss", "sl", "sss"])
def test_builtins_are_told_from_functions(strictness: str) -> None:
    curried = curry(Primop("f", strictness, lambda *arguments: 1))
    assert primop_kind(curried) == "primop"
    if len(strictness) > 1:
        assert primop_kind(curried(1)) == "partial"
    assert primop_kind(lambda x: x) == "lambda"


def test_names_are_global_as_nix_has_them() -> None:
    names = make_evaluator().registry.globals
    assert {"map", "toString", "import", "__length", "__add", "__sub", "builtins", "true"} <= names
    assert not names & {"length", "__map", "add"}


def test_direct_and_partial_calls_agree() -> None:
    assert shown(
        "let f = builtins.elemAt; g = f [ 1 2 ]; in [ (g 1) (builtins.elemAt [ 1 2 ] 1) (map (f [ 5 ]) [ 0 ]) ]"
    ) == ("[ 2 2 [ 5 ] ]")
