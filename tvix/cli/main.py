"""The entry point of the `tvix` program."""

import click

from tvix import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """A remote execution server and a build farm for Nix, on one content-addressed store."""
