"""Stores in memory: for tests, small caches and the command line. Nothing is ever evicted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Collection, Sequence

from tvix.cas.digest import EMPTY, Digest, digest_of
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore, K, RecordStore, V
from tvix.errors import BlobNotFound, DigestMismatch, OutOfRange, TvixError


class MemoryBlobStore(BlobStore):
    """Blobs in a dict. Checks what is written, as every leaf of a composition may be used bare."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}

    def __repr__(self) -> str:
        return f"<MemoryBlobStore {len(self.blobs)} blobs>"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return {digest for digest in digests if digest not in self.blobs and digest != EMPTY[digest.function]}

    def _get(self, digest: Digest) -> bytes | None:
        return b"" if digest == EMPTY[digest.function] else self.blobs.get(digest)

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        data = self._get(digest)
        if data is None:
            raise BlobNotFound(digest)
        if not 0 <= offset <= len(data):
            raise OutOfRange(f"offset {offset} is outside blob {digest}")
        end = len(data) if limit is None else min(len(data), offset + max(0, limit))
        for start in range(offset, end, CHUNK_BYTES):
            yield data[start : min(end, start + CHUNK_BYTES)]

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        data = b"".join([chunk async for chunk in chunks])
        self._put(digest, data)

    def _put(self, digest: Digest, data: bytes) -> None:
        actual = digest_of(data, digest.function)
        if actual != digest:
            raise DigestMismatch(digest, actual)
        self.blobs.setdefault(digest, data)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        return [self._get(digest) for digest in digests]

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        outcomes: list[TvixError | None] = []
        for digest, data in blobs:
            try:
                self._put(digest, data)
            except DigestMismatch as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes


class MemoryRecordStore(RecordStore[K, V]):
    """Records in a dict."""

    def __init__(self) -> None:
        self.records: dict[K, V] = {}

    def __repr__(self) -> str:
        return f"<MemoryRecordStore {len(self.records)} records>"

    async def get(self, key: K) -> V | None:
        return self.records.get(key)

    async def put(self, key: K, value: V) -> None:
        self.records[key] = value

    async def delete(self, key: K) -> None:
        self.records.pop(key, None)
