"""The store of a worker that is not on the server's machine: a disk cache before the server's store.

It is named by a URL, so that the process that serves the mount can open the same:

    cached:///FOLDER?server=URL&max_bytes=N
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Collection, Sequence
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tvix.cas.cached import CachedBlobStore
from tvix.cas.connection import connect
from tvix.cas.digest import Digest
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.store import DiskBlobStore
from tvix.cas.grpc_client import remote_blobs
from tvix.cas.interfaces import BlobStore
from tvix.errors import InvalidInput, TvixError

SCHEME = "cached"


def worker_store_url(folder: Path, server: str, max_bytes: int) -> str:
    """Return the URL of a cache in `folder` before the store of `server`."""
    query = urlencode({"server": server, "max_bytes": max_bytes})
    return f"{SCHEME}://{quote(str(folder.absolute()))}?{query}"


class WorkerBlobStore(BlobStore):
    """Reads through the cache; asks and writes the server.

    What the cache has says nothing about what the server still has, and an output is only stored when the
    server has it.
    """

    def __init__(self, near: DiskBlobStore, far: BlobStore) -> None:
        self.near = near
        self._far = far
        self._cached = CachedBlobStore(near, far)

    def __repr__(self) -> str:
        return f"<WorkerBlobStore {self._cached!r}>"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._far.find_missing(digests)

    def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._cached.read(digest, offset=offset, limit=limit)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        await self._far.write(digest, chunks)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        return await self._cached.get_many(digests)

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        return await self._far.put_many(blobs)

    async def close(self) -> None:
        await self._cached.close()


async def open_worker_store(url: str) -> WorkerBlobStore:
    """Open the store of a URL made by `worker_store_url`. InvalidInput for others."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if parts.scheme != SCHEME or not parts.path or "server" not in query:
        raise InvalidInput(
            f"store: {url!r} is not of the form {SCHEME}:///FOLDER?server=URL&max_bytes=N", field="store"
        )
    max_bytes = int(query.get("max_bytes", ["0"])[0])
    folder = Path(unquote(parts.path))
    near = await DiskBlobStore.open(DiskConfig(path=folder, max_size_bytes=max_bytes or None))
    return WorkerBlobStore(near, remote_blobs(connect(query["server"][0])))
