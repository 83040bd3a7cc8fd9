"""The entry point of the `tvix` program. Verbs are imported when they are used, so that --help is quick."""

from __future__ import annotations

import importlib
import os
import sys

import click

from tvix import __version__

VERBS = {
    "serve": "Run the server: cache, execution and a worker, on one machine.",
    "worker": "Run a worker for a server, here or elsewhere.",
    "status": "Show what a server is doing: queue, workers, hit rates, disk.",
    "cas": "Look into a server's content-addressed store, and add to it.",
    "action": "Show an action: command, inputs, outputs, logs, timings.",
    "eval": "Evaluate a Nix expression and print its value.",
    "instantiate": "Put the derivations of a Nix expression into the store.",
    "compat": "Install programs under the names that scripts use: nix-instantiate.",
    "config": "Check a configuration file, or print an example.",
}
"""Every verb, with its line in `tvix --help`; the module tvix.cli.<verb> holds the command of that name."""


class _Verbs(click.Group):
    """A group whose commands are imported on demand."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"tvix.cli.{name}"), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="tvix %(version)s")
def cli() -> None:
    """A remote execution server and a build farm for Nix, on one content-addressed store.

    \b
    Start a server, then build with it:
      tvix serve
      bazel build --remote_executor=grpc://127.0.0.1:8980 //...
    """


def main() -> None:
    """Run the command line; errors of ours end as one line and the exit code of tvix/errors.py."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Somebody like `head` has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    from tvix.errors import TvixError, codes_of

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if os.environ.get("TVIX_DEBUG") == "1" or not isinstance(error, TvixError):
        raise error
    for line in str(error).splitlines() or [type(error).__name__]:
        click.echo(f"tvix: error: {line}", err=True)
    return codes_of(error).exit
