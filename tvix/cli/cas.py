"""`tvix cas`: blobs and trees of a server."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvix.cli.remote import human_size, open_remote, parse_digest, server_options

if TYPE_CHECKING:
    from tvix.cas.digest import Digest

FUNCTIONS = ("sha256", "blake3", "sha1", "sha384", "sha512", "md5", "sha256tree")


@click.group()
def cas() -> None:
    """Look into a server's content-addressed store, and add to it.

    Digests are written HASH/SIZE, or FUNCTION/HASH/SIZE where the hash's length does not tell (blake3/…).

    \b
    tvix cas put src/                       upload a directory, print its digest
    tvix cas ls -R 1d4e…/342                list it
    tvix cas cat 1d4e…/342 lib/a.txt        print a file of it
    tvix cas get 1d4e…/342 copy/            write it to disk
    """


@cas.command()
@server_options
@click.argument("digest")
@click.argument("path", default="")
@click.option("-R", "--recursive", is_flag=True, help="Descend into directories.")
def ls(server: str, instance: str | None, digest: str, path: str, recursive: bool) -> None:
    """List the Directory or Tree DIGEST, or the directory PATH in it."""
    from tvix.cli import trees

    async def run() -> None:
        async with open_remote(server, instance) as remote:
            reader = trees.TreeReader(remote.blobs)
            root = await reader.find(await reader.open(parse_digest(digest)), path)
            async with aclosing(reader.walk(root, recursive=recursive)) as entries:
                async for entry in entries:
                    click.echo(trees.format_entry(entry))

    asyncio.run(run())


@cas.command()
@server_options
@click.argument("digest")
@click.argument("path", default="")
def cat(server: str, instance: str | None, digest: str, path: str) -> None:
    """Write the blob DIGEST, or the file PATH in the Directory DIGEST, to standard output."""
    from tvix.cli import trees

    async def run() -> None:
        async with open_remote(server, instance) as remote:
            wanted = parse_digest(digest)
            if path:
                reader = trees.TreeReader(remote.blobs)
                wanted = await reader.file(await reader.open(wanted), path)
            async with aclosing(remote.blobs.read(wanted)) as chunks:
                async for chunk in chunks:
                    sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()

    asyncio.run(run())


@cas.command()
@server_options
@click.argument("digest")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--file", "as_file", is_flag=True, help="Take DIGEST for a file, even if it looks like a directory.")
def get(server: str, instance: str | None, digest: str, destination: Path, as_file: bool) -> None:
    """Write the blob or directory DIGEST to DESTINATION, which must not exist yet."""
    from tvix.cli import trees
    from tvix.errors import AlreadyExists

    async def run() -> None:
        if destination.exists() or destination.is_symlink():
            raise AlreadyExists(f"{destination} exists; choose another name")
        async with open_remote(server, instance) as remote:
            wanted = parse_digest(digest)
            reader = trees.TreeReader(remote.blobs)
            if not as_file and await reader.is_directory(wanted):
                count = await trees.write_tree(reader, await reader.open(wanted), destination)
                click.echo(f"{destination}: {count} files", err=True)
            else:
                await trees.write_file(remote.blobs, wanted, destination)

    asyncio.run(run())


@cas.command()
@server_options
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--function", type=click.Choice(FUNCTIONS), default="sha256", show_default=True, help="Digest function.")
def put(server: str, instance: str | None, paths: tuple[Path, ...], function: str) -> None:
    """Upload files and directories; print a digest for each PATH. What the server has already is not sent."""
    from typing import cast

    from tvix.cas.digest import DigestFunction
    from tvix.cli.uploading import upload

    async def run() -> None:
        async with open_remote(server, instance) as remote:
            for path in paths:
                digest, sent_bytes = await upload(remote.blobs, path, cast("DigestFunction", function))
                click.echo(f"{digest}  {path}")
                click.echo(f"{path}: {human_size(sent_bytes)} sent", err=True)

    asyncio.run(run())


@cas.command()
@server_options
@click.argument("digests", nargs=-1, required=True)
def stat(server: str, instance: str | None, digests: tuple[str, ...]) -> None:
    """Tell for each of DIGESTS whether it is there, and what it looks like. Exit code 4 when one is absent."""
    from tvix.cli import trees

    async def run() -> int:
        async with open_remote(server, instance) as remote:
            wanted: list[Digest] = [parse_digest(text) for text in digests]
            missing = await remote.blobs.find_missing(wanted)
            for digest in wanted:
                if digest in missing:
                    click.echo(f"{digest}  absent")
                else:
                    click.echo(
                        f"{digest}  {human_size(digest.size_bytes)}  {await trees.describe(remote.blobs, digest)}"
                    )
            return 4 if missing else 0

    sys.exit(asyncio.run(run()))
