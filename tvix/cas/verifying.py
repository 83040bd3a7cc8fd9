"""Checks hashes: what is written to, and what comes from, a store that is not trusted to do so.

Stands above compression and sharding, where bytes match the digest, and below caches. A write whose bytes
are wrong raises at its end, so that the inner store, not having seen a clean end, commits nothing. Whole
reads are checked, and hold back their last piece until they are; ranges are not: local stores check when
blobs are written, remote ones are read whole once, into a cache. Not needed above MemoryBlobStore, DiskStore
and the like, which check writes themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing

from tvix.cas.digest import FUNCTIONS, Digest, digest_of
from tvix.cas.forwarding import ForwardingBlobStore
from tvix.errors import CorruptData, DigestMismatch, TvixError

log = logging.getLogger(__name__)

_OFF_LOOP_BYTES = 128 * 1024
"""Hashing this much takes as long as a hop to a thread."""


class VerifyingBlobStore(ForwardingBlobStore):
    """Raises DigestMismatch on wrong writes and CorruptData on wrong whole reads."""

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        async with aclosing(_checked(digest, chunks)) as checked:
            await self._inner.write(digest, checked)

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        whole = offset == 0 and (limit is None or limit >= digest.size_bytes)
        async with aclosing(self._inner.read(digest, offset=offset, limit=limit)) as chunks:
            if not whole:
                async for chunk in chunks:
                    yield chunk
                return
            async with aclosing(_checked(digest, chunks)) as checked:
                try:
                    async for chunk in checked:
                        yield chunk
                except DigestMismatch as error:
                    raise CorruptData(f"blob {digest} is not what it says: it reads as {error.actual}") from error

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """As the interface says; a corrupt blob is logged and absent, so that it will be uploaded again."""
        blobs = await self._inner.get_many(digests)
        wrong = await _find_wrong([(d, b) for d, b in zip(digests, blobs, strict=True) if b])
        for digest in wrong:
            log.error("blob=%s is not what it says", digest)
        return [None if digest in wrong else blob for digest, blob in zip(digests, blobs, strict=True)]

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        wrong = await _find_wrong(blobs)
        if not wrong:
            return await self._inner.put_many(blobs)
        refused: dict[int, TvixError] = {}
        for index, (digest, blob) in enumerate(blobs):
            # The same digest may be there twice, once with the right bytes.
            if digest in wrong and digest_of(blob, digest.function) != digest:
                refused[index] = DigestMismatch(digest, digest_of(blob, digest.function))
        rest = iter(await self._inner.put_many([blob for i, blob in enumerate(blobs) if i not in refused]))
        return [refused[index] if index in refused else next(rest) for index in range(len(blobs))]


async def _checked(digest: Digest, chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the chunks; raise DigestMismatch as soon as they are too many, else before the last."""
    hasher = FUNCTIONS[digest.function].new()
    size_bytes = 0
    held = b""
    async for chunk in chunks:
        if not chunk:
            continue
        if held:
            yield held
        held = chunk
        size_bytes += len(chunk)
        if len(chunk) >= _OFF_LOOP_BYTES:
            await asyncio.to_thread(hasher.update, chunk)
        else:
            hasher.update(chunk)
        if size_bytes > digest.size_bytes:
            break
    actual = Digest(digest.function, hasher.hexdigest(), size_bytes)
    if actual != digest:
        raise DigestMismatch(digest, actual)
    if held:
        yield held


def _wrong_blobs(blobs: Sequence[tuple[Digest, bytes]]) -> set[Digest]:
    return {digest for digest, blob in blobs if digest_of(blob, digest.function) != digest}


async def _find_wrong(blobs: Sequence[tuple[Digest, bytes]]) -> set[Digest]:
    if sum(len(blob) for _, blob in blobs) >= _OFF_LOOP_BYTES:
        return await asyncio.to_thread(_wrong_blobs, blobs)
    return _wrong_blobs(blobs)
