"""Fetches and keeps what a mounted tree needs next: Directories, small files, pieces of large ones.

The kernel keeps what it has read; the caches here only hold what was fetched before it was asked for, so they
are small. Concurrent wishes for one thing make one fetch. A fetch goes on when those who wait for it give up,
and ends by a time limit: whoever waits in the kernel cannot be killed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tvix.cas.digest import Digest
from tvix.cas.interfaces import BlobStore
from tvix.errors import BlobNotFound, Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

PIECE_BYTES = 1024 * 1024
"""Large files are fetched in aligned pieces of this size, the next one ahead of time."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Bounds of memory and time."""

    small_file_bytes: int = 64 * 1024
    """Files up to this size are fetched whole, in batches with their neighbours."""
    small_cache_bytes: int = 64 * 1024 * 1024
    piece_cache_bytes: int = 64 * 1024 * 1024
    batch_bytes: int = 2 * 1024 * 1024
    fetch_seconds: float = 120.0


class LruCache(Generic[K, V]):
    """A dict bounded by the sum of its values' weights; the least recently used go first."""

    def __init__(self, capacity: int, weigh: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._values: dict[K, V] = {}
        self.weight = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        """Return the value, now the most recently used, or None."""
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: K, value: V) -> None:
        """Keep the value; the newest stays even when it alone is beyond the capacity."""
        self.pop(key)
        self._values[key] = value
        self.weight += self._weigh(value)
        while self.weight > self._capacity and len(self._values) > 1:
            self.pop(next(iter(self._values)))

    def pop(self, key: K) -> V | None:
        """Drop and return the value, or None."""
        value = self._values.pop(key, None)
        if value is not None:
            self.weight -= self._weigh(value)
        return value


class BlobCache:
    """Blobs of one store, on their way into the kernel."""

    def __init__(self, blobs: BlobStore, config: CacheConfig) -> None:
        self._blobs = blobs
        self.config = config
        self._small: LruCache[Digest, bytes] = LruCache(config.small_cache_bytes, len)
        self._pieces: LruCache[tuple[Digest, int], bytes] = LruCache(config.piece_cache_bytes, len)
        self._under_way: dict[Hashable, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<BlobCache {len(self._small)} blobs, {len(self._pieces)} pieces>"

    def take(self, digest: Digest) -> bytes | None:
        """Return a small blob if it is here, and forget it: the kernel will not ask again soon."""
        return self._small.pop(digest) if digest.size_bytes else b""

    def lacks(self, digest: Digest) -> bool:
        """Whether a small blob is neither here nor on its way."""
        return digest not in self._small and digest not in self._under_way and digest.size_bytes > 0

    async def small(self, digest: Digest, neighbours: Sequence[Digest] = ()) -> bytes:
        """Return a small blob; when it must be fetched, fetch as many of `neighbours` along as fit a batch.

        Raises BlobNotFound, Unavailable and what the store raises.
        """
        task = self._under_way.get(digest)
        if task is None:
            data = self.take(digest)
            if data is not None:
                return data
            task = self.prefetch([digest, *neighbours])
        if task is not None:
            # What goes wrong with a neighbour is no concern of this blob, so errors are looked at below only.
            await asyncio.wait([task])
        data = self.take(digest)
        return await self._bounded(self._get(digest)) if data is None else data

    async def _get(self, digest: Digest) -> bytes:
        (data,) = await self._blobs.get_many([digest])
        if data is None:
            raise BlobNotFound(digest)
        return data

    def prefetch(self, digests: Sequence[Digest]) -> asyncio.Task[None] | None:
        """Start to fetch small blobs, those that fit a batch; return the fetch, None if nothing is to do."""
        batch: list[Digest] = []
        size_bytes = 0
        for digest in digests:
            if self.lacks(digest):
                size_bytes += digest.size_bytes
                if batch and size_bytes > self.config.batch_bytes:
                    break
                batch.append(digest)
        return self._start(batch, self._fetch_small(batch)) if batch else None

    async def _fetch_small(self, digests: Sequence[Digest]) -> None:
        for digest, data in zip(digests, await self._blobs.get_many(digests), strict=True):
            if data is not None:
                self._small.put(digest, data)

    def read_now(self, digest: Digest, offset: int, size_bytes: int) -> bytes | None:
        """Return a part of a large blob if it lies in one piece that is here; `offset` is inside the blob."""
        index, start = divmod(offset, PIECE_BYTES)
        if start + min(size_bytes, digest.size_bytes - offset) > PIECE_BYTES:
            return None
        data = self._pieces.get((digest, index))
        if data is None:
            return None
        self._fetch_ahead(digest, index)
        return data[start : start + size_bytes]

    async def read(self, digest: Digest, offset: int, size_bytes: int) -> bytes:
        """Return a part of a large blob, cut at its end; errors as in `small`."""
        end = min(offset + size_bytes, digest.size_bytes)
        if offset >= end:
            return b""
        first, last = offset // PIECE_BYTES, (end - 1) // PIECE_BYTES
        pieces = [await self._piece(digest, index) for index in range(first, last + 1)]
        start = offset - first * PIECE_BYTES
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return whole[start : start + end - offset]

    async def _piece(self, digest: Digest, index: int) -> bytes:
        key = (digest, index)
        data = self._pieces.get(key)
        if data is None:
            task = self._under_way.get(key) or self._start([key], self._fetch_piece(digest, index))
            self._fetch_ahead(digest, index)
            await asyncio.shield(task)
            data = self._pieces.get(key)
        if data is None:
            raise Unavailable(f"piece {index} of blob {digest} was pushed out of the cache at once")
        return data

    def _fetch_ahead(self, digest: Digest, index: int) -> None:
        """Fetch the piece behind `index` if the blob is being read in order."""
        sequential = index == 0 or (digest, index - 1) in self._pieces
        key = (digest, index + 1)
        wanted = sequential and key[1] * PIECE_BYTES < digest.size_bytes
        if wanted and key not in self._pieces and key not in self._under_way:
            self._start([key], self._fetch_piece(digest, index + 1))

    async def _fetch_piece(self, digest: Digest, index: int) -> None:
        async with aclosing(self._blobs.read(digest, offset=index * PIECE_BYTES, limit=PIECE_BYTES)) as chunks:
            parts = [chunk async for chunk in chunks]
        self._pieces.put((digest, index), parts[0] if len(parts) == 1 else b"".join(parts))

    def _start(self, keys: Sequence[Hashable], fetch: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._bounded(fetch))
        for key in keys:
            self._under_way[key] = task
        task.add_done_callback(lambda done: self._ended(keys, done))
        return task

    async def _bounded(self, fetch: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self.config.fetch_seconds):
                return await fetch
        except TimeoutError as error:
            raise Unavailable(f"the store did not answer within {self.config.fetch_seconds:g} s") from error

    def _ended(self, keys: Sequence[Hashable], task: asyncio.Task[None]) -> None:
        for key in keys:
            if self._under_way.get(key) is task:
                del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever waits gets it; for a fetch ahead of time, nobody does

    async def close(self) -> None:
        """Stop all fetches."""
        tasks = set(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
