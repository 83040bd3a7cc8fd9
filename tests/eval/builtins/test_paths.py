"""Builtins of paths; that they make the store paths of real Nix is tested in test_derivation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tvix.eval.errors import EvalError
from tvix.eval.evaluator import Evaluator
from tvix.eval.settings import Settings
from tvix.eval.values import force
from tvix.translate.eval_io import StoreIO
from tvix.translate.folder_store import FolderStore


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_text("f")
    (root / "x.nix").write_text("{ y }: y + 1")
    return root


@pytest.fixture
def io(tmp_path: Path) -> StoreIO:
    return StoreIO(FolderStore(tmp_path / "store"))


def evaluate(io: StoreIO, tree: Path, expression: str, **settings: Any) -> Any:
    evaluator = Evaluator(io, Settings(use_nix_path=False, **settings))
    with evaluator.reporting():
        return evaluator.evaluate_text(expression, str(tree))


def test_filter_gets_paths_below_the_source_and_types(io: StoreIO, tree: Path) -> None:
    expression = 'builtins.readDir (builtins.path { path = ./.; name = "t"; filter = p: t: p != toString ./d; })'
    assert evaluate(io, tree, expression) == {"x.nix": "regular"}


def test_copies_can_be_imported_and_called(io: StoreIO, tree: Path) -> None:
    assert evaluate(io, tree, 'import "${./.}/x.nix" { y = 1; }') == 2


def test_filter_that_returns_no_boolean(io: StoreIO, tree: Path) -> None:
    with pytest.raises(EvalError, match="Boolean was expected"):
        evaluate(io, tree, "builtins.filterSource (p: t: 1) ./.")


def test_filter_that_throws_is_caught_by_try_eval(io: StoreIO, tree: Path) -> None:
    expression = '(builtins.tryEval (builtins.filterSource (p: t: throw "no") ./.)).success'
    assert evaluate(io, tree, expression) is False


def test_paths_of_derivation_outputs_are_built_first(tmp_path: Path, tree: Path) -> None:
    store = FolderStore(tmp_path / "store")
    built: list[str] = []

    def build(drv_path: str, outputs: frozenset[str]) -> None:
        built.append(drv_path)
        output = with_builder.read_file(drv_path).decode().split('"')[3]
        temporary = store.new_temporary()
        Path(temporary, "made").mkdir()
        Path(temporary, "made", "default.nix").write_text('"built"')
        store.adopt(Path(output).name, f"{temporary}/made")

    with_builder = StoreIO(store, build=build)
    expression = 'import (derivation { name = "d"; system = "x"; builder = "b"; })'
    assert evaluate(with_builder, tree, expression) == "built"
    assert len(built) == 1
    with pytest.raises(EvalError, match="import from derivation is not allowed"):
        evaluate(
            with_builder,
            tree,
            'import (derivation { name = "e"; system = "x"; builder = "b"; })',
            allow_import_from_derivation=False,
        )


def test_output_that_nobody_builds(io: StoreIO, tree: Path) -> None:
    with pytest.raises(EvalError, match="'d' is imported from, and nothing here builds"):
        evaluate(io, tree, 'builtins.readFile (derivation { name = "d"; system = "x"; builder = "b"; })')


def test_store_path_of_a_link_into_the_store(io: StoreIO, tree: Path) -> None:
    target = io.add_text("t", b"", [])
    (tree / "link").symlink_to(target)
    found = evaluate(io, tree, "builtins.storePath ./link")
    assert str(found) == target
    assert list(evaluate(io, tree, "builtins.getContext (builtins.storePath ./link)")) == [target]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("builtins.storePath ./x.nix", "is not in the Nix store"),
        ('builtins.storePath "/nix/store/00000000000000000000000000000000-no"', "is not in the store"),
        ('builtins.toFile "a b" ""', "contains ' '"),
        ('builtins.toFile "a" 1', "a string was expected"),
        ("builtins.placeholder 1", "a string was expected"),
        ('builtins.path { path = ./x.nix; sha256 = "abc"; }', "wrong length"),
        ("builtins.path { path = ./d; recursive = false; }", "only files"),
        ('builtins.path { path = "relative"; }', "absolute path"),
        ("builtins.path 1", "a set was expected"),
        ("builtins.filterSource 1 ./.", "a function was expected"),
        ('"${./none}"', "No such file"),
    ],
)
def test_errors_name_the_cause(io: StoreIO, tree: Path, expression: str, reason: str) -> None:
    with pytest.raises(EvalError, match=reason):
        force(evaluate(io, tree, expression))


def test_store_path_is_refused_in_pure_evaluation(io: StoreIO, tree: Path) -> None:
    with pytest.raises(EvalError, match="not allowed in pure evaluation"):
        evaluate(io, tree, "builtins.storePath ./x.nix", pure=True)
