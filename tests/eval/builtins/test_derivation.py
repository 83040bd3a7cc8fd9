"""Derivations beside those of real Nix; golden/derivations.json is made by conformance.nix_lang.derivation_cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tvix.eval.derivations_found import find_derivations
from tvix.eval.errors import EvalError
from tvix.eval.evaluator import Evaluator
from tvix.eval.printing import JsonPrinter
from tvix.eval.settings import Settings
from tvix.eval.stack import run_with_large_stack
from tvix.eval.values import Value
from tvix.translate.eval_io import StoreIO
from tvix.translate.folder_store import FolderStore

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "derivations.json").read_text())
INSTANTIATED, EVALUATED = CASES["instantiated"], CASES["evaluated"]


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def evaluator(tmp_path: Path, logged: list[str]) -> Evaluator:
    settings = Settings(use_nix_path=False, log=logged.append)
    return Evaluator(StoreIO(FolderStore(tmp_path / "store")), settings)


def evaluate(evaluator: Evaluator, expression: str) -> Value:
    def work() -> Value:
        with evaluator.reporting():
            return evaluator.evaluate_text(expression, str(GOLDEN / "files"))

    return run_with_large_stack(work)


def instantiate(evaluator: Evaluator, expression: str) -> list[str]:
    def work() -> list[str]:
        with evaluator.reporting():
            value = evaluator.evaluate_text(expression, str(GOLDEN / "files"))
            return [found.instantiate(evaluator) for found in find_derivations(evaluator, value, {})]

    return run_with_large_stack(work)


@pytest.mark.parametrize("name", [name for name, case in INSTANTIATED.items() if "error" not in case])
def test_derivations_equal_those_of_nix(name: str, evaluator: Evaluator, tmp_path: Path) -> None:
    case = INSTANTIATED[name]
    assert instantiate(evaluator, case["expression"]) == case["printed"]
    store = tmp_path / "store"
    made = {f"/nix/store/{file.name}": file.read_text() for file in store.glob("*.drv")}
    assert made == case["derivations"]
    others = [f"/nix/store/{entry.name}" for entry in store.iterdir() if not entry.name.endswith(".drv")]
    assert sorted(path for path in others if "/." not in path) == case["others"]


@pytest.mark.parametrize("name", [name for name, case in INSTANTIATED.items() if "error" in case])
def test_what_nix_refuses_is_refused(name: str, evaluator: Evaluator) -> None:
    with pytest.raises(EvalError):
        instantiate(evaluator, INSTANTIATED[name]["expression"])


@pytest.mark.parametrize("name", EVALUATED)
def test_values_equal_those_of_nix(name: str, evaluator: Evaluator) -> None:
    value = evaluate(evaluator, EVALUATED[name]["expression"])
    text = run_with_large_stack(lambda: JsonPrinter(evaluator.strings, copy_paths=False).show(value))
    assert json.loads(text) == EVALUATED[name]["value"]


def test_empty_hash_warns(evaluator: Evaluator, logged: list[str]) -> None:
    instantiate(evaluator, INSTANTIATED["fixed_empty"]["expression"])
    assert logged == ["warning: found empty hash, assuming 'sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='"]


def test_error_names_attribute_and_derivation(evaluator: Evaluator) -> None:
    with pytest.raises(EvalError) as caught:
        instantiate(evaluator, 'derivation { name = "n"; system = "x"; builder = "b"; broken = { }; }')
    assert "while evaluating the attribute 'broken' of the derivation 'n'" in [text for _, text in caught.value.trace]


def test_import_of_a_derivation_file(evaluator: Evaluator) -> None:
    expression = """
      let d = derivation { name = "a"; system = "x"; builder = "b"; outputs = [ "out" "dev" ]; };
          i = import d.drvPath;
      in [ (i.outPath == d.dev.outPath) i.outputName i.name i.type (i.drvPath == d.drvPath) (i.out == d)
           (builtins.getContext i.out.outPath == builtins.getContext d.outPath) (builtins.length i.all) ]
    """
    assert evaluate(evaluator, f"builtins.toJSON ({expression})") == '[true,"dev","a","derivation",true,true,true,2]'


def test_deep_chain_of_derivations(evaluator: Evaluator) -> None:
    expression = """
      let f = n: derivation { name = "d${toString n}"; system = "x"; builder = "b";
                              i = if n == 0 then null else f (n - 1); }; in f 1500
    """
    assert len(instantiate(evaluator, expression)) == 1


def test_closure_with_references_of_text_files(evaluator: Evaluator) -> None:
    # The same again as in the golden case, but with a second evaluation that has to read all from the store.
    case = INSTANTIATED["drv_path_through_text_file"]
    instantiate(evaluator, case["expression"])
    again = Evaluator(evaluator.io, evaluator.settings)
    assert instantiate(again, case["expression"]) == case["printed"]
