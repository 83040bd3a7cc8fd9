"""`tvix action`."""

from __future__ import annotations

import asyncio

import click

from tvix.cli.remote import open_remote, parse_digest, server_options


@click.group()
def action() -> None:
    """Show an action: command, inputs, outputs, logs, timings.

    \b
    tvix action show 2f1c…9a/147
    """


@action.command()
@server_options
@click.argument("digest")
@click.option("--log-lines", default=40, show_default=True, help="How much of stdout and stderr to show; 0: all.")
def show(server: str, instance: str | None, digest: str, log_lines: int) -> None:
    """Show the action DIGEST: what it runs, on what, and how its last run ended.

    DIGEST is what `bazel build --execution_log_json_file=…`, `tvix status` or a server's message names. The result
    is taken from the action cache; when it is not there (failed actions are not cached), from the operations that
    the server remembers.

    \b
    tvix action show 2f1c…9a/147
    """
    from rich.console import Console

    from tvix.cli.action_report import fetch_report, render_report

    console = Console(highlight=False, soft_wrap=True)

    async def run() -> None:
        async with open_remote(server, instance) as remote:
            for part in render_report(await fetch_report(remote, parse_digest(digest), log_lines or None)):
                console.print(part)

    asyncio.run(run())
