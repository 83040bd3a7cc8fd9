"""Metrics: what is counted, under which labels."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.cas.blobs import RawStore, chunks_of, read, write
from tests.contracts.blob_store import BlobStoreContract
from tests.contracts.record_store import action_key, action_result, check_record_store, closing
from tvix.cas.authorizing import AuthorizingBlobStore
from tvix.cas.cached import CachedBlobStore
from tvix.cas.compressed import CompressedBlobStore
from tvix.cas.digest import digest_of
from tvix.cas.fallback import FallbackBlobStore
from tvix.cas.interfaces import ActionCache, BlobStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.metered import MeteredBlobStore, MeteredRecordStore, StoreMetrics
from tvix.cas.readonly import ReadOnlyBlobStore
from tvix.cas.sharded import Shard, ShardedBlobStore
from tvix.cas.verifying import VerifyingBlobStore
from tvix.errors import BlobNotFound, DigestMismatch, PermissionDenied


class Meters:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = StoreMetrics(self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tvix_store_{name}", {"store": "main", **labels})

    def blobs(self, method: str, outcome: str) -> float | None:
        return self.value("blobs_total", method=method, outcome=outcome)


async def test_blobs_bytes_and_calls_are_counted() -> None:
    meters = Meters()
    store = MeteredBlobStore(MemoryBlobStore(), "main", meters.metrics)
    one = await write(store, b"one")
    absent = digest_of(b"absent")
    await store.put_many([(digest_of(b"four"), b"four"), (absent, b"wrong")])
    await store.find_missing([one, absent])
    await store.get_many([one, absent, absent])
    assert await read(store, one, offset=1) == b"ne"
    with pytest.raises(BlobNotFound):
        await read(store, absent)
    with pytest.raises(DigestMismatch):
        await store.write(absent, chunks_of(b"wrong"))
    counted = {
        method: (meters.blobs(method, good), meters.blobs(method, bad))
        for method, good, bad in [
            ("find_missing", "hit", "miss"),
            ("get_many", "hit", "miss"),
            ("read", "hit", "miss"),
            ("write", "written", "refused"),
            ("put_many", "written", "refused"),
        ]
    }
    assert counted == {
        "find_missing": (1, 1),
        "get_many": (1, 2),
        "read": (1, 1),
        "write": (1, 1),
        "put_many": (1, 1),
    }
    assert meters.value("bytes_total", direction="in") == 7
    assert meters.value("bytes_total", direction="out") == 5
    assert meters.value("seconds_count", method="read") == 2
    assert meters.value("failures_total", method="read") == 0


async def test_a_read_left_early_is_no_failure_and_counts_what_it_gave() -> None:
    meters = Meters()
    store = MeteredBlobStore(MemoryBlobStore(), "main", meters.metrics)
    digest = await write(store, bytes(3 * 1024 * 1024), size=1 << 20)
    async with aclosing(store.read(digest)) as chunks:
        await anext(chunks)
    assert meters.value("bytes_total", direction="out") == 1024 * 1024
    assert meters.value("failures_total", method="read") == 0
    assert meters.value("seconds_count", method="read") == 1


async def test_failures_are_counted_by_method() -> None:
    meters = Meters()
    store = MeteredBlobStore(ReadOnlyBlobStore(MemoryBlobStore()), "main", meters.metrics)
    with pytest.raises(PermissionDenied):
        await write(store, b"one")
    assert meters.value("failures_total", method="write") == 1
    assert meters.blobs("write", "written") == 0


async def test_records_are_counted_and_keep_the_contract() -> None:
    meters = Meters()
    store: ActionCache = MeteredRecordStore(MemoryRecordStore(), "main", meters.metrics)
    await store.put(action_key("a"), action_result("one"))
    await store.get(action_key("a"))
    await store.get(action_key("b"))
    await store.delete(action_key("a"))
    assert (meters.blobs("get", "hit"), meters.blobs("get", "miss")) == (1, 1)
    assert (meters.blobs("put", "written"), meters.blobs("delete", "written")) == (1, 1)
    await check_record_store(closing(lambda: MeteredRecordStore(MemoryRecordStore(), "main", meters.metrics)))


class TestMetered(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield MeteredBlobStore(MemoryBlobStore(), "main", StoreMetrics(CollectorRegistry()))


class TestTheWholeStack(BlobStoreContract):
    """All decorators, one above the other, in the order in which they belong."""

    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        shards = ShardedBlobStore([Shard(name, CompressedBlobStore(RawStore())) for name in ("one", "two")])
        far = FallbackBlobStore(VerifyingBlobStore(shards), ReadOnlyBlobStore(MemoryBlobStore()))
        cached = CachedBlobStore(MemoryBlobStore(), far)
        yield MeteredBlobStore(AuthorizingBlobStore(cached), "main", StoreMetrics(CollectorRegistry()))
