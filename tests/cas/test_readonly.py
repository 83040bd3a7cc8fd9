"""Read-only stores read, and refuse the rest."""

import pytest

from tests.cas.blobs import chunks_of, read
from tests.contracts.record_store import action_key, action_result
from tvix.cas.digest import digest_of
from tvix.cas.interfaces import ActionKey
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.readonly import ReadOnlyBlobStore, ReadOnlyRecordStore
from tvix.errors import PermissionDenied


async def test_blobs_are_read_and_not_written() -> None:
    inner = MemoryBlobStore()
    digest = digest_of(b"data")
    inner.blobs[digest] = b"data"
    store = ReadOnlyBlobStore(inner)
    assert await read(store, digest) == b"data"
    assert await store.get_many([digest]) == [b"data"]
    assert await store.find_missing([digest]) == set()
    with pytest.raises(PermissionDenied, match="read-only"):
        await store.write(digest_of(b"new"), chunks_of(b"new"))
    with pytest.raises(PermissionDenied, match="read-only"):
        await store.put_many([(digest_of(b"new"), b"new")])
    assert list(inner.blobs) == [digest]


async def test_records_are_read_and_not_written() -> None:
    inner: MemoryRecordStore[ActionKey, object] = MemoryRecordStore()
    key = action_key("a")
    inner.records[key] = action_result("one")
    store = ReadOnlyRecordStore(inner)
    assert await store.get(key) == action_result("one")
    with pytest.raises(PermissionDenied):
        await store.put(key, action_result("two"))
    with pytest.raises(PermissionDenied):
        await store.delete(key)
    assert await store.get(key) == action_result("one")
