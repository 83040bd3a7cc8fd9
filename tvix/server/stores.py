"""The stores that every process of a server opens for itself, all on the same state folder.

blobs    the disk store
actions  complete( metered( cached in RAM( SQL ))): a result is shown while all its blobs are there
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.asset import ASSETS, AssetStore
from tvix.cas.asset_fetch import FetchConfig
from tvix.cas.cached import CacheConfig, CachedRecords, action_key_bytes, message_size
from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.chunks import ChunkLists
from tvix.cas.complete import ActionResultDigests, CompleteRecords
from tvix.cas.digest import Digest
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.store import DiskBlobStore
from tvix.cas.generations import Generations
from tvix.cas.interfaces import ActionCache, ActionKey, BlobStore
from tvix.cas.logstream import LogStreams
from tvix.cas.metered import MeteredRecordStore, StoreMetrics
from tvix.cas.services import CasServices
from tvix.cas.sql import Codec, Database, SqlRecordStore, open_action_cache, open_database, open_records
from tvix.cas.tree import TreeWalker
from tvix.errors import Unavailable
from tvix.server.config import Config, StoreSection
from tvix.server.state import StateDir

METRICS = StoreMetrics()


@dataclass(frozen=True)
class Stores:
    """What the services of one process work on."""

    blobs: DiskBlobStore
    actions: ActionCache
    chunk_lists: ChunkLists
    assets: AssetStore
    log_streams: LogStreams
    database: Database
    tables: Mapping[str, SqlRecordStore[Any, Any]]
    """The records themselves, below caches and checks: what there is to prune."""


def disk_config(state: StateDir, store: StoreSection) -> DiskConfig:
    """Return the disk store's own settings; all processes must use the same."""
    return DiskConfig(
        path=state.cas,
        max_size_bytes=store.max_size,
        min_free_bytes=store.min_free,
        fsync=store.fsync,
        compression="zstd" if store.compress else "none",
    )


@asynccontextmanager
async def open_stores(config: Config) -> AsyncIterator[Stores]:
    """Open all stores, and close them at the end. Raises Unavailable, naming the folder, when it can't be used."""
    async with AsyncExitStack() as opened:
        try:
            blobs = await DiskBlobStore.open(disk_config(config.state, config.store))
        except OSError as error:
            raise Unavailable(f"the store in {config.state.cas}: {error}") from error
        opened.push_async_callback(blobs.close)
        database = await open_database(config.state.records)
        opened.push_async_callback(database.close)
        generations = opened.enter_context(Generations(config.state.generations))
        records = await open_action_cache(database)
        chunk_lists = await open_records(database, "chunk_lists", CHUNK_LISTS)
        assets = await open_records(database, "assets", ASSETS)
        tables: dict[str, SqlRecordStore[Any, Any]] = {"actions": records, "chunk_lists": chunk_lists, "assets": assets}
        for table in tables.values():
            opened.push_async_callback(table.close)
        actions = _action_cache(records, generations, blobs)
        yield Stores(blobs, actions, chunk_lists, assets, LogStreams(config.state.logs), database, tables)


def _action_cache(
    records: SqlRecordStore[ActionKey, re_pb2.ActionResult], generations: Generations, blobs: BlobStore
) -> ActionCache:
    settings: CacheConfig[ActionKey, re_pb2.ActionResult] = CacheConfig(action_key_bytes, message_size)
    cached = CachedRecords(records, generations, settings)
    metered = MeteredRecordStore(cached, "actions", METRICS)
    return CompleteRecords(metered, blobs, ActionResultDigests(blobs, TreeWalker(blobs)))


def cas_services(config: Config, stores: Stores) -> CasServices:
    """Return what the data services of a process work on, the same in all processes."""
    return CasServices(
        stores.blobs,
        stores.actions,
        CapabilitiesConfig(execution=config.execution.enabled),
        chunk_lists=stores.chunk_lists,
        log_streams=stores.log_streams,
        assets=stores.assets,
        fetch=FetchConfig(allowed_hosts=tuple(config.assets.fetch_hosts), folder=config.state.fetch),
    )


def _decode_chunk_list(data: bytes) -> re_pb2.SplitBlobResponse:
    try:
        return re_pb2.SplitBlobResponse.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


CHUNK_LISTS: Codec[Digest, re_pb2.SplitBlobResponse] = Codec(
    lambda digest: str(digest).encode(), re_pb2.SplitBlobResponse.SerializeToString, _decode_chunk_list
)
