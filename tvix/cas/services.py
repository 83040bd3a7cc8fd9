"""All services of the CAS side on one server: one configuration value, one call.

Every instance name shares the stores; the action cache keys its records by instance itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.chunks import ChunkLists, Chunks
from tvix.cas.grpc_action_cache import ActionCacheService, register_action_cache
from tvix.cas.grpc_bytestream import ByteStreamService, register_bytestream
from tvix.cas.grpc_capabilities import register_capabilities
from tvix.cas.grpc_cas import CasService, register_cas
from tvix.cas.grpc_logstream import register_logstream
from tvix.cas.interfaces import ActionCache, BlobStore
from tvix.cas.logstream import LogStreams
from tvix.cas.memory import MemoryRecordStore
from tvix.cas.uploads import Uploads


def _everyone(_context: Any) -> bool:
    return True


@dataclass(frozen=True)
class CasServices:
    """What the services work on; closing the stores is up to whoever made them."""

    blobs: BlobStore
    actions: ActionCache
    capabilities: CapabilitiesConfig = field(default_factory=CapabilitiesConfig)
    chunk_lists: ChunkLists = field(default_factory=MemoryRecordStore)
    may_update_actions: Callable[[Any], bool] = _everyone
    """Whether the caller of an RPC (its context) may write action results."""
    require_action: bool = True
    """Whether UpdateActionResult insists on the Action and Command being in the CAS, as the spec says."""
    log_streams: LogStreams | None = None
    """Served by LogStream and ByteStream; not at all when None."""


def add_cas_services(server: Any, services: CasServices) -> Uploads:
    """Add Capabilities, CAS, ByteStream, ActionCache and LogStream to a server that was not started yet.

    Returns the uploads under way: close them after the server has stopped, before the stores.
    """
    uploads = Uploads(services.blobs)
    limits = services.capabilities
    register_capabilities(server, limits, services.may_update_actions)
    chunks = Chunks(services.blobs, services.chunk_lists)
    cas = CasService(
        services.blobs, chunks, max_blob_bytes=limits.max_blob_bytes, max_batch_bytes=limits.max_batch_bytes
    )
    register_cas(server, cas)
    bytestream = ByteStreamService(services.blobs, uploads, services.log_streams, max_blob_bytes=limits.max_blob_bytes)
    register_bytestream(server, bytestream)
    register_action_cache(
        server,
        ActionCacheService(
            services.actions, services.blobs, services.may_update_actions, require_action=services.require_action
        ),
    )
    if services.log_streams is not None:
        register_logstream(server, services.log_streams)
    return uploads
