"""The kinds of stores that configuration can name: for each its settings and how it is made.

What is heavy to import (gRPC, SQL, the disk store) is imported when a store of that kind is made.
References to other stores are names or URLs, see compose.py. CompressedBlobStore is not here: none of
today's leaves keeps bytes unverified, which it needs; the disk store compresses by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.authorizing import AuthorizingBlobStore, AuthorizingRecordStore, Rights, instance_of_action
from tvix.cas.cached import CacheConfig, CachedBlobStore, CachedRecords, action_key_bytes, message_size
from tvix.cas.complete import ActionResultDigests, CompleteRecords
from tvix.cas.fallback import FallbackBlobStore, FallbackRecordStore
from tvix.cas.generations import Generations
from tvix.cas.interfaces import ActionCache, ActionKey, BlobStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.readonly import ReadOnlyBlobStore, ReadOnlyRecordStore
from tvix.cas.sharded import Shard, ShardedBlobStore
from tvix.cas.tree import TreeWalker
from tvix.cas.verifying import VerifyingBlobStore
from tvix.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from tvix.cas.compose import Builder

Reference = str
"""The name of a store of the same section (unless said otherwise), or a URL."""


class BlobsConfig(BaseModel):
    """Settings of a blob store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    async def build(self, builder: Builder) -> BlobStore:
        """Make the store."""


class ActionsConfig(BaseModel):
    """Settings of an action cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    async def build(self, builder: Builder) -> ActionCache:
        """Make the store."""


class MemoryBlobs(BlobsConfig):
    async def build(self, builder: Builder) -> BlobStore:
        return MemoryBlobStore()


class DiskBlobs(BlobsConfig):
    """See DiskConfig in tvix/cas/disk/config.py for what the settings mean."""

    path: Path
    max_size_bytes: int | None = None
    high_watermark: float = 0.95
    low_watermark: float = 0.85
    min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    fsync: Literal["never", "interval", "always"] = "interval"
    compression: Literal["none", "zstd"] = "none"

    async def build(self, builder: Builder) -> BlobStore:
        from tvix.cas.disk import DiskBlobStore, DiskConfig

        try:
            store = await DiskBlobStore.open(DiskConfig(**self.model_dump()))
        except OSError as error:
            raise Unavailable(f"{builder.path}: the disk store in {self.path}: {error}") from error
        builder.opened.push_async_callback(store.close)
        return store


class GrpcBlobs(BlobsConfig):
    url: str
    headers: Mapping[str, str] = Field(default_factory=dict)
    compress: bool = False
    verify: bool = True

    async def build(self, builder: Builder) -> BlobStore:
        from tvix.cas.connection import connect
        from tvix.cas.grpc_client import GrpcBlobStore
        from tvix.cas.remote import ClientConfig

        connection = connect(self.url, self.headers)
        builder.opened.push_async_callback(connection.close)
        store = GrpcBlobStore(connection, ClientConfig(compress=self.compress))
        return VerifyingBlobStore(store) if self.verify else store


class VerifyingBlobs(BlobsConfig):
    inner: Reference

    async def build(self, builder: Builder) -> BlobStore:
        return VerifyingBlobStore(await builder.blobs(self.inner, "inner"))


class CachedBlobs(BlobsConfig):
    near: Reference
    far: Reference
    write_near: bool = False
    max_fetch_bytes: int = Field(default=64 * 2**20, ge=0)

    async def build(self, builder: Builder) -> BlobStore:
        near, far = await builder.blobs(self.near, "near"), await builder.blobs(self.far, "far")
        return CachedBlobStore(near, far, write_near=self.write_near, max_fetch_bytes=self.max_fetch_bytes)


class FallbackBlobs(BlobsConfig):
    first: Reference
    then: Reference

    async def build(self, builder: Builder) -> BlobStore:
        return FallbackBlobStore(await builder.blobs(self.first, "first"), await builder.blobs(self.then, "then"))


class ShardedBlobs(BlobsConfig):
    shards: Mapping[str, Reference] = Field(min_length=1)
    """By the name that decides which blobs are in it: the reference may change, the name may not."""
    weights: Mapping[str, float] = Field(default_factory=dict)
    """1.0 for those that are not named."""

    async def build(self, builder: Builder) -> BlobStore:
        for name in self.weights:
            if name not in self.shards:
                raise InvalidInput(f"{builder.path}.weights.{name}: there is no such shard")
        return ShardedBlobStore(
            [
                Shard(name, await builder.blobs(reference, f"shards.{name}"), self.weights.get(name, 1.0))
                for name, reference in self.shards.items()
            ]
        )


class ReadOnlyBlobs(BlobsConfig):
    inner: Reference

    async def build(self, builder: Builder) -> BlobStore:
        return ReadOnlyBlobStore(await builder.blobs(self.inner, "inner"))


class AuthorizingBlobs(BlobsConfig):
    inner: Reference
    instance_name: str = ""

    async def build(self, builder: Builder) -> BlobStore:
        return AuthorizingBlobStore(await builder.blobs(self.inner, "inner"), self.instance_name)


class MeteredBlobs(BlobsConfig):
    inner: Reference
    name: str = ""
    """The label `store`; the name of the table when empty."""

    async def build(self, builder: Builder) -> BlobStore:
        from tvix.cas.metered import MeteredBlobStore

        return MeteredBlobStore(await builder.blobs(self.inner, "inner"), self.name or builder.path, builder.metrics)


class MemoryActions(ActionsConfig):
    async def build(self, builder: Builder) -> ActionCache:
        return MemoryRecordStore()


class SqlActions(ActionsConfig):
    database: str
    """A path, or a URL as SQLAlchemy has them."""

    async def build(self, builder: Builder) -> ActionCache:
        from tvix.cas.authorizing import caller_name
        from tvix.cas.sql import open_action_cache, open_database

        database = await open_database(self.database if "://" in self.database else Path(self.database))
        builder.opened.push_async_callback(database.close)
        store = await open_action_cache(database, writer=caller_name)
        builder.opened.push_async_callback(store.close)
        return store


class GrpcActions(ActionsConfig):
    url: str
    headers: Mapping[str, str] = Field(default_factory=dict)

    async def build(self, builder: Builder) -> ActionCache:
        from tvix.cas.connection import connect
        from tvix.cas.grpc_client import GrpcActionCache

        connection = connect(self.url, self.headers)
        builder.opened.push_async_callback(connection.close)
        return GrpcActionCache(connection)


class CachedActions(ActionsConfig):
    inner: Reference
    generations: Path
    """The file of tokens that all processes share which write to `inner`."""
    max_bytes: int = Field(default=64 * 2**20, ge=0)
    max_age_seconds: float = Field(default=600.0, ge=0)

    async def build(self, builder: Builder) -> ActionCache:
        inner = await builder.actions(self.inner, "inner")
        generations = builder.opened.enter_context(Generations(self.generations))
        config: CacheConfig[ActionKey, re_pb2.ActionResult] = CacheConfig(
            action_key_bytes, message_size, self.max_bytes, self.max_age_seconds
        )
        return CachedRecords(inner, generations, config)


class CompleteActions(ActionsConfig):
    inner: Reference
    blobs: Reference
    """A blob store."""

    async def build(self, builder: Builder) -> ActionCache:
        inner, blobs = await builder.actions(self.inner, "inner"), await builder.blobs(self.blobs, "blobs")
        return CompleteRecords(inner, blobs, ActionResultDigests(blobs, TreeWalker(blobs)))


class FallbackActions(ActionsConfig):
    first: Reference
    then: Reference

    async def build(self, builder: Builder) -> ActionCache:
        first, then = await builder.actions(self.first, "first"), await builder.actions(self.then, "then")
        return FallbackRecordStore(first, then)


class ReadOnlyActions(ActionsConfig):
    inner: Reference

    async def build(self, builder: Builder) -> ActionCache:
        return ReadOnlyRecordStore(await builder.actions(self.inner, "inner"))


class AuthorizingActions(ActionsConfig):
    inner: Reference

    async def build(self, builder: Builder) -> ActionCache:
        inner = await builder.actions(self.inner, "inner")
        return AuthorizingRecordStore(inner, Rights.AC_READ, Rights.AC_WRITE, instance_of_action)


class MeteredActions(ActionsConfig):
    inner: Reference
    name: str = ""
    """The label `store`; the name of the table when empty."""

    async def build(self, builder: Builder) -> ActionCache:
        from tvix.cas.metered import MeteredRecordStore

        return MeteredRecordStore(
            await builder.actions(self.inner, "inner"), self.name or builder.path, builder.metrics
        )


BLOBS: dict[str, type[BlobsConfig]] = {
    "memory": MemoryBlobs,
    "disk": DiskBlobs,
    "grpc": GrpcBlobs,
    "verifying": VerifyingBlobs,
    "cached": CachedBlobs,
    "fallback": FallbackBlobs,
    "sharded": ShardedBlobs,
    "readonly": ReadOnlyBlobs,
    "authorizing": AuthorizingBlobs,
    "metered": MeteredBlobs,
}

ACTIONS: dict[str, type[ActionsConfig]] = {
    "memory": MemoryActions,
    "sql": SqlActions,
    "grpc": GrpcActions,
    "cached": CachedActions,
    "complete": CompleteActions,
    "fallback": FallbackActions,
    "readonly": ReadOnlyActions,
    "authorizing": AuthorizingActions,
    "metered": MeteredActions,
}


async def blobs_from_url(url: str, builder: Builder) -> BlobStore:
    """Make the blob store of a URL; InvalidInput for one that names none."""
    scheme = url.partition(":")[0]
    if url == "memory:":
        return MemoryBlobStore()
    if scheme == "file":
        return await DiskBlobs(path=_path(url)).build(builder)
    if scheme in ("grpc", "grpcs", "unix"):
        return await GrpcBlobs(url=url).build(builder)
    raise InvalidInput(f"{url!r}: not a blob store; write memory:, file:///path, grpc://host:port or unix:/path")


async def actions_from_url(url: str, builder: Builder) -> ActionCache:
    """Make the action cache of a URL; InvalidInput for one that names none."""
    scheme = url.partition(":")[0]
    if url == "memory:":
        return MemoryRecordStore()
    if scheme == "sqlite":
        return await SqlActions(database=str(_path(url))).build(builder)
    if scheme in ("grpc", "grpcs", "unix"):
        return await GrpcActions(url=url).build(builder)
    raise InvalidInput(f"{url!r}: not an action cache; write memory:, sqlite:///path, grpc://host:port or unix:/path")


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or parts.query:
        raise InvalidInput(f"{url!r}: write {parts.scheme}:///absolute/path")
    return Path(unquote(parts.path))
