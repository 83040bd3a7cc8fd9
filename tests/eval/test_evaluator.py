"""The whole evaluator: Nix's own answers, files, imports, arguments, depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.support import make_evaluator, shown
from tvix.eval.code_cache import CodeCache
from tvix.eval.errors import EvalError, InfiniteRecursion, MissingAttribute, NixTypeError, StackOverflow, Thrown
from tvix.eval.evaluator import Evaluator
from tvix.eval.io import FileSystem
from tvix.eval.settings import Settings

GOLDEN = Path(__file__).parent / "golden" / "nix-2.8.txt"
"""Pairs of lines, made by nix-instantiate --eval --strict: an expression (⏎ for a line break), what it gives."""


def test_outcomes_equal_those_of_nix() -> None:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    evaluator = make_evaluator()
    different = []
    for expression, expected in zip(lines[::2], lines[1::2], strict=True):
        try:
            found = shown(expression.replace("⏎", "\n"), evaluator)
        except EvalError:
            found = "error"
        if found != expected.strip():
            different.append((expression, expected.strip(), found))
    assert different == []
    assert len(lines) > 1000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("let f = n: if n == 0 then 0 else 1 + f (n - 1); in f 100000", "100000"),
        ("let f = n: builtins.head (map (x: if x == 0 then 0 else 1 + f (x - 1)) [ n ]); in f 5000", "5000"),
        ("let f = { __functor = self: n: if n == 0 then 0 else 1 + self (n - 1); }; in f 5000", "5000"),
        ("let s = n: { a = if n == 0 then 1 else s (n - 1); }; in s 5000 == s 5000", "true"),
    ],
)
def test_deep_recursion_has_room(text: str, value: str) -> None:
    assert shown(text) == value


def test_recursion_without_end_is_an_error() -> None:
    with pytest.raises(StackOverflow, match="infinite recursion"):
        shown("let f = n: 1 + f (n + 1); in f 0")


def test_a_value_that_needs_itself_is_an_error_that_names_the_place() -> None:
    with pytest.raises(InfiniteRecursion) as caught:
        shown("let x = {\n  a = x.a;\n}; in x.a")
    assert (caught.value.position.line, caught.value.position.column) == (2, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("1 +\n  { }.b", (2, 3)),
        ("let f = x: x.y; in f 1", (1, 12)),
        ('\n"a" + throw "b"', (2, 7)),
        ("[ (1 2) ]", (1, 4)),
        ("{ a }: b", (1, 8)),
        ("let x =\n 1; in y", (2, 8)),
    ],
)
def test_errors_say_where(text: str, position: tuple[int, int]) -> None:
    with pytest.raises(EvalError) as caught:
        shown(text)
    found = caught.value.position
    assert found is not None
    assert (found.line, found.column) == position


def test_calling_a_non_function_and_selecting_from_a_non_set_are_type_errors() -> None:
    with pytest.raises(NixTypeError, match="not a function but a string"):
        shown('"a" 1')
    with pytest.raises(NixTypeError, match="value is a list while a set was expected"):
        shown("[ ].a")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "default.nix").write_text(
        "{ x ? 1, ... }: { inherit x; sub = import ./sub.nix; list = [ 5 { a = 6; } ]; }"
    )
    (tmp_path / "sub.nix").write_text('{ dir = ./.; up = ../x; text = "é"; }')
    (tmp_path / "scoped.nix").write_text("outer + (let outer = 2; in outer) + builtins.length [ ]")
    (tmp_path / "link").symlink_to("sub.nix")
    return tmp_path


def test_directories_are_imported_as_their_default_nix(tree: Path) -> None:
    assert shown("(import ./. { x = 2; }).x", base_directory=str(tree)) == "2"


def test_paths_are_relative_to_the_file_they_stand_in(tree: Path) -> None:
    assert shown("(import ./. { }).sub.dir", base_directory=str(tree)) == str(tree)
    assert shown("(import ./sub.nix).up", base_directory=str(tree)) == f"{tree.parent}/x"


def test_a_file_is_evaluated_once_by_whatever_name(tree: Path) -> None:
    evaluator = make_evaluator()
    shown("[ (import ./link) (import ./sub.nix) ]", evaluator, str(tree))
    assert repr(evaluator) == "<Evaluator 1 files>"


def test_scoped_import_binds_names_for_one_file(tree: Path) -> None:
    assert shown("scopedImport { outer = 40; } ./scoped.nix", base_directory=str(tree)) == "42"
    with pytest.raises(EvalError, match="undefined variable 'outer'"):
        shown("import ./scoped.nix", base_directory=str(tree))


def test_import_of_what_is_not_there_names_it(tree: Path) -> None:
    with pytest.raises(EvalError, match="nothing"):
        shown("import ./nothing.nix", base_directory=str(tree))


def test_a_file_that_imports_itself_is_an_error(tree: Path) -> None:
    (tree / "loop.nix").write_text("import ./loop.nix")
    with pytest.raises(EvalError, match="recursion"):
        shown("import ./loop.nix", base_directory=str(tree))


def test_attribute_paths_call_functions_and_index_lists(tree: Path) -> None:
    evaluator = make_evaluator()
    root = evaluator.evaluate_file(str(tree))
    assert evaluator.select_path(root, ["x"], {"x": 7, "other": 8}) == 7
    assert evaluator.select_path(root, ["list", "1", "a"], {}) == 6
    with pytest.raises(EvalError, match="no index"):
        evaluator.select_path(root, ["list", "2"], {})
    with pytest.raises(MissingAttribute):
        evaluator.select_path(root, ["y"], {})


def test_a_function_whose_argument_nobody_gives_is_not_called() -> None:
    evaluator = make_evaluator()
    function = evaluator.evaluate_text("{ a, b ? 1 }: a + b")
    assert evaluator.auto_call(function, {"a": 1, "c": 2}) == 2
    with pytest.raises(NixTypeError, match="'a'"):
        evaluator.auto_call(function, {})


def test_search_path_entries_are_found_in_order(tree: Path) -> None:
    evaluator = make_evaluator(search_path=(f"mine={tree}", str(tree)))
    assert shown("(import <mine> { }).x", evaluator) == "1"
    assert shown("<mine/sub.nix>", evaluator) == f"{tree}/sub.nix"
    assert shown("<link>", evaluator) == f"{tree}/link"
    assert shown("(builtins.tryEval <absent>).success", evaluator) == "false"
    with pytest.raises(Thrown, match="absent"):
        shown("<absent>", evaluator)


def test_pure_evaluation_sees_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVIX_TEST_VARIABLE", "x")
    assert shown('builtins.getEnv "TVIX_TEST_VARIABLE"') == '"x"'
    assert shown('builtins.getEnv "TVIX_TEST_VARIABLE"', make_evaluator(pure=True)) == '""'
    assert shown("builtins ? currentTime", make_evaluator(pure=True)) == "false"


def test_compiled_files_come_from_the_cache(tree: Path, tmp_path: Path) -> None:
    def fresh() -> Evaluator:
        return Evaluator(FileSystem(), Settings(use_nix_path=False), CodeCache(tmp_path / "cache"))

    text = "(import ./. { }).sub.text"
    assert shown(text, fresh(), str(tree)) == '"é"'
    entries = sorted((tmp_path / "cache").rglob("*"))
    assert shown(text, fresh(), str(tree)) == '"é"'
    assert sorted((tmp_path / "cache").rglob("*")) == entries


def test_invalid_utf_8_goes_through(tmp_path: Path) -> None:
    (tmp_path / "bytes.nix").write_bytes(b'"\xff"')
    assert shown("builtins.stringLength (import ./bytes.nix)", base_directory=str(tmp_path)) == "1"
