"""Small helpers that the tests of stores share."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing

from tvix.cas.digest import Digest, digest_of
from tvix.cas.interfaces import BlobStore
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import TvixError


async def chunks_of(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield data in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(store: BlobStore, digest: Digest, *, offset: int = 0, limit: int | None = None) -> bytes:
    """Return what a read yields."""
    async with aclosing(store.read(digest, offset=offset, limit=limit)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def write(store: BlobStore, data: bytes, size: int = 1000) -> Digest:
    """Store data in pieces; return its digest."""
    digest = digest_of(data)
    await store.write(digest, chunks_of(data, size))
    return digest


class RawStore(MemoryBlobStore):
    """Keeps whatever it is given under whatever name, as a store on a bad disk or a lying server does."""

    def _put(self, digest: Digest, data: bytes) -> None:
        self.blobs[digest] = data


class CountingStore(MemoryBlobStore):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.calls.append("find_missing")
        return await super().find_missing(digests)

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        self.calls.append("read")
        async with aclosing(super().read(digest, offset=offset, limit=limit)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        self.calls.append("get_many")
        return await super().get_many(digests)

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        self.calls.append("put_many")
        return await super().put_many(blobs)
