"""A blob store of one file per blob, for tests in which two processes share a store and blobs come and go.

Run as a module, it is the mount's process on such a store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Sequence
from pathlib import Path

from tvix.cas.digest import Digest
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore
from tvix.errors import BlobNotFound, TvixError, Unavailable
from tvix.executor import fuse_process
from tvix.executor.input_tree import tree_name


class FolderStore(BlobStore):
    """Blobs as files; a file `down` in the folder makes calls fail as Unavailable, `stuck` never return."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: Digest) -> Path:
        """Return where a blob lies or would lie."""
        return self.folder / tree_name(digest)

    def _check_up(self) -> None:
        if (self.folder / "down").exists():
            raise Unavailable("the store is down")

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self._check_up()
        return {digest for digest in digests if digest.size_bytes and not self.path(digest).exists()}

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        self._check_up()
        try:
            file = self.path(digest).open("rb")
        except FileNotFoundError as error:
            raise BlobNotFound(digest) from error
        with file:
            file.seek(offset)
            left = digest.size_bytes - offset if limit is None else limit
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        self.path(digest).write_bytes(b"".join([chunk async for chunk in chunks]))

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        self._check_up()
        if (self.folder / "stuck").exists():
            await asyncio.Event().wait()
        return [self._get(digest) for digest in digests]

    def _get(self, digest: Digest) -> bytes | None:
        if not digest.size_bytes:
            return b""
        path = self.path(digest)
        return path.read_bytes() if path.exists() else None

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        for digest, data in blobs:
            self.path(digest).write_bytes(data)
        return [None] * len(blobs)


async def _open(url: str) -> BlobStore:
    return FolderStore(Path(url))


if __name__ == "__main__":
    fuse_process.main(open_blobs=_open)
