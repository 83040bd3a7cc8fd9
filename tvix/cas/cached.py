"""Caches: records in RAM in front of SQL, and near blobs in front of far ones."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Hashable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple

from google.protobuf.message import Message

from tvix.cas.digest import Digest
from tvix.cas.forwarding import ForwardingRecordStore
from tvix.cas.generations import Generations
from tvix.cas.interfaces import ActionKey, BlobStore, K, RecordStore, V
from tvix.errors import BlobNotFound, ResourceExhausted, TvixError

_ENTRY_BYTES = 600
"""What an entry costs besides its value: key, digest, dictionary slot."""


@dataclass(frozen=True)
class CacheConfig(Generic[K, V]):
    """How records are cached; `key_bytes` must be the same in all processes that share generations."""

    key_bytes: Callable[[K], bytes]
    size_of: Callable[[V], int]
    """The bytes a value takes in RAM, about."""
    max_bytes: int = 64 * 1024 * 1024
    max_age_seconds: float = 600.0
    """After this a record is read again, which also tells the inner store that it is still in use."""


class _Entry(NamedTuple, Generic[V]):
    value: V | None
    token: int
    expires_seconds: float
    size_bytes: int


class CachedRecords(ForwardingRecordStore[K, V]):
    """Holds records in RAM while their generation lasts, absence included. A hit neither waits nor asks.

    All writers of the inner store, in whatever process, must write through a CachedRecords with the same
    generations. Values are shared: nobody changes one after `put` or `get`.
    """

    def __init__(
        self,
        inner: RecordStore[K, V],
        generations: Generations,
        config: CacheConfig[K, V],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._generations = generations
        self._config = config
        self._now = now
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<CachedRecords {len(self._entries)} records of {self._inner!r}>"

    async def get(self, key: K) -> V | None:
        # Before reading: if the record changes meanwhile, the token has changed too, and the entry is void.
        token = self._generations.token(self._config.key_bytes(key))
        entry = self._entries.get(key)
        if entry is not None and entry.token == token and self._now() < entry.expires_seconds:
            self._entries.move_to_end(key)
            return entry.value
        value = await self._inner.get(key)
        self._keep(key, value, token)
        return value

    def _keep(self, key: K, value: V | None, token: int) -> None:
        self._drop(key)
        size = _ENTRY_BYTES + (0 if value is None else self._config.size_of(value))
        if size > self._config.max_bytes:
            return
        self._entries[key] = _Entry(value, token, self._now() + self._config.max_age_seconds, size)
        self._bytes += size
        while self._bytes > self._config.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size_bytes

    async def put(self, key: K, value: V) -> None:
        try:
            await self._inner.put(key, value)
        finally:
            # Also when it failed or was cancelled: it may have been written. What was put is not kept, for
            # another process may have put after us and told so before us.
            self._generations.changed(self._config.key_bytes(key))
            self._drop(key)

    async def delete(self, key: K) -> None:
        try:
            await self._inner.delete(key)
        finally:
            self._generations.changed(self._config.key_bytes(key))
            self._drop(key)


def action_key_bytes(key: ActionKey) -> bytes:
    """Return what names the generation of an action cache key."""
    return key.action_digest.hash.encode()


def message_size(message: Message) -> int:
    """Return about how much RAM a parsed message takes."""
    return 3 * message.ByteSize()


class _Flight:
    """Those who wait for one blob to be fetched."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class CachedBlobStore(BlobStore):
    """Reads `far` through `near`: what is read from afar is kept near, and fetched only once at a time.

    A blob that is near counts as present, whatever `far` says. Writes go to `far`, and with `write_near` to
    both. When near has no room, blobs pass by it. Ranges of blobs above `max_fetch_bytes` that are not near
    are read from afar as they are asked for.
    """

    def __init__(
        self, near: BlobStore, far: BlobStore, *, write_near: bool = False, max_fetch_bytes: int = 64 * 1024 * 1024
    ) -> None:
        self._near = near
        self._far = far
        self._write_near = write_near
        self._max_fetch_bytes = max_fetch_bytes
        self._flights: dict[Digest, _Flight] = {}

    def __repr__(self) -> str:
        return f"<CachedBlobStore {self._near!r} before {self._far!r}>"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing = await self._near.find_missing(digests)
        return await self._far.find_missing(missing) if missing else missing

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        source = self._near
        if await self._near.find_missing([digest]) and not await self._fetched(digest, offset, limit):
            source = self._far
        try:
            async with aclosing(source.read(digest, offset=offset, limit=limit)) as chunks:
                async for chunk in chunks:
                    yield chunk
                return
        except BlobNotFound:
            if source is self._far:
                raise
        # Evicted from near between the two looks.
        async with aclosing(self._far.read(digest, offset=offset, limit=limit)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _fetched(self, digest: Digest, offset: int, limit: int | None) -> bool:
        """Bring a blob near; return whether it is there now."""
        whole = offset == 0 and (limit is None or limit >= digest.size_bytes)
        if not whole and digest.size_bytes > self._max_fetch_bytes:
            return False
        async with self._alone(digest):
            if not await self._near.find_missing([digest]):
                return True
            try:
                async with aclosing(self._far.read(digest)) as chunks:
                    await self._near.write(digest, chunks)
            except ResourceExhausted:
                return False
            return True

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncIterator[None]:
        # No task of its own: whoever comes first fetches; if it is cancelled, the next one does.
        flight = self._flights.setdefault(digest, _Flight())
        flight.waiting += 1
        try:
            async with flight.lock:
                yield
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                del self._flights[digest]

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        if not self._write_near:
            await self._far.write(digest, chunks)
            return
        await self._near.write(digest, chunks)
        async with aclosing(self._near.read(digest)) as again:
            await self._far.write(digest, again)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        blobs = await self._near.get_many(digests)
        absent = list(dict.fromkeys(digest for digest, blob in zip(digests, blobs, strict=True) if blob is None))
        if not absent:
            return blobs
        found = dict(zip(absent, await self._far.get_many(absent), strict=True))
        fresh = [(digest, blob) for digest, blob in found.items() if blob is not None]
        if fresh:
            await self._near.put_many(fresh)
        return [found[digest] if blob is None else blob for digest, blob in zip(digests, blobs, strict=True)]

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        outcomes = await self._far.put_many(blobs)
        if self._write_near:
            good = [blob for blob, refused in zip(blobs, outcomes, strict=True) if refused is None]
            await self._near.put_many(good)
        return outcomes

    async def close(self) -> None:
        try:
            await self._near.close()
        finally:
            await self._far.close()
