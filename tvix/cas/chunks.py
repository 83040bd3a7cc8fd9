"""Blobs as lists of chunks: how SplitBlob and SpliceBlob work on a store.

Chunks are blobs of their own; which chunks a blob has is a record. The blob itself stays readable
whole, so its chunks may be evicted without harm: they are made anew when next asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.chunking import Chunker
from tvix.cas.digest import Digest, digest_from_proto, digest_of, digest_to_proto, function_to_wire
from tvix.cas.interfaces import BlobStore, RecordStore
from tvix.errors import AlreadyExists, BlobNotFound, InvalidInput, NotFound

ChunkLists = RecordStore[Digest, re_pb2.SplitBlobResponse]
"""The chunks of a blob, and the function that cut them."""

_BATCH_BYTES = 4 * 1024 * 1024
_FAST_CDC = re_pb2.ChunkingFunction.FAST_CDC_2020


class Chunks:
    """Splits and splices the blobs of one store."""

    def __init__(self, blobs: BlobStore, lists: ChunkLists) -> None:
        self._blobs = blobs
        self._lists = lists

    def __repr__(self) -> str:
        return f"<Chunks of {self._blobs!r}>"

    async def split(self, digest: Digest, chunking_function: int = 0) -> re_pb2.SplitBlobResponse:
        """Return the blob's chunks in order; all are in the store then, and count as used.

        The list of an earlier split or splice is kept to, unless it is of another function than asked
        for. Raises BlobNotFound, ResourceExhausted.
        """
        if await self._blobs.find_missing([digest]):
            raise BlobNotFound(digest)
        known = await self._lists.get(digest)
        if known is not None and (chunking_function != _FAST_CDC or known.chunking_function == _FAST_CDC):
            chunks = [digest_from_proto(chunk, function_to_wire(digest.function)) for chunk in known.chunk_digests]
            if not await self._blobs.find_missing(chunks):
                return known
        response = re_pb2.SplitBlobResponse(
            chunk_digests=map(digest_to_proto, await self._cut(digest)), chunking_function=_FAST_CDC
        )
        await self._lists.put(digest, response)
        return response

    async def _cut(self, digest: Digest) -> list[Digest]:
        chunker = Chunker()
        if not digest.size_bytes:
            return [digest]
        digests: list[Digest] = []
        async with aclosing(self._blobs.read(digest)) as pieces:
            async for piece in pieces:
                chunker.feed(piece)
                if chunker.buffered_bytes >= 2 * _BATCH_BYTES:
                    digests += await self._store_cut(chunker, digest, last=False)
        digests += await self._store_cut(chunker, digest, last=True)
        return digests

    async def _store_cut(self, chunker: Chunker, digest: Digest, *, last: bool) -> list[Digest]:
        chunks = await asyncio.to_thread(_name_chunks, chunker, digest, last)
        for refusal in await self._blobs.put_many([(name, data) for name, data in chunks if name != digest]):
            if refusal is not None:
                raise refusal
        return [name for name, _ in chunks]

    async def splice(self, digest: Digest, chunks: Sequence[Digest], chunking_function: int = 0) -> None:
        """Make the blob by joining chunks, and remember them as its chunks; nothing to do if it is there.

        Raises InvalidInput when they do not give the blob, NotFound naming absent chunks, AlreadyExists when
        the blob is there but some of the chunks are not.
        """
        total_bytes = sum(chunk.size_bytes for chunk in chunks)
        if total_bytes != digest.size_bytes:
            raise InvalidInput(
                f"chunk_digests: have {total_bytes} bytes together, blob_digest {digest} has {digest.size_bytes}",
                field="chunk_digests",
            )
        missing = await self._blobs.find_missing([digest, *chunks])
        absent_chunks = missing - {digest}
        if digest not in missing and absent_chunks:
            raise AlreadyExists(f"blob {digest} is there, but {len(absent_chunks)} of the chunks are not")
        if absent_chunks:
            shown = ", ".join(str(chunk) for chunk in sorted(absent_chunks)[:3])
            raise NotFound(f"chunk_digests: {len(absent_chunks)} chunk(s) are not in the store: {shown}")
        if digest in missing:
            async with aclosing(self._join(chunks)) as pieces:
                await self._blobs.write(digest, pieces)
            names = map(digest_to_proto, chunks)
            await self._lists.put(
                digest, re_pb2.SplitBlobResponse(chunk_digests=names, chunking_function=_known(chunking_function))
            )

    async def _join(self, chunks: Sequence[Digest]) -> AsyncGenerator[bytes, None]:
        """Yield the chunks' bytes, small ones in batches, large ones in pieces."""
        batch: list[Digest] = []
        batch_bytes = 0
        for chunk in chunks:
            if batch and batch_bytes + chunk.size_bytes > _BATCH_BYTES:
                yield b"".join(await self._get_all(batch))
                batch, batch_bytes = [], 0
            if chunk.size_bytes > _BATCH_BYTES:
                async with aclosing(self._blobs.read(chunk)) as pieces:
                    async for piece in pieces:
                        yield piece
            else:
                batch.append(chunk)
                batch_bytes += chunk.size_bytes
        if batch:
            yield b"".join(await self._get_all(batch))

    async def _get_all(self, digests: Sequence[Digest]) -> list[bytes]:
        found = []
        for digest, data in zip(digests, await self._blobs.get_many(digests), strict=True):
            if data is None:
                raise BlobNotFound(digest)
            found.append(data)
        return found


def _name_chunks(chunker: Chunker, digest: Digest, last: bool) -> list[tuple[Digest, bytes]]:
    return [(digest_of(chunk, digest.function), chunk) for chunk in chunker.cut(last=last)]


def _known(chunking_function: int) -> re_pb2.ChunkingFunction.Value.ValueType:
    """Return the function that a client says it used, UNKNOWN for one that we have not heard of."""
    known = chunking_function in re_pb2.ChunkingFunction.Value.values()
    return cast("re_pb2.ChunkingFunction.Value.ValueType", chunking_function if known else 0)
