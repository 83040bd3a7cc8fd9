"""Options that the evaluating commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tvix.cli.eval_options import EvalOptions, evaluation_options, gather, make_evaluator, selected_values
from tvix.eval.io import FileSystem


def options_of(*arguments: str) -> EvalOptions:
    found: list[EvalOptions] = []

    @click.command()
    @evaluation_options
    def command(**given: Any) -> None:
        found.append(gather(given))
        assert given == {}

    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def values_of(*arguments: str) -> list[Any]:
    options = options_of("--no-code-cache", *arguments)
    return selected_values(make_evaluator(options, FileSystem()), options)


def test_all_options_are_gathered() -> None:
    options = options_of("-E", "1", "-A", "a", "--arg", "x", "2", "--argstr", "y", "z", "-I", "n=/p", "--pure")
    assert options.expression == "1"
    assert options.attributes == ("a",)
    assert options.arguments == (("x", "2"),)
    assert options.string_arguments == (("y", "z"),)
    assert options.include == ("n=/p",)
    assert options.pure
    assert options.code_cache


def test_arguments_reach_functions_on_the_path() -> None:
    assert values_of("-E", "{ x }: { a = { y }: x + y; }", "-A", "a", "--arg", "x", '"q"', "--argstr", "y", "r") == [
        "qr"
    ]


def test_files_of_the_search_path_are_roots_too(tmp_path: Path) -> None:
    (tmp_path / "default.nix").write_text("42")
    assert values_of("-I", f"n={tmp_path}", "<n>") == [42]


def test_a_file_beside_an_expression_is_refused() -> None:
    with pytest.raises(click.UsageError):
        values_of("-E", "1", "file.nix")
