"""A real server on a port of its own, for the tests of clients."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio

from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.interfaces import ActionCache, BlobStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.services import CasServices, add_cas_services


@asynccontextmanager
async def serving(add: Callable[[aio.Server], None]) -> AsyncIterator[str]:
    """Serve what `add` adds; give the URL."""
    server = aio.server()
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def reapi_server(
    blobs: BlobStore | None = None,
    actions: ActionCache | None = None,
    capabilities: CapabilitiesConfig | None = None,
) -> AsyncIterator[str]:
    """Serve stores (in memory unless given) as `tvix serve` does; give the URL."""
    services = CasServices(
        blobs if blobs is not None else MemoryBlobStore(),
        actions if actions is not None else MemoryRecordStore(),
        capabilities or CapabilitiesConfig(),
        require_action=False,
    )
    uploads: list[Any] = []
    async with serving(lambda server: uploads.append(add_cas_services(server, services))) as url:
        yield url
    await uploads[0].close()
