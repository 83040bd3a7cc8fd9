"""What verbs that talk to a server share: its address, digests as people write them, sizes as people read them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tvix.cas.connection import Connection
    from tvix.cas.digest import Digest
    from tvix.cas.interfaces import BlobStore

DEFAULT_SERVER = "grpc://127.0.0.1:8980"

Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(command: Command) -> Command:
    """Add --server and --instance to a command."""
    server = click.option(
        "--server",
        envvar="TVIX_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="grpc://HOST:PORT, grpcs://HOST:PORT or unix:/SOCKET.",
    )
    instance = click.option("--instance", default=None, metavar="NAME", help="Instance name, if the server has any.")
    return server(instance(command))


CALL_SECONDS = 60.0


@dataclass(frozen=True)
class Remote:
    """A server, connected to."""

    url: str
    connection: Connection
    blobs: BlobStore
    instance_name: str

    async def ask(self, method: Any, request: Any) -> Any:
        """Make one unary call; raises TvixErrors only."""
        from grpc import aio

        from tvix.errors import Unavailable
        from tvix.rpc import error_from_rpc

        try:
            return await method(request, timeout=CALL_SECONDS)
        except aio.AioRpcError as error:
            known = error_from_rpc(error)
            if isinstance(known, Unavailable):
                raise Unavailable(f"{self.url} does not answer ({known}); see --server, or run `tvix serve`") from error
            raise known from error


@asynccontextmanager
async def open_remote(server: str, instance_name: str | None) -> AsyncIterator[Remote]:
    """Connect to a server; its blobs are verified as they come."""
    from dataclasses import replace

    from tvix.cas.connection import connect, parse_endpoint
    from tvix.cas.grpc_client import remote_blobs

    endpoint = parse_endpoint(server)
    if instance_name is not None:
        endpoint = replace(endpoint, instance_name=instance_name)
    async with connect(endpoint) as connection:
        blobs = remote_blobs(connection)
        try:
            yield Remote(server, connection, blobs, endpoint.instance_name)
        finally:
            await blobs.close()


def parse_digest(text: str) -> Digest:
    """Return the digest written `HASH/SIZE`, `HASH:SIZE`, `FUNCTION/HASH/SIZE`, or as a resource name that ends so."""
    from typing import cast

    from tvix.cas.digest import FUNCTIONS, DigestFunction, function_from_wire, make_digest
    from tvix.errors import InvalidInput

    match = re.fullmatch(r"(?:.*?(?:^|/))?(?:([a-z0-9]+)/)?([0-9a-f]{32,})[/:_](\d+)", text.strip())
    if not match:
        raise InvalidInput(
            f"{text!r} is not a digest; write HASH/SIZE, or FUNCTION/HASH/SIZE for blake3 and sha256tree"
        )
    named = match[1] if match[1] in FUNCTIONS else None
    function = cast("DigestFunction", named) if named else function_from_wire(0, match[2], field="digest")
    return make_digest(function, match[2], int(match[3]))


def human_size(size_bytes: float) -> str:
    """Return a size in the largest unit that leaves a digit before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
