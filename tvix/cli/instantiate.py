"""`tvix instantiate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvix.cli.eval_options import evaluate_or_explain, evaluation_options, gather, make_evaluator, selected_values

if TYPE_CHECKING:
    from tvix.translate.eval_io import StoreIO


@click.command()
@evaluation_options
@click.option("--store", metavar="DIR", help="The folder of the store to write to; its own in the state folder if not.")
def instantiate(store: str | None, **given: Any) -> None:
    """Put the derivations of FILE (default: ./default.nix) into the store, with all that they need.

    Prints the path of each .drv file as soon as it is written, while evaluation goes on. Those that stand for another
    output than `out` end in `!name`. Nothing is built, and no server is needed.

    \b
    tvix instantiate -A hello
    tvix instantiate ./release.nix --argstr system x86_64-linux
    tvix instantiate -E 'derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; }' --store ./store
    """
    from tvix.eval.derivations_found import find_derivations

    options = gather(given)
    evaluator = make_evaluator(options, open_store_io(store))

    def work() -> None:
        from tvix.cli.eval_options import given_arguments

        arguments = given_arguments(evaluator, options)
        for value in selected_values(evaluator, options):
            for found in find_derivations(evaluator, value, arguments):
                click.echo(found.instantiate(evaluator))

    evaluate_or_explain(evaluator, options, work)


def open_store_io(folder: str | None = None) -> StoreIO:
    """Return the evaluator's door onto the embedded store in a folder; without one that of the state folder."""
    from tvix.errors import Unavailable
    from tvix.translate.eval_io import StoreIO
    from tvix.translate.folder_store import FolderStore

    root = Path(folder) if folder else default_store_folder()
    try:
        return StoreIO(FolderStore(root.absolute()))
    except OSError as error:
        raise Unavailable(f"the store's folder {root} cannot be used: {error.strerror}") from error


def default_store_folder() -> Path:
    """Return where the embedded store is: below TVIX_STATE_DIR, or the user's state folder."""
    state = os.environ.get("TVIX_STATE_DIR")
    if state:
        return Path(state) / "store"
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "tvix" / "store"
