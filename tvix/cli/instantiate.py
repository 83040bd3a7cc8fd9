"""`tvix instantiate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvix.cli.eval_options import evaluate_or_explain, evaluation_options, gather, make_evaluator, selected_values

if TYPE_CHECKING:
    from tvix.translate.eval_io import StoreIO
    from tvix.translate.fetch import Fetcher


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
        return StoreIO(FolderStore(root.absolute()), make_fetcher=make_fetcher)
    except OSError as error:
        raise Unavailable(f"the store's folder {root} cannot be used: {error.strerror}") from error


def make_fetcher() -> Fetcher:
    """Return what fetches into the user's cache folder, by the mirrors of TVIX_MIRRORS."""
    from tvix.translate.fetch import Cache, Fetcher

    return Fetcher(Cache(default_fetch_cache()), mirrors=parse_mirrors(os.environ.get("TVIX_MIRRORS", "")))


def parse_mirrors(text: str) -> list[tuple[str, str]]:
    """Return pairs of what URLs begin with and what replaces it, from `PREFIX=REPLACEMENT …`."""
    mirrors: list[tuple[str, str]] = []
    for word in text.split():
        prefix, equals, replacement = word.partition("=")
        if not equals or not prefix:
            raise click.UsageError(f"TVIX_MIRRORS: {word!r} is not of the form URL-PREFIX=REPLACEMENT")
        mirrors.append((prefix, replacement))
    return mirrors


def default_store_folder() -> Path:
    """Return where the embedded store is: below TVIX_STATE_DIR, or the user's state folder."""
    return _folder("XDG_STATE_HOME", ".local/state", "store")


def default_fetch_cache() -> Path:
    """Return where fetched files are kept: below TVIX_STATE_DIR, or the user's cache folder."""
    return _folder("XDG_CACHE_HOME", ".cache", "fetched")


def _folder(variable: str, below_home: str, name: str) -> Path:
    state = os.environ.get("TVIX_STATE_DIR")
    if state:
        return Path(state) / name
    base = os.environ.get(variable) or os.path.join(os.path.expanduser("~"), below_home)
    return Path(base) / "tvix" / name
