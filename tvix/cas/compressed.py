"""Zstandard at rest, for stores that don't compress by themselves.

The inner store holds frames under the digest of the *uncompressed* blob. It must therefore neither verify
digests nor trust sizes; put VerifyingBlobStore above this one, not below. Ranges are decompressed from the
blob's begin.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing

from tvix.cas import zstd
from tvix.cas.digest import EMPTY, Digest
from tvix.cas.forwarding import ForwardingBlobStore
from tvix.errors import BlobNotFound, CorruptData, InvalidInput, OutOfRange, TvixError


class CompressedBlobStore(ForwardingBlobStore):
    """Compresses what is written and decompresses what is read; CorruptData where that fails."""

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        if not 0 <= offset <= digest.size_bytes:
            if await self._inner.find_missing([digest]):
                raise BlobNotFound(digest)
            raise OutOfRange(f"offset {offset} is outside blob {digest}")
        end = digest.size_bytes if limit is None else min(digest.size_bytes, offset + limit)
        async with aclosing(self._inner.read(digest)) as frames, aclosing(_decompressed(digest, frames)) as chunks:
            position = 0
            async for chunk in chunks:
                first, position = position, position + len(chunk)
                piece = chunk[max(0, offset - first) : end - first] if end > first else b""
                if piece:
                    yield piece
                if position >= end and end < digest.size_bytes:
                    return

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        if digest == EMPTY[digest.function]:
            # The empty blob is everywhere; but what is sent must be seen to be empty by those above.
            async for _ in chunks:
                pass
            return
        async with aclosing(zstd.compressed(chunks)) as frames:
            await self._inner.write(digest, frames)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        frames = await self._inner.get_many(digests)
        return [await _decompress(digest, data) for digest, data in zip(digests, frames, strict=True)]

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        full = [(digest, data) for digest, data in blobs if digest != EMPTY[digest.function]]
        outcomes = iter(
            await self._inner.put_many([(digest, await zstd.compress_async(data)) for digest, data in full])
        )
        return [None if digest == EMPTY[digest.function] else next(outcomes) for digest, _ in blobs]


async def _decompress(digest: Digest, data: bytes | None) -> bytes | None:
    if data is None or digest == EMPTY[digest.function]:
        return data
    try:
        return await zstd.decompress_async(data, digest.size_bytes)
    except InvalidInput as error:
        raise CorruptData(f"blob {digest} at rest: {error}") from error


async def _decompressed(digest: Digest, frames: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    decoder = zstd.Decoder(digest.size_bytes)
    try:
        async for data in frames:
            decoder.feed(data)
            while chunk := await zstd.take_async(decoder, len(data)):
                yield chunk
        if digest != EMPTY[digest.function]:
            decoder.finish()
    except InvalidInput as error:
        raise CorruptData(f"blob {digest} at rest: {error}") from error
