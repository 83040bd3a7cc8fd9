"""A peer that speaks gRPC: its limits, and how calls to it are tried again."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import tenacity
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tvix.cas.connection import Connection
from tvix.errors import Unavailable, Unsupported
from tvix.rpc import error_from_rpc

SAFE_BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""When the peer names no limit (0): what fits into gRPC's default message size."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a peer is talked to."""

    small_blob_bytes: int = 1024 * 1024
    """Blobs up to this size go in batches, if the peer's limit allows it."""
    max_find_missing: int = 10_000
    """Digests in one FindMissingBlobs request; about 0.8 MB."""
    concurrency: int = 8
    """Batch calls of one kind in flight; what comes while all are is merged."""
    attempts: int = 5
    first_wait_seconds: float = 0.1
    max_wait_seconds: float = 5.0
    call_timeout_seconds: float = 60.0
    """For one attempt of a unary call. Streams have no limit; keepalive finds dead peers."""
    replay_bytes: int = 32 * 1024 * 1024
    """How much of an upload is kept for sending again after a break; more of it may be lost with it."""
    compress: bool = False
    """Use zstd where the peer can."""


class Remote:
    """One peer: its stubs, its limits, and how calls to it are tried again."""

    def __init__(self, connection: Connection, config: ClientConfig) -> None:
        self.connection = connection
        self.config = config
        self.instance_name = connection.instance_name
        self._capabilities: re_pb2.CacheCapabilities | None = None
        self._asking = asyncio.Lock()

    async def capabilities(self) -> re_pb2.CacheCapabilities:
        """Return what the peer can do, asked once; a peer that does not say gets modest requests."""
        if self._capabilities is not None:
            return self._capabilities
        async with self._asking:
            if self._capabilities is None:
                stub = re_grpc.CapabilitiesStub(self.connection.channel)
                request = re_pb2.GetCapabilitiesRequest(instance_name=self.instance_name)
                try:
                    self._capabilities = (await self.call(stub.GetCapabilities, request)).cache_capabilities
                except Unsupported:
                    self._capabilities = re_pb2.CacheCapabilities()
        return self._capabilities

    async def batch_bytes(self) -> int:
        """Return how many bytes of blobs one batch may hold."""
        limit = (await self.capabilities()).max_batch_total_size_bytes
        return min(limit, SAFE_BATCH_BYTES) if limit > 0 else SAFE_BATCH_BYTES

    async def compresses(self, *, batches: bool) -> bool:
        """Say whether to send and ask for zstd."""
        if not self.config.compress:
            return False
        capabilities = await self.capabilities()
        # Updates have a list of their own; for reads, whoever can decompress may ask.
        both = capabilities.supported_batch_update_compressors if batches else capabilities.supported_compressors
        return re_pb2.Compressor.ZSTD in both

    async def call(self, method: Any, request: Any) -> Any:
        """Make a unary call; passing faults are tried again. Raises TvixErrors only."""

        async def once() -> Any:
            try:
                return await method(
                    request, metadata=self.connection.metadata, timeout=self.config.call_timeout_seconds
                )
            except aio.AioRpcError as error:
                raise error_from_rpc(error) from error

        return await self.retrying()(once)

    def retrying(self) -> tenacity.AsyncRetrying:
        """Return what tries a coroutine function again while it raises Unavailable."""
        config = self.config
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=tenacity.stop_after_attempt(config.attempts),
            wait=tenacity.wait_random_exponential(config.first_wait_seconds, config.max_wait_seconds),
            reraise=True,
        )

    async def pause(self, attempt: int) -> None:
        """Wait before the next attempt of a stream, longer each time; attempts count from 1."""
        config = self.config
        await asyncio.sleep(random.uniform(0, min(config.max_wait_seconds, config.first_wait_seconds * 2**attempt)))
