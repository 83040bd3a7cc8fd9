"""All services of the CAS side on one server: one configuration value, one call.

Every instance name shares the stores; the action cache keys its records by instance itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvix.cas.asset import Assets, AssetStore
from tvix.cas.asset_fetch import FetchConfig, Fetcher
from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.chunks import ChunkLists, Chunks
from tvix.cas.grpc_action_cache import ActionCacheService, register_action_cache
from tvix.cas.grpc_asset import FetchService, PushService, register_asset
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
    assets: AssetStore | None = None
    """Served by Fetch and Push; not at all when None."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    may_push_assets: Callable[[Any], bool] = _everyone
    """Whether the caller of an RPC (its context) may push assets."""


@dataclass(frozen=True)
class CasWork:
    """What goes on beside the calls. Close it after the server has stopped, before the stores."""

    uploads: Uploads
    fetch: FetchService | None

    async def close(self) -> None:
        """Undo unfinished uploads, stop retrievals of assets."""
        if self.fetch is not None:
            await self.fetch.close()
        await self.uploads.close()


def add_cas_services(server: Any, services: CasServices) -> CasWork:
    """Add Capabilities, CAS, ByteStream and ActionCache, and LogStream and Asset if they have a store, to a
    server that was not started yet."""
    blobs = services.blobs
    uploads = Uploads(blobs)
    limits = services.capabilities
    register_capabilities(server, limits, services.may_update_actions)
    cas = CasService(
        blobs,
        Chunks(blobs, services.chunk_lists),
        max_blob_bytes=limits.max_blob_bytes,
        max_batch_bytes=limits.max_batch_bytes,
    )
    register_cas(server, cas)
    bytestream = ByteStreamService(blobs, uploads, services.log_streams, max_blob_bytes=limits.max_blob_bytes)
    register_bytestream(server, bytestream)
    action_cache = ActionCacheService(
        services.actions, blobs, services.may_update_actions, require_action=services.require_action
    )
    register_action_cache(server, action_cache)
    if services.log_streams is not None:
        register_logstream(server, services.log_streams)
    return CasWork(uploads, _add_asset_services(server, services))


def _add_asset_services(server: Any, services: CasServices) -> FetchService | None:
    if services.assets is None:
        return None
    assets = Assets(services.blobs, services.assets)
    fetch = FetchService(assets, Fetcher(services.blobs, services.fetch))
    register_asset(server, fetch, PushService(assets, services.may_push_assets))
    return fetch
