"""Bases of decorators: every method handed on, one by one, so that a type checker sees a forgotten one.

A decorator overrides what it changes. `close` closes the inner store; where one store is shared by several
decorators, compose.py closes each store once and not through these.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Collection, Sequence

from tvix.cas.digest import Digest
from tvix.cas.interfaces import BlobStore, K, RecordStore, V
from tvix.errors import TvixError


class ForwardingBlobStore(BlobStore):
    """Does what its inner store does."""

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._inner!r}>"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._inner.find_missing(digests)

    def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._inner.read(digest, offset=offset, limit=limit)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        await self._inner.write(digest, chunks)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        return await self._inner.get_many(digests)

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        return await self._inner.put_many(blobs)

    async def close(self) -> None:
        await self._inner.close()


class ForwardingRecordStore(RecordStore[K, V]):
    """Does what its inner store does."""

    def __init__(self, inner: RecordStore[K, V]) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._inner!r}>"

    async def get(self, key: K) -> V | None:
        return await self._inner.get(key)

    async def put(self, key: K, value: V) -> None:
        await self._inner.put(key, value)

    async def delete(self, key: K) -> None:
        await self._inner.delete(key)

    async def close(self) -> None:
        await self._inner.close()
