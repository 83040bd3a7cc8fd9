"""`tvix compat`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

PROGRAMS = {"nix-instantiate": "tvix.cli.nix_instantiate"}
"""Names that scripts use, and the modules whose `main` answers to them."""


@click.group()
def compat() -> None:
    """Install programs under the names that Nix users' scripts call.

    \b
    tvix compat install ~/.local/bin
    """


@compat.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace programs that are there.")
def install(folder: Path, force: bool) -> None:
    """Put `nix-instantiate` into DIR, with the flags and the output of the real one.

    \b
    tvix compat install ~/.local/bin
    PATH=~/.local/bin:$PATH nix-instantiate --eval -E '1 + 1'
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in PROGRAMS.items():
        target = folder / name
        if target.exists() and not force:
            raise click.ClickException(f"{target} is there already; --force replaces it")
        target.unlink(missing_ok=True)
        target.write_text(f"#!{sys.executable}\nfrom {module} import main\n\nmain()\n")
        target.chmod(0o755)
        click.echo(str(target))
