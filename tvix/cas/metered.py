"""Counts and times what a store does, for Prometheus.

Four metrics, the same for all stores, told apart by the label `store`:
    tvix_store_seconds{store,method}    histogram: calls and how long they took; a read ends with its last byte
    tvix_store_failures_total{store,method}    calls that raised; absent blobs and wrong digests are no failures
    tvix_store_blobs_total{store,method,outcome}    blobs or records asked for: hit | miss | written | refused
    tvix_store_bytes_total{store,direction}    in | out
Label children are looked up once, when the decorator is made; a call costs some 3 µs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Sequence
from contextlib import aclosing

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from tvix.cas.digest import Digest
from tvix.cas.forwarding import ForwardingBlobStore, ForwardingRecordStore
from tvix.cas.interfaces import BlobStore, K, RecordStore, V
from tvix.errors import BlobNotFound, DigestMismatch, TvixError

_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0)


class StoreMetrics:
    """The four metrics of one registry; made once, given to every metered store."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.seconds = Histogram(
            "tvix_store_seconds", "Duration of store calls", ["store", "method"], registry=registry, buckets=_BUCKETS
        )
        self.failures = Counter(
            "tvix_store_failures", "Store calls that failed", ["store", "method"], registry=registry
        )
        self.blobs = Counter(
            "tvix_store_blobs", "Blobs or records by outcome", ["store", "method", "outcome"], registry=registry
        )
        self.bytes = Counter("tvix_store_bytes", "Bytes of blobs moved", ["store", "direction"], registry=registry)


class _Method:
    """The metrics of one method; as a context, times and counts one call."""

    def __init__(self, metrics: StoreMetrics, store: str, method: str, good: str, bad: str) -> None:
        self._seconds = metrics.seconds.labels(store, method)
        self._failures = metrics.failures.labels(store, method)
        self._good = metrics.blobs.labels(store, method, good)
        self._bad = metrics.blobs.labels(store, method, bad)

    def count(self, good: int, bad: int) -> None:
        if good:
            self._good.inc(good)
        if bad:
            self._bad.inc(bad)

    def failed(self, error: BaseException) -> None:
        if isinstance(error, (BlobNotFound, DigestMismatch)):
            self._bad.inc()
        elif isinstance(error, Exception):  # neither cancelled nor left early
            self._failures.inc()

    def took(self, start: float) -> None:
        self._seconds.observe(time.perf_counter() - start)


class _Call:
    """Times one call of a method."""

    __slots__ = ("_method", "_start")

    def __init__(self, method: _Method) -> None:
        self._method = method
        self._start = time.perf_counter()

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._method.took(self._start)
        if error is not None:
            self._method.failed(error)


class MeteredBlobStore(ForwardingBlobStore):
    """Counts blobs, bytes, failures and time under the label `name`."""

    def __init__(self, inner: BlobStore, name: str, metrics: StoreMetrics) -> None:
        super().__init__(inner)
        self._find_missing = _Method(metrics, name, "find_missing", "hit", "miss")
        self._read = _Method(metrics, name, "read", "hit", "miss")
        self._get_many = _Method(metrics, name, "get_many", "hit", "miss")
        self._write = _Method(metrics, name, "write", "written", "refused")
        self._put_many = _Method(metrics, name, "put_many", "written", "refused")
        self._bytes_in = metrics.bytes.labels(name, "in")
        self._bytes_out = metrics.bytes.labels(name, "out")

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        with _Call(self._find_missing):
            missing = await self._inner.find_missing(digests)
        self._find_missing.count(len(digests) - len(missing), len(missing))
        return missing

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        size_bytes = 0
        try:
            with _Call(self._read):
                async with aclosing(self._inner.read(digest, offset=offset, limit=limit)) as chunks:
                    async for chunk in chunks:
                        size_bytes += len(chunk)
                        yield chunk
            self._read.count(1, 0)
        finally:
            self._bytes_out.inc(size_bytes)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        with _Call(self._write):
            await self._inner.write(digest, chunks)
        self._write.count(1, 0)
        self._bytes_in.inc(digest.size_bytes)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        with _Call(self._get_many):
            blobs = await self._inner.get_many(digests)
        found = [len(blob) for blob in blobs if blob is not None]
        self._get_many.count(len(found), len(blobs) - len(found))
        self._bytes_out.inc(sum(found))
        return blobs

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        with _Call(self._put_many):
            outcomes = await self._inner.put_many(blobs)
        written = [digest.size_bytes for (digest, _), refused in zip(blobs, outcomes, strict=True) if refused is None]
        self._put_many.count(len(written), len(blobs) - len(written))
        self._bytes_in.inc(sum(written))
        return outcomes


class MeteredRecordStore(ForwardingRecordStore[K, V]):
    """Counts records, failures and time under the label `name`."""

    def __init__(self, inner: RecordStore[K, V], name: str, metrics: StoreMetrics) -> None:
        super().__init__(inner)
        self._get = _Method(metrics, name, "get", "hit", "miss")
        self._put = _Method(metrics, name, "put", "written", "refused")
        self._delete = _Method(metrics, name, "delete", "written", "refused")

    async def get(self, key: K) -> V | None:
        with _Call(self._get):
            value = await self._inner.get(key)
        self._get.count(value is not None, value is None)
        return value

    async def put(self, key: K, value: V) -> None:
        with _Call(self._put):
            await self._inner.put(key, value)
        self._put.count(1, 0)

    async def delete(self, key: K) -> None:
        with _Call(self._delete):
            await self._inner.delete(key)
        self._delete.count(1, 0)
