"""`tvix eval`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from tvix.cli.eval_options import evaluate_or_explain, evaluation_options, gather, make_evaluator, selected_values

if TYPE_CHECKING:
    from tvix.eval.evaluator import Evaluator
    from tvix.eval.values import Value


@click.command()
@evaluation_options
@click.option("--json", "output", flag_value="json", help="Print JSON.")
@click.option("--xml", "output", flag_value="xml", help="Print XML.")
@click.option("--raw", "output", flag_value="raw", help="Print a string as it is, without a newline.")
@click.option("--strict", is_flag=True, help="Compute all within lists and sets too, not only what shows.")
@click.option("--no-location", is_flag=True, help="Leave places out of the XML.")
def eval(output: str | None, strict: bool, no_location: bool, **given: Any) -> None:
    """Evaluate FILE (default: ./default.nix) and print the value.

    Nothing is built. What the program copies to the store or fetches goes to the embedded store in the state
    folder; printing .drv paths is `tvix instantiate`'s business.

    \b
    tvix eval -E '1 + 1'
    tvix eval ./default.nix -A hello.version --raw
    tvix eval --strict --json -E '{ a = [ 1 2 ]; }'
    """
    from tvix.cli.instantiate import open_store_io

    options = gather(given)
    evaluator = make_evaluator(options, open_store_io())

    def work() -> None:
        for value in selected_values(evaluator, options):
            text = render(evaluator, value, output, strict=strict, location=not no_location)
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))

    evaluate_or_explain(evaluator, options, work)


def render(evaluator: Evaluator, value: Value, output: str | None, *, strict: bool, location: bool = True) -> str:
    """Return a value as the command prints it, with the newline that ends it if it has one."""
    from tvix.eval.printing import JsonPrinter, XmlPrinter, to_nix

    if output == "raw":
        return str(evaluator.strings.coerce(value, copy=False))
    if strict:
        from tvix.eval.builtins.control import force_deep

        force_deep(value)
    if output == "json":
        return JsonPrinter(evaluator.strings, copy_paths=False).show(value) + "\n"
    if output == "xml":
        return XmlPrinter(strict=strict, location=location).show(value)
    return to_nix(value, computed=strict) + "\n"
