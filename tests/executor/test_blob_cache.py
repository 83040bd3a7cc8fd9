"""What is fetched for a mount before it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from tvix.cas.digest import Digest, digest_of
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import BlobNotFound, CorruptData, Unavailable
from tvix.executor.blob_cache import PIECE_BYTES, BlobCache, CacheConfig, LruCache


class CountingStore(MemoryBlobStore):
    """Counts fetches; `held` stops them until it is set, `broken` blobs fail the batch they are in."""

    def __init__(self, *blobs: bytes) -> None:
        super().__init__()
        self.blobs.update({digest_of(blob): blob for blob in blobs})
        self.batches: list[list[Digest]] = []
        self.ranges: list[int] = []
        self.held = asyncio.Event()
        self.held.set()
        self.broken: set[Digest] = set()

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        self.batches.append(list(digests))
        await self.held.wait()
        if self.broken & set(digests):
            raise CorruptData("broken")
        return await super().get_many(digests)

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        self.ranges.append(offset)
        await self.held.wait()
        async for chunk in super().read(digest, offset=offset, limit=limit):
            yield chunk


async def test_neighbours_come_along_and_are_taken_once() -> None:
    blobs = [b"%d" % number for number in range(5)]
    store = CountingStore(*blobs)
    cache = BlobCache(store, CacheConfig())
    digests = [digest_of(blob) for blob in blobs]
    assert await cache.small(digests[0], digests[1:]) == b"0"
    assert store.batches == [digests]
    assert cache.take(digests[3]) == b"3"
    assert cache.take(digests[3]) is None
    assert await cache.small(digests[3]) == b"3"
    assert store.batches == [digests, [digests[3]]]
    await cache.close()


async def test_batches_are_bounded() -> None:
    blobs = [bytes([number]) * 1000 for number in range(5)]
    store = CountingStore(*blobs)
    cache = BlobCache(store, CacheConfig(batch_bytes=2500))
    digests = [digest_of(blob) for blob in blobs]
    await cache.small(digests[0], digests[1:])
    assert store.batches == [digests[:2]]
    await cache.close()


async def test_concurrent_readers_share_a_fetch() -> None:
    store = CountingStore(b"a", b"b")
    cache = BlobCache(store, CacheConfig())
    store.held.clear()
    a, b = digest_of(b"a"), digest_of(b"b")
    readers = [asyncio.create_task(cache.small(a, [b])), asyncio.create_task(cache.small(b))]
    await asyncio.sleep(0)
    store.held.set()
    assert await asyncio.gather(*readers) == [b"a", b"b"]
    assert store.batches == [[a, b]]


async def test_a_broken_neighbour_harms_nobody_else() -> None:
    store = CountingStore(b"a", b"b")
    a, b = digest_of(b"a"), digest_of(b"b")
    store.broken = {b}
    cache = BlobCache(store, CacheConfig())
    assert await cache.small(a, [b]) == b"a"
    with pytest.raises(CorruptData):
        await cache.small(b)


async def test_absence_is_not_remembered() -> None:
    store = CountingStore()
    cache = BlobCache(store, CacheConfig())
    with pytest.raises(BlobNotFound):
        await cache.small(digest_of(b"late"))
    with pytest.raises(BlobNotFound):
        await cache.read(digest_of(bytes(100_000)), 0, 10)
    store.blobs[digest_of(b"late")] = b"late"
    assert await cache.small(digest_of(b"late")) == b"late"


async def test_the_empty_blob_needs_no_fetch() -> None:
    store = CountingStore()
    assert await BlobCache(store, CacheConfig()).small(digest_of(b"")) == b""
    assert store.batches == []


async def test_a_reader_that_gives_up_does_not_stop_the_fetch() -> None:
    store = CountingStore(b"a")
    cache = BlobCache(store, CacheConfig())
    store.held.clear()
    reader = asyncio.create_task(cache.small(digest_of(b"a")))
    await asyncio.sleep(0)
    reader.cancel()
    store.held.set()
    assert await cache.small(digest_of(b"a")) == b"a"
    assert len(store.batches) == 1


async def test_a_store_that_does_not_answer_is_unavailable() -> None:
    store = CountingStore(b"a", bytes(100_000))
    cache = BlobCache(store, CacheConfig(fetch_seconds=0.01))
    store.held.clear()
    with pytest.raises(Unavailable, match=r"0\.01 s"):
        await cache.small(digest_of(b"a"))
    with pytest.raises(Unavailable):
        await cache.read(digest_of(bytes(100_000)), 0, 1)


async def test_large_blobs_come_in_pieces_one_ahead_when_read_in_order() -> None:
    data = bytes(range(256)) * (4 * PIECE_BYTES // 256) + b"end"
    store = CountingStore(data)
    cache = BlobCache(store, CacheConfig())
    digest = digest_of(data)
    assert await cache.read(digest, 0, 10) == data[:10]
    assert sorted(store.ranges) == [0, PIECE_BYTES]
    assert cache.read_now(digest, 10, 20) == data[10:30]
    await asyncio.sleep(0)
    assert cache.read_now(digest, PIECE_BYTES + 5, 10) == data[PIECE_BYTES + 5 : PIECE_BYTES + 15]
    assert cache.read_now(digest, PIECE_BYTES - 5, 10) is None, "two pieces"
    across = slice(PIECE_BYTES - 5, 2 * PIECE_BYTES + 5)
    assert await cache.read(digest, across.start, across.stop - across.start) == data[across]
    assert await cache.read(digest, len(data) - 2, 100) == b"nd"
    assert await cache.read(digest, len(data), 100) == b""
    await cache.close()


async def test_pieces_out_of_order_fetch_nothing_ahead() -> None:
    data = bytes(4 * PIECE_BYTES)
    store = CountingStore(data)
    cache = BlobCache(store, CacheConfig())
    await cache.read(digest_of(data), 2 * PIECE_BYTES, 10)
    assert store.ranges == [2 * PIECE_BYTES]


def test_the_least_recently_used_go_first() -> None:
    cache: LruCache[str, bytes] = LruCache(10, len)
    cache.put("a", bytes(4))
    cache.put("b", bytes(4))
    cache.get("a")
    cache.put("c", bytes(4))
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert (len(cache), cache.weight) == (2, 8)
    cache.put("d", bytes(100))
    assert (len(cache), cache.weight) == (1, 100)
    cache.put("d", bytes(1))
    assert cache.weight == 1
    assert cache.pop("x") is None
