"""Two stores, one after the other: what the first lacks is looked for in the second.

Everything is written to the first; the second is only read. Nothing is copied between them, which is what
CachedBlobStore does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

from tvix.cas.digest import Digest
from tvix.cas.forwarding import ForwardingBlobStore, ForwardingRecordStore
from tvix.cas.interfaces import BlobStore, K, RecordStore, V
from tvix.errors import BlobNotFound


class FallbackBlobStore(ForwardingBlobStore):
    """Writes to `first`, reads from `first` and then `then`."""

    def __init__(self, first: BlobStore, then: BlobStore) -> None:
        super().__init__(first)
        self._then = then

    def __repr__(self) -> str:
        return f"<FallbackBlobStore {self._inner!r}, then {self._then!r}>"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing = await self._inner.find_missing(digests)
        return await self._then.find_missing(missing) if missing else missing

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._inner.read(digest, offset=offset, limit=limit)) as chunks:
                async for chunk in chunks:
                    yield chunk
                return
        except BlobNotFound:  # raised only before the first piece
            pass
        async with aclosing(self._then.read(digest, offset=offset, limit=limit)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        blobs = await self._inner.get_many(digests)
        absent = [digest for digest, blob in zip(digests, blobs, strict=True) if blob is None]
        if not absent:
            return blobs
        others = iter(await self._then.get_many(absent))
        return [next(others) if blob is None else blob for blob in blobs]

    async def close(self) -> None:
        try:
            await self._inner.close()
        finally:
            await self._then.close()


class FallbackRecordStore(ForwardingRecordStore[K, V]):
    """Writes to `first`, reads from `first` and then `then`; a record deleted from `first` may show in `then`."""

    def __init__(self, first: RecordStore[K, V], then: RecordStore[K, V]) -> None:
        super().__init__(first)
        self._then = then

    def __repr__(self) -> str:
        return f"<FallbackRecordStore {self._inner!r}, then {self._then!r}>"

    async def get(self, key: K) -> V | None:
        value = await self._inner.get(key)
        return await self._then.get(key) if value is None else value

    async def close(self) -> None:
        try:
            await self._inner.close()
        finally:
            await self._then.close()
