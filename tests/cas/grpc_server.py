"""A real server with the CAS side's services on a free port of 127.0.0.1, over stores in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from grpc import aio

from remote_apis import bytestream_pb2_grpc, remote_execution_pb2_grpc
from tvix.cas.interfaces import ActionKey
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.services import CasServices, add_cas_services
from tvix.cas.uploads import Uploads
from tvix.http2.server import GrpcServer
from tvix.rpc import CHANNEL_OPTIONS


@dataclass
class Served:
    """What a test talks to, and what it looks into."""

    blobs: MemoryBlobStore
    actions: MemoryRecordStore[ActionKey, Any]
    uploads: Uploads
    channel: aio.Channel
    address: str

    @property
    def cas(self) -> remote_execution_pb2_grpc.ContentAddressableStorageAsyncStub:
        return remote_execution_pb2_grpc.ContentAddressableStorageStub(self.channel)

    @property
    def bytestream(self) -> bytestream_pb2_grpc.ByteStreamAsyncStub:
        return bytestream_pb2_grpc.ByteStreamStub(self.channel)

    @property
    def action_cache(self) -> remote_execution_pb2_grpc.ActionCacheAsyncStub:
        return remote_execution_pb2_grpc.ActionCacheStub(self.channel)

    @property
    def capabilities(self) -> remote_execution_pb2_grpc.CapabilitiesAsyncStub:
        return remote_execution_pb2_grpc.CapabilitiesStub(self.channel)


@asynccontextmanager
async def serve(**settings: Any) -> AsyncIterator[Served]:
    """Serve until the context ends; `settings` are fields of CasServices."""
    blobs = settings.pop("blobs", None) or MemoryBlobStore()
    actions: MemoryRecordStore[ActionKey, Any] = MemoryRecordStore()
    server = GrpcServer()
    work = add_cas_services(server, CasServices(blobs=blobs, actions=actions, **settings))
    port = server.add_port("127.0.0.1", 0)
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            yield Served(blobs, actions, work.uploads, channel, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)
        await work.close()
