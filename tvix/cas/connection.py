"""Where a peer is, and a channel to it.

URLs: `grpc://host:port/instance/name`, `grpcs://…` the same over TLS with the system's authorities,
`unix:/path/of/socket` or `unix:///path?instance=name`, and plain `host:port`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
from grpc import aio

from tvix.cas.resource_names import check_instance_name
from tvix.errors import InvalidInput
from tvix.rpc import CHANNEL_OPTIONS


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A checked URL, taken apart."""

    target: str
    """What gRPC connects to: `host:port` or `unix:/path`."""
    instance_name: str = ""
    tls: bool = False


def parse_endpoint(url: str) -> Endpoint:
    """Return the parts of a URL; InvalidInput says what is wrong with it and what it should look like."""
    if "://" not in url and not url.startswith("unix:"):
        url = f"grpc://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"{url!r}: {error}; write grpc://host:port/instance", field="url") from error
    if parts.scheme == "unix":
        if not parts.path or parts.netloc:
            raise InvalidInput(f"{url!r}: write unix:/absolute/path/of/the.sock", field="url")
        instance = parse_qs(parts.query).get("instance", [""])[0]
        return Endpoint(f"unix:{unquote(parts.path)}", check_instance_name(instance, field="url"))
    if parts.scheme not in ("grpc", "grpcs"):
        raise InvalidInput(f"{url!r}: the scheme {parts.scheme!r} is none of grpc, grpcs, unix", field="url")
    if not parts.hostname or port is None or parts.query or parts.username is not None:
        raise InvalidInput(f"{url!r}: write {parts.scheme}://host:port/instance, or without /instance", field="url")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    instance = check_instance_name(unquote(parts.path).strip("/"), field="url")
    return Endpoint(f"{host}:{port}", instance, parts.scheme == "grpcs")


class Connection:
    """A channel, with what every call over it needs. Connects when first used, and again when broken."""

    def __init__(self, endpoint: Endpoint, channel: aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.metadata = metadata
        """To be given to every call: the headers."""

    def __repr__(self) -> str:
        instance = f" instance {self.instance_name!r}" if self.instance_name else ""
        return f"<Connection {self.endpoint.target}{instance}>"

    @property
    def instance_name(self) -> str:
        """The instance name of every request."""
        return self.endpoint.instance_name

    async def close(self) -> None:
        """End all calls and close the channel."""
        await self.channel.close()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def connect(url: str | Endpoint, headers: Mapping[str, str] | None = None) -> Connection:
    """Return a connection to a peer; nothing is sent yet. Call it on the event loop that will use it.

    `headers` go with every call, for instance `{"authorization": "Bearer …"}`. Raises InvalidInput for a bad URL.
    """
    endpoint = parse_endpoint(url) if isinstance(url, str) else url
    # Not shared with other channels of this process to the same peer: each has a connection of its own.
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    if endpoint.tls:
        channel = aio.secure_channel(endpoint.target, grpc.ssl_channel_credentials(), options)
    else:
        channel = aio.insecure_channel(endpoint.target, options)
    return Connection(endpoint, channel, tuple((key.lower(), value) for key, value in (headers or {}).items()))
