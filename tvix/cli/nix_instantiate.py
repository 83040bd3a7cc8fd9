"""`nix-instantiate`, as scripts know it, on our evaluator: the flags, and the same text on stdout.

`tvix compat install` puts a program of that name somewhere. Flags that only concern the real store (roots, jobs,
options) are taken and do nothing; what is not known is an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from tvix.cli.eval_options import EvalOptions, evaluate_or_explain, given_arguments, make_evaluator, root_value

if TYPE_CHECKING:
    from tvix.eval.evaluator import Evaluator
    from tvix.eval.values import Value

_IGNORED = {
    **dict.fromkeys(["--option", "--log-format"], 1),
    **dict.fromkeys(["--add-root", "-j", "--max-jobs", "--cores", "--timeout", "--max-silent-time"], 1),
    **dict.fromkeys(["--indirect", "--dry-run", "--read-write-mode", "--quiet", "-v", "--verbose"], 0),
    **dict.fromkeys(["-Q", "--no-build-output", "-k", "--keep-going", "-K", "--keep-failed", "--fallback"], 0),
    **dict.fromkeys(["--repair", "--no-net", "--refresh"], 0),
}
"""Flags that change nothing here, and how many words follow each."""
_IGNORED["--option"] = 2


@dataclass
class _Given:
    """The command line, taken apart."""

    expressions: list[str] = field(default_factory=list)
    are_texts: bool = False
    is_eval: bool = False
    is_find_file: bool = False
    output: str | None = None
    strict: bool = False
    location: bool = True
    show_trace: bool = False
    store: str | None = None
    attributes: list[str] = field(default_factory=list)
    arguments: list[tuple[str, str]] = field(default_factory=list)
    string_arguments: list[tuple[str, str]] = field(default_factory=list)
    include: list[str] = field(default_factory=list)

    def options(self, expression: str) -> EvalOptions:
        """Return what this means for one of the expressions."""
        return EvalOptions(
            expression=expression if self.are_texts else None,
            attributes=tuple(self.attributes),
            arguments=tuple(self.arguments),
            string_arguments=tuple(self.string_arguments),
            include=tuple(self.include),
            show_trace=self.show_trace,
            pure=False,
            code_cache=True,
            file=None if self.are_texts else expression,
        )


def parse_arguments(words: Sequence[str]) -> _Given:
    """Take a command line apart; click.UsageError for what `nix-instantiate` does not know either."""
    given = _Given()
    rest = iter(words)
    for word in rest:
        if word in ("-E", "--expr"):
            given.are_texts = True
        elif word in ("--eval", "--eval-only"):
            given.is_eval = True
        elif word == "--find-file":
            given.is_find_file = True
        elif word in ("--json", "--xml"):
            given.output = word[2:]
        elif word == "--strict":
            given.strict = True
        elif word == "--no-location":
            given.location = False
        elif word == "--show-trace":
            given.show_trace = True
        elif word == "--store":
            given.store = _next(word, rest)
        elif word in ("-A", "--attr"):
            given.attributes.append(_next(word, rest))
        elif word == "--arg":
            given.arguments.append((_next(word, rest), _next(word, rest)))
        elif word == "--argstr":
            given.string_arguments.append((_next(word, rest), _next(word, rest)))
        elif word == "-I" or word == "--include":
            given.include.append(_next(word, rest))
        elif word.startswith("-I") and not word.startswith("--"):
            given.include.append(word[2:])
        elif word in _IGNORED:
            for _ in range(_IGNORED[word]):
                _next(word, rest)
        elif word.startswith("-") and word != "-":
            raise click.UsageError(f"unrecognised flag '{word}'; known are those of nix-instantiate 2.8 but --parse")
        else:
            given.expressions.append(word)
    if not given.expressions and not given.are_texts:
        given.expressions.append("./default.nix")
    return given


def _next(flag: str, rest: Iterator[str]) -> str:
    word = next(rest, None)
    if word is None:
        raise click.UsageError(f"flag '{flag}' requires an argument")
    return word


def run(words: Sequence[str]) -> None:
    """Do what `nix-instantiate` does with these words."""
    from tvix.cli.instantiate import open_store_io

    given = parse_arguments(words)
    io = open_store_io(given.store)
    evaluator = make_evaluator(given.options("0"), io)
    for expression in given.expressions:
        options = given.options(expression)

        def work(expression: str = expression, options: EvalOptions = options) -> None:
            if given.is_find_file:
                click.echo(evaluator.search_path.find(evaluator.search_path.entries, expression))
                return
            for value in _selected(evaluator, options, call=not given.is_eval or bool(_arguments_count(options))):
                _print(evaluator, given, options, value)

        evaluate_or_explain(evaluator, options, work)


def _arguments_count(options: EvalOptions) -> int:
    """Return how many arguments --arg and --argstr give."""
    return len(options.arguments) + len(options.string_arguments)


def _selected(evaluator: Evaluator, options: EvalOptions, *, call: bool) -> Iterator[Value]:
    """Yield what each -A selects. `--eval` calls no function unless there are arguments to give."""
    from tvix.eval.attribute_path import parse_attribute_path

    root, arguments = root_value(evaluator, options), given_arguments(evaluator, options)
    for path in options.attributes or ("",):
        value = evaluator.select_path(root, parse_attribute_path(path), arguments)
        yield evaluator.auto_call(value, arguments) if call else value


def _print(evaluator: Evaluator, given: _Given, options: EvalOptions, value: Value) -> None:
    if given.is_eval:
        from tvix.cli.eval import render

        if given.output == "json":  # the real one copies paths to the store, and ends without a newline
            from tvix.eval.printing import JsonPrinter

            text = JsonPrinter(evaluator.strings).show(value)
        else:
            text = render(evaluator, value, given.output, strict=given.strict, location=given.location)
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
        return
    from tvix.eval.derivations_found import find_derivations

    # All are found before the first is printed: where the search fails, the real one has printed nothing.
    for found in list(find_derivations(evaluator, value, given_arguments(evaluator, options))):
        click.echo(found.instantiate(evaluator))


def main() -> None:
    """Run as a program."""
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    try:
        run(sys.argv[1:])
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(1)
