"""`tvix config`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def config() -> None:
    """Check a configuration file, or print an example.

    \b
    tvix config example > tvix.toml
    tvix config check tvix.toml
    tvix serve --config tvix.toml
    """


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Tell whether `tvix serve --config FILE` would accept the file. Starts nothing.

    \b
    tvix config check /etc/tvix.toml
    """
    from tvix.server.config import check_config

    checked = check_config(file)
    click.echo(
        f"{file}: good; gRPC on {checked.server.grpc}, HTTP on {checked.server.http}, state in {checked.state.root}"
    )


@config.command()
def example() -> None:
    """Print a file with every option, explained, at its default.

    \b
    tvix config example > tvix.toml
    """
    from tvix.server import config as server_config

    click.echo(server_config.example())
