"""First one store, then the other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cas.blobs import CountingStore, read, write
from tests.contracts.blob_store import BlobStoreContract
from tests.contracts.record_store import action_key, action_result, check_record_store, closing
from tvix.cas.digest import digest_of
from tvix.cas.fallback import FallbackBlobStore, FallbackRecordStore
from tvix.cas.interfaces import BlobStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.errors import BlobNotFound


async def test_what_the_first_lacks_is_read_from_the_second() -> None:
    first, then = CountingStore(), CountingStore()
    one, two, absent = await write(first, b"one"), await write(then, b"two"), digest_of(b"absent")
    store = FallbackBlobStore(first, then)
    assert await read(store, one) == b"one"
    assert then.calls == []
    assert await read(store, two, offset=1) == b"wo"
    assert await store.get_many([two, absent, one]) == [b"two", None, b"one"]
    assert await store.find_missing([one, two, absent]) == {absent}
    with pytest.raises(BlobNotFound):
        await read(store, absent)


async def test_the_second_is_not_asked_when_the_first_has_all() -> None:
    first, then = CountingStore(), CountingStore()
    one = await write(first, b"one")
    store = FallbackBlobStore(first, then)
    assert await store.find_missing([one]) == set()
    assert await store.get_many([one]) == [b"one"]
    assert then.calls == []


async def test_writes_go_to_the_first_only() -> None:
    first, then = CountingStore(), CountingStore()
    store = FallbackBlobStore(first, then)
    one = await write(store, b"one")
    assert await store.put_many([(digest_of(b"two"), b"two")]) == [None]
    assert set(first.blobs) == {one, digest_of(b"two")}
    assert then.blobs == {}


async def test_records_keep_the_contract_and_fall_back() -> None:
    await check_record_store(closing(lambda: FallbackRecordStore(MemoryRecordStore(), MemoryRecordStore())))
    first, then = MemoryRecordStore[object, object](), MemoryRecordStore[object, object]()
    store = FallbackRecordStore(first, then)
    await then.put(action_key("a"), action_result("old"))
    assert await store.get(action_key("a")) == action_result("old")
    await store.put(action_key("a"), action_result("new"))
    assert await store.get(action_key("a")) == action_result("new")
    assert await then.get(action_key("a")) == action_result("old")


class TestFallback(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield FallbackBlobStore(MemoryBlobStore(), MemoryBlobStore())
