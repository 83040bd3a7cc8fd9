"""ByteStream as a client: blobs of any size to and from a peer, resumed after breaks.

A read that breaks goes on at the byte where it was. A write keeps its last `replay_bytes`: after a break the
peer is asked how much it has (QueryWriteStatus), and the rest is sent again. Compressed writes cannot be
resumed in the middle, only begun anew while all of it is still kept.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc import aio

from remote_apis import bytestream_pb2, bytestream_pb2_grpc
from tvix.cas import zstd
from tvix.cas.digest import Digest
from tvix.cas.interfaces import CHUNK_BYTES
from tvix.cas.remote import Remote
from tvix.errors import BlobNotFound, CorruptData, Internal, InvalidInput, NotFound, Unavailable
from tvix.rpc import error_from_rpc


async def read_stream(remote: Remote, digest: Digest, offset: int, wanted: int) -> AsyncGenerator[bytes, None]:
    """Yield `wanted` bytes from `offset` on; the range must lie within the blob. Use under `aclosing`.

    Raises BlobNotFound, CorruptData when the peer sends more, Unavailable when it keeps breaking off.
    """
    got = attempt = 0
    # A range cannot be asked for compressed (REAPI, ReadRequest.read_limit).
    compressed = offset + wanted == digest.size_bytes and await remote.compresses(batches=False)
    while got < wanted:
        attempt += 1
        once = _read_once(remote, digest, offset + got, wanted - got, compressed)
        try:
            async with aclosing(once) as chunks:
                async for chunk in chunks:
                    got += len(chunk)
                    attempt = 1
                    if got > wanted:
                        raise CorruptData(f"{remote.connection!r} sent more than blob {digest} has")
                    yield chunk
            if got < wanted:
                raise Unavailable(f"{remote.connection!r} ended blob {digest} {wanted - got} bytes early")
        except Unavailable:
            if attempt >= remote.config.attempts:
                raise
            await remote.pause(attempt)


async def _read_once(
    remote: Remote, digest: Digest, offset: int, wanted: int, compressed: bool
) -> AsyncGenerator[bytes, None]:
    request = bytestream_pb2.ReadRequest(
        resource_name=_name(remote, "compressed-blobs/zstd" if compressed else "blobs", digest),
        read_offset=offset,
        read_limit=0 if offset + wanted == digest.size_bytes else wanted,
    )
    call = bytestream_pb2_grpc.ByteStreamStub(remote.connection.channel).Read(
        request, metadata=remote.connection.metadata
    )
    decoder = zstd.Decoder(digest.size_bytes, offset=offset) if compressed else None
    try:
        async for response in call:
            if decoder is None:
                yield response.data
                continue
            decoder.feed(response.data)
            while chunk := await zstd.take_async(decoder, len(response.data)):
                yield chunk
    except aio.AioRpcError as error:
        mapped = error_from_rpc(error)
        raise (BlobNotFound(digest) if isinstance(mapped, NotFound) else mapped) from error
    except InvalidInput as error:
        raise CorruptData(f"{remote.connection!r}, blob {digest}: {error}") from error
    finally:
        call.cancel()


def _name(remote: Remote, kind: str, digest: Digest) -> str:
    return f"{remote.instance_name}/{kind}/{digest}" if remote.instance_name else f"{kind}/{digest}"


async def write_stream(remote: Remote, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
    """Send a blob. What `chunks` raises ends the upload, and the peer commits nothing.

    Raises what the peer says; Unavailable when it keeps breaking off, or forgot more than is kept here.
    """
    compressed = await remote.compresses(batches=False)
    if compressed:
        async with aclosing(zstd.compressed(chunks)) as frames:
            await _Upload(remote, digest, frames, compressed).run()
    else:
        await _Upload(remote, digest, chunks, compressed).run()


class _Upload:
    """One blob on its way; offsets are of the bytes as sent."""

    def __init__(self, remote: Remote, digest: Digest, chunks: AsyncIterable[bytes], compressed: bool) -> None:
        self._remote = remote
        self._digest = digest
        self._compressed = compressed
        self._source = _Replayable(chunks, remote.config.replay_bytes)
        self._resource_name = self._new_name()

    def _new_name(self) -> str:
        kind = "compressed-blobs/zstd" if self._compressed else "blobs"
        return _name(self._remote, f"uploads/{uuid.uuid4()}/{kind}", self._digest)

    async def run(self) -> None:
        """Send, and send again from where the peer is."""
        offset = attempt = 0
        while True:
            attempt += 1
            try:
                await self._send(offset)
                return
            except Unavailable as error:
                if error is self._source.error or attempt >= self._remote.config.attempts:
                    raise
                await self._remote.pause(attempt)
                resumed = await self._resume(error)
            if resumed is None:
                return
            if resumed > offset:
                attempt = 1
            offset = resumed

    async def _resume(self, error: Unavailable) -> int | None:
        """Return where to go on, None when the blob is there. Raises `error` when that is no longer kept."""
        if self._compressed:
            self._resource_name, offset = self._new_name(), 0
        else:
            stub = bytestream_pb2_grpc.ByteStreamStub(self._remote.connection.channel)
            request = bytestream_pb2.QueryWriteStatusRequest(resource_name=self._resource_name)
            try:
                status = await self._remote.call(stub.QueryWriteStatus, request)
            except NotFound:
                status = bytestream_pb2.QueryWriteStatusResponse()
            if status.complete:
                return None
            offset = status.committed_size
        if not self._source.kept_from <= offset <= self._source.kept_to:
            raise error
        return offset

    async def _send(self, offset: int) -> None:
        stub = bytestream_pb2_grpc.ByteStreamStub(self._remote.connection.channel)
        call: Any = stub.Write(metadata=self._remote.connection.metadata)
        try:
            await self._send_pieces(call, offset)
            response = await call
        except aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()  # unless it has ended: then the peer must not take what came for the whole
        committed = response.committed_size
        if not self._compressed and committed != self._digest.size_bytes:
            raise Internal(f"{self._remote.connection!r} stored {committed} bytes of blob {self._digest}")

    async def _send_pieces(self, call: Any, offset: int) -> None:
        # Only the first message has the name; some peers refuse any other order of things.
        name = self._resource_name
        try:
            async with aclosing(self._source.pieces(offset)) as pieces:
                async for piece in pieces:
                    await call.write(bytestream_pb2.WriteRequest(resource_name=name, write_offset=offset, data=piece))
                    name = ""
                    offset += len(piece)
                    if call.done():
                        return
            await call.write(bytestream_pb2.WriteRequest(resource_name=name, write_offset=offset, finish_write=True))
            await call.done_writing()
        except (asyncio.InvalidStateError, aio.AioRpcError):
            # The peer has answered before the end, or is gone. A failed write says INTERNAL, whatever the reason;
            # the call itself knows better.
            return


class _Replayable:
    """Chunks that can be gone through again, from as far back as they are kept."""

    def __init__(self, chunks: AsyncIterable[bytes], keep_bytes: int) -> None:
        self._chunks: AsyncIterator[bytes] = aiter(chunks)
        self._keep_bytes = keep_bytes
        self._kept: deque[bytes] = deque()
        self.kept_from = self.kept_to = 0
        self.error: BaseException | None = None
        """What the source itself raised."""

    async def pieces(self, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield what is kept from `offset` on, then what is new, in pieces fit for a message."""
        position = self.kept_from
        for chunk in list(self._kept):
            rest = chunk[max(0, offset - position) :]
            position += len(chunk)
            for piece in _cut(rest):
                yield piece
        while (fresh := await self._next()) is not None:
            for piece in _cut(fresh):
                yield piece

    async def _next(self) -> bytes | None:
        try:
            chunk = await anext(self._chunks, None)
        except BaseException as error:
            self.error = error
            raise
        if chunk is None:
            return None
        self._kept.append(chunk)
        self.kept_to += len(chunk)
        while self._kept and self.kept_to - self.kept_from > self._keep_bytes:
            self.kept_from += len(self._kept.popleft())
        return chunk


def _cut(chunk: bytes) -> list[bytes]:
    if len(chunk) <= CHUNK_BYTES:
        return [chunk] if chunk else []
    return [chunk[start : start + CHUNK_BYTES] for start in range(0, len(chunk), CHUNK_BYTES)]
