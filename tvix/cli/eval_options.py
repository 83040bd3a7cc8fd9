"""What the commands that evaluate have in common: options, the evaluator they make, the value they mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tvix.eval.evaluator import Evaluator
    from tvix.eval.io import EvalIO
    from tvix.eval.values import Lazy, Value

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """The options of `evaluation_options`, as given."""

    expression: str | None
    attributes: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]
    string_arguments: tuple[tuple[str, str], ...]
    include: tuple[str, ...]
    show_trace: bool
    pure: bool
    code_cache: bool
    file: str | None


def evaluation_options(command: Command) -> Command:
    """Add the options of EvalOptions to a command; `gather` makes one of the keyword arguments they become."""
    for decorate in reversed(
        [
            click.option("-E", "--expr", "expression", metavar="TEXT", help="Evaluate TEXT instead of a file."),
            click.option(
                "-A", "--attr", "attributes", metavar="PATH", multiple=True, help="Take the attribute at PATH (a.b.c)."
            ),
            click.option(
                "--arg", "arguments", metavar="NAME EXPR", nargs=2, multiple=True, help="Argument for a function."
            ),
            click.option(
                "--argstr", "string_arguments", metavar="NAME TEXT", nargs=2, multiple=True, help="The same, a string."
            ),
            click.option(
                "-I", "include", metavar="[NAME=]PATH", multiple=True, help="Add to the search path of <NAME>."
            ),
            click.option("--show-trace", is_flag=True, help="Show how evaluation got to an error."),
            click.option("--pure", is_flag=True, help="No environment, time, or system."),
            click.option("--code-cache/--no-code-cache", default=True, help="Keep compiled files.", show_default=True),
            click.argument("file", required=False),
        ]
    ):
        command = decorate(command)
    return command


def gather(given: dict[str, Any]) -> EvalOptions:
    """Return the options, taking them out of a command's keyword arguments."""
    return EvalOptions(**{name: given.pop(name) for name in EvalOptions.__dataclass_fields__})


def make_evaluator(options: EvalOptions, io: EvalIO) -> Evaluator:
    """Return the evaluator that the options describe."""
    from tvix.eval.code_cache import CodeCache, default_folder
    from tvix.eval.evaluator import Evaluator
    from tvix.eval.settings import Settings

    settings = Settings(pure=options.pure, search_path=options.include)
    cache = CodeCache(default_folder()) if options.code_cache else None
    return Evaluator(io, settings, cache)


def root_value(evaluator: Evaluator, options: EvalOptions) -> Value:
    """Return the value of the file or expression: `-` reads standard input, no file means ./default.nix."""
    here = os.getcwd()
    if options.expression is not None:
        if options.file is not None:
            raise click.UsageError(f"both -E and the file {options.file!r} are given")
        return evaluator.evaluate_text(options.expression, here)
    if options.file == "-":
        return evaluator.evaluate_text(sys.stdin.buffer.read().decode("utf-8", "surrogateescape"), here, "«stdin»")
    file = options.file or "default.nix"
    if file.startswith("<") and file.endswith(">"):
        return evaluator.evaluate_file(evaluator.search_path.find(evaluator.search_path.entries, file[1:-1]))
    return evaluator.evaluate_file(os.path.abspath(file))


def given_arguments(evaluator: Evaluator, options: EvalOptions) -> dict[str, Lazy]:
    """Return what --arg and --argstr give."""
    from tvix.eval.values import Thunk

    found: dict[str, Lazy] = dict(options.string_arguments)
    for name, text in options.arguments:
        found[name] = Thunk(lambda text=text: evaluator.evaluate_text(text, os.getcwd()))  # type: ignore[misc]
    return found


def selected_values(evaluator: Evaluator, options: EvalOptions) -> list[Value]:
    """Return what -A selects, a value per option; without one the whole, called if it is a function."""
    from tvix.eval.attribute_path import parse_attribute_path

    root, arguments = root_value(evaluator, options), given_arguments(evaluator, options)
    return [
        evaluator.auto_call(evaluator.select_path(root, parse_attribute_path(path), arguments), arguments)
        for path in options.attributes or ("",)
    ]


def evaluate_or_explain(evaluator: Evaluator, options: EvalOptions, work: Callable[[], None]) -> None:
    """Do the work of a command where deep recursion has room; what fails is explained, with exit code 1."""
    from tvix.eval.errors import EvalError
    from tvix.eval.stack import run_with_large_stack

    def run() -> None:
        with evaluator.reporting():
            work()

    try:
        run_with_large_stack(run)
    except EvalError as error:
        sys.stdout.flush()
        click.echo(evaluator.report(error, show_trace=options.show_trace), err=True)
        sys.exit(1)
