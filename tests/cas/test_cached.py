"""Caches: quick on a hit, right at all times."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.blobs import CountingStore, chunks_of, read, write
from tests.contracts.blob_store import BlobStoreContract
from tests.contracts.record_store import action_key, action_result, check_record_store, closing
from tvix.cas.cached import CacheConfig, CachedBlobStore, CachedRecords, action_key_bytes, message_size
from tvix.cas.digest import Digest, digest_of
from tvix.cas.generations import Generations
from tvix.cas.interfaces import ActionKey, BlobStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.errors import BlobNotFound, ResourceExhausted, Unavailable

Config = CacheConfig[ActionKey, re_pb2.ActionResult]


class CountingRecords(MemoryRecordStore[ActionKey, re_pb2.ActionResult]):
    def __init__(self) -> None:
        super().__init__()
        self.gets = 0
        self.during_get: list[object] = []

    async def get(self, key: ActionKey) -> re_pb2.ActionResult | None:
        self.gets += 1
        value = await super().get(key)
        for act in self.during_get:
            await act  # type: ignore[misc]
        self.during_get = []
        return value


@pytest.fixture
def generations(tmp_path: Path) -> Iterator[Generations]:
    with Generations(tmp_path / "generations") as made:
        yield made


def cached(
    inner: MemoryRecordStore[ActionKey, re_pb2.ActionResult],
    generations: Generations,
    max_bytes: int = 1_000_000,
    now: object = lambda: 0.0,
) -> CachedRecords[ActionKey, re_pb2.ActionResult]:
    config = Config(action_key_bytes, message_size, max_bytes, max_age_seconds=60)
    return CachedRecords(inner, generations, config, now)  # type: ignore[arg-type]


async def test_records_keep_the_contract(generations: Generations) -> None:
    await check_record_store(closing(lambda: cached(MemoryRecordStore(), generations)))


async def test_a_hit_neither_asks_nor_suspends(generations: Generations) -> None:
    inner = CountingRecords()
    store = cached(inner, generations)
    await store.put(action_key("a"), action_result("one"))
    first = await store.get(action_key("a"))
    call = store.get(action_key("a"))
    with pytest.raises(StopIteration) as caught:
        call.send(None)
    assert caught.value.value is first
    assert inner.gets == 1


async def test_absence_is_kept_too_until_somebody_puts(generations: Generations) -> None:
    inner = CountingRecords()
    store, other = cached(inner, generations), cached(inner, generations)
    assert await store.get(action_key("a")) is None
    assert await store.get(action_key("a")) is None
    assert inner.gets == 1
    await other.put(action_key("a"), action_result("one"))
    assert await store.get(action_key("a")) == action_result("one")
    await other.delete(action_key("a"))
    assert await store.get(action_key("a")) is None


async def test_a_record_that_changes_while_it_is_read_is_not_kept(generations: Generations) -> None:
    inner = CountingRecords()
    store, other = cached(inner, generations), cached(inner, generations)
    await other.put(action_key("a"), action_result("old"))
    inner.during_get = [other.put(action_key("a"), action_result("new"))]
    assert await store.get(action_key("a")) == action_result("old")
    assert await store.get(action_key("a")) == action_result("new")


async def test_a_record_is_read_again_when_it_is_old(generations: Generations) -> None:
    clock = [0.0]
    inner = CountingRecords()
    store = cached(inner, generations, now=lambda: clock[0])
    await store.get(action_key("a"))
    clock[0] = 59.9
    await store.get(action_key("a"))
    assert inner.gets == 1
    clock[0] = 60.0
    await store.get(action_key("a"))
    assert inner.gets == 2


async def test_the_bytes_are_bounded_and_the_least_recently_used_go(generations: Generations) -> None:
    inner = CountingRecords()
    store = cached(inner, generations, max_bytes=3 * 700)
    for name in "abc":
        await store.get(action_key(name))
    await store.get(action_key("a"))
    await store.get(action_key("d"))
    assert repr(store).startswith("<CachedRecords 3 records")
    asked = inner.gets
    await store.get(action_key("a"))
    assert inner.gets == asked
    await store.get(action_key("b"))
    assert inner.gets == asked + 1
    await store.put(action_key("huge"), action_result("x" * 1000))
    assert await store.get(action_key("huge")) == action_result("x" * 1000)
    assert store._bytes <= 3 * 700


class FailingRecords(CountingRecords):
    async def put(self, key: ActionKey, value: re_pb2.ActionResult) -> None:
        await super().put(key, value)
        raise Unavailable("the reply was lost")


async def test_a_put_that_failed_may_have_happened(generations: Generations) -> None:
    store = cached(FailingRecords(), generations)
    assert await store.get(action_key("a")) is None
    with pytest.raises(Unavailable):
        await store.put(action_key("a"), action_result("one"))
    assert await store.get(action_key("a")) == action_result("one")


class SlowFar(CountingStore):
    """Gives nothing until it is told to, and remembers how often it began."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.reads = 0

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        self.reads += 1
        await self.go.wait()
        async with aclosing(super().read(digest, offset=offset, limit=limit)) as chunks:
            async for chunk in chunks:
                yield chunk


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_many_readers_fetch_once_and_a_cancelled_one_is_replaced() -> None:
    near, far = CountingStore(), SlowFar()
    digest = await write(far, b"data")
    store = CachedBlobStore(near, far)
    readers = [asyncio.ensure_future(read(store, digest)) for _ in range(5)]
    await turns()
    assert far.reads == 1
    readers[0].cancel()
    await turns()
    assert far.reads == 2, "the next in line took over"
    far.go.set()
    assert await asyncio.gather(*readers[1:]) == [b"data"] * 4
    assert far.reads == 2
    assert near.blobs == {digest: b"data"}
    assert store._flights == {}


async def test_what_was_read_is_near_from_then_on() -> None:
    near, far = CountingStore(), CountingStore()
    digest = await write(far, b"data")
    store = CachedBlobStore(near, far)
    assert await read(store, digest, offset=1, limit=2) == b"at"
    far.blobs.clear()
    far.calls.clear()
    assert await read(store, digest) == b"data"
    assert await store.get_many([digest]) == [b"data"]
    assert await store.find_missing([digest]) == set()
    assert far.calls == []


async def test_batches_ask_far_only_for_the_rest_and_keep_it() -> None:
    near, far = CountingStore(), CountingStore()
    one, two, absent = await write(near, b"one"), await write(far, b"two"), digest_of(b"absent")
    store = CachedBlobStore(near, far)
    assert await store.find_missing([one, two, absent]) == {absent}
    assert await store.get_many([two, one, absent, two]) == [b"two", b"one", None, b"two"]
    assert set(near.blobs) == {one, two}


async def test_ranges_of_large_blobs_do_not_fetch_them() -> None:
    near, far = CountingStore(), CountingStore()
    digest = await write(far, bytes(range(100)))
    store = CachedBlobStore(near, far, max_fetch_bytes=50)
    assert await read(store, digest, offset=10, limit=2) == b"\x0a\x0b"
    assert near.blobs == {}
    assert len(await read(store, digest)) == 100
    assert digest in near.blobs


class FullStore(CountingStore):
    def _put(self, digest: Digest, data: bytes) -> None:
        raise ResourceExhausted("no room")


async def test_a_full_near_store_is_passed_by() -> None:
    near, far = FullStore(), CountingStore()
    digest = await write(far, b"data")
    assert await read(CachedBlobStore(near, far), digest) == b"data"


async def test_absent_everywhere_is_not_found_and_keeps_nothing() -> None:
    store = CachedBlobStore(CountingStore(), CountingStore())
    with pytest.raises(BlobNotFound):
        await read(store, digest_of(b"absent"))
    assert store._flights == {}


@pytest.mark.parametrize("write_near", [False, True])
async def test_writes_go_far_and_if_asked_near(write_near: bool) -> None:
    near, far = CountingStore(), CountingStore()
    store = CachedBlobStore(near, far, write_near=write_near)
    one, two = digest_of(b"one"), digest_of(b"two")
    await store.write(one, chunks_of(b"one"))
    assert await store.put_many([(two, b"two")]) == [None]
    assert set(far.blobs) == {one, two}
    assert set(near.blobs) == ({one, two} if write_near else set())


class TestCached(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield CachedBlobStore(MemoryBlobStore(), MemoryBlobStore())


class TestCachedWrittenNear(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield CachedBlobStore(MemoryBlobStore(), MemoryBlobStore(), write_near=True)
