"""The ByteStream service: blobs, plain and compressed, and whatever else is a stream of bytes by name.

Works on serialized messages (see wire.py): a read costs one copy of the data, a write one. What clients
expect `committed_size` to be differs, see `_committed_size`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from remote_apis import bytestream_pb2
from tvix.cas import wire, zstd
from tvix.cas.digest import EMPTY, Digest
from tvix.cas.disk import ZstdSource
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore
from tvix.cas.resource_names import ReadName, WriteName, parse_read_name, parse_write_name
from tvix.cas.uploads import Upload, Uploads
from tvix.errors import BlobNotFound, InvalidInput, OutOfRange
from tvix.request_metadata import header, request_metadata
from tvix.rpc import handled

SERVICE = "google.bytestream.ByteStream"
RESOURCE_NAME_HEADER = "build.bazel.remote.execution.v2.resource-name"

MESSAGE_BYTES = 2 * 1024 * 1024
"""Data of one ReadResponse at most; clients accept 4 MiB. Per-message overhead dominates below 1 MiB."""

_LOOK_AGAIN_BYTES = 16 * 1024 * 1024
"""How often a long upload looks whether somebody else has brought the same blob meanwhile."""

_HALF_CLOSE_SECONDS = 5.0
"""How long a client may take to close its side after finish_write; then it counts as closed."""

_WANTS_BLOB_SIZE = ("siso", "reclient", "reproxy", "remotetool", "rexec")
"""Tools that want the blob's size as committed_size of a compressed write."""


class StreamResource(Protocol):
    """Streams of bytes that are not blobs (log streams). All methods raise TvixError."""

    def claims(self, resource_name: str) -> bool:
        """Tell from the name alone whether it is one of these."""

    def read(self, resource_name: str, offset: int, limit: int | None) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from `offset` on, until the stream is finished or `limit` is reached."""

    async def append(self, resource_name: str, offset: int, data: bytes, *, finish: bool) -> int:
        """Add bytes at `offset`, which must be the stream's end; return the new end."""

    async def status(self, resource_name: str) -> tuple[int, bool]:
        """Return the stream's length and whether it is finished."""


class MessageReader:
    """The messages of one Write, checked against each other; the resource name is the first one's."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.resource_name = ""
        self.write_offset = 0
        """Offset of the first message."""
        self.wire_bytes = 0
        """Data so far, as sent (compressed or not)."""
        self.finished = False

    async def first(self) -> bytes:
        """Return the first message's data."""
        message = await self._read()
        if message is None:
            raise InvalidInput("the stream ended before its first message")
        if not message.resource_name:
            raise InvalidInput("resource_name: empty in the first message", field="resource_name")
        if message.write_offset < 0:
            raise InvalidInput(f"write_offset: {message.write_offset} is negative", field="write_offset")
        self.resource_name = message.resource_name
        self.write_offset = message.write_offset
        return self._take(message)

    async def next(self) -> bytes | None:
        """Return the next message's data; None when the client ended the stream without finish_write."""
        message = await self._read()
        if message is None:
            return None
        if message.resource_name and message.resource_name != self.resource_name:
            raise InvalidInput(
                f"resource_name: {message.resource_name[:400]!r} differs from the first message's "
                f"{self.resource_name!r}",
                field="resource_name",
            )
        expected = self.write_offset + self.wire_bytes
        if message.write_offset != expected:
            raise InvalidInput(
                f"write_offset: {message.write_offset} where {expected} was expected", field="write_offset"
            )
        return self._take(message)

    def _take(self, message: wire.WriteMessage) -> bytes:
        self.wire_bytes += len(message.data)
        self.finished = message.finish_write
        return message.data

    async def _read(self) -> wire.WriteMessage | None:
        data = await self._context.read()
        if data is aio.EOF:
            return None
        message = wire.parse_write_request(data)
        if message is None:
            raise InvalidInput("request: not a WriteRequest")
        return message

    async def end(self) -> None:
        """Check that nothing follows the message with finish_write."""
        try:
            async with asyncio.timeout(_HALF_CLOSE_SECONDS):
                data = await self._context.read()
        except TimeoutError:
            return
        if data is not aio.EOF:
            raise InvalidInput("finish_write: another message came after it", field="finish_write")


class ByteStreamService:
    """The methods, over one store for all instances."""

    def __init__(
        self, blobs: BlobStore, uploads: Uploads, streams: StreamResource | None = None, *, max_blob_bytes: int = 0
    ) -> None:
        self._blobs = blobs
        self._zstd = blobs if isinstance(blobs, ZstdSource) else None
        self._uploads = uploads
        self._streams = streams
        self._max_blob_bytes = max_blob_bytes

    @handled
    async def Read(self, data: bytes, context: Any) -> None:
        """Send a blob, or a part of it."""
        request = _parse(bytestream_pb2.ReadRequest, data)
        _check_header(context, request.resource_name)
        offset, limit = request.read_offset, request.read_limit
        if limit < 0:
            raise InvalidInput(f"read_limit: {limit} is negative", field="read_limit")
        if self._streams is not None and self._streams.claims(request.resource_name):
            async with aclosing(self._streams.read(request.resource_name, offset, limit or None)) as chunks:
                return await _send(context, chunks)
        name = _read_name(request.resource_name)
        digest = name.digest
        if not 0 <= offset <= digest.size_bytes:
            raise OutOfRange(f"read_offset: {offset} is outside of blob {digest}")
        if not digest.size_bytes and digest != EMPTY[digest.function]:
            raise BlobNotFound(digest)
        if name.compressor and limit:
            raise InvalidInput(f"read_limit: {limit} on a compressed blob, where only 0 is allowed", field="read_limit")
        if digest.size_bytes <= CHUNK_BYTES:
            return await self._read_small(context, name, offset, limit)
        if name.compressor and self._zstd is not None:
            stored_frames = await self._zstd.read_zstd(digest, offset=offset)
            if stored_frames is not None:
                async with aclosing(stored_frames):
                    return await _send(context, stored_frames)
        async with aclosing(self._blobs.read(digest, offset=offset, limit=limit or None)) as chunks:
            if not name.compressor:
                return await _send(context, chunks)
            async with aclosing(zstd.compressed(chunks)) as frames:
                return await _send(context, frames)

    async def _read_small(self, context: Any, name: ReadName, offset: int, limit: int) -> None:
        (data,) = await self._blobs.get_many((name.digest,))
        if data is None:
            raise BlobNotFound(name.digest)
        if offset or limit:
            data = data[offset : offset + limit if limit else None]
        if name.compressor:
            data = await zstd.compress_async(data)
        if data:
            await context.write(wire.read_response(data))

    @handled
    async def Write(self, _messages: Any, context: Any) -> bytes:
        """Store a blob; returns as soon as the store has it, from whomever."""
        reader = MessageReader(context)
        data = await reader.first()
        _check_header(context, reader.resource_name)
        if self._streams is not None and self._streams.claims(reader.resource_name):
            return _write_response(await self._write_stream(self._streams, reader, data))
        name = parse_write_name(reader.resource_name)
        digest = name.digest
        if 0 < self._max_blob_bytes < digest.size_bytes:
            raise InvalidInput(
                f"resource_name: {digest.size_bytes} bytes are over the limit of {self._max_blob_bytes}",
                field="resource_name",
            )
        if not await self._missing(digest):
            return _write_response(-1 if name.compressor else digest.size_bytes)
        if reader.finished and not reader.write_offset:
            await reader.end()
            await self._write_at_once(name, data)
        elif not await self._write_pieces(name, reader, data, context):
            return _write_response(-1 if name.compressor else digest.size_bytes)
        return _write_response(_committed_size(name, reader, context))

    async def _missing(self, digest: Digest) -> bool:
        if not digest.size_bytes:
            return digest != EMPTY[digest.function]
        return bool(await self._blobs.find_missing((digest,)))

    async def _write_at_once(self, name: WriteName, data: bytes) -> None:
        digest = name.digest
        if name.compressor:
            data = await zstd.decompress_async(data, digest.size_bytes)
        elif len(data) != digest.size_bytes:
            raise InvalidInput(f"data: {len(data)} bytes, {digest} has {digest.size_bytes}", field="data")
        (refusal,) = await self._blobs.put_many([(digest, data)])
        if refusal is not None:
            raise refusal

    async def _write_pieces(self, name: WriteName, reader: MessageReader, data: bytes, context: Any) -> bool:
        """Store a blob of many messages; False when the store had it before all was sent."""
        owner = object()
        upload = self._uploads.begin(name, reader.write_offset, owner)
        try:
            complete = await self._receive(name, upload, owner, reader, data)
        except asyncio.CancelledError:
            self._uploads.suspend(name, upload, owner)
            raise
        except Exception:
            self._uploads.drop(name, upload, owner)
            raise
        if complete is None:
            self._uploads.suspend(name, upload, owner)
            raise InvalidInput(
                f"finish_write: the stream ended without it after {upload.received_bytes} of "
                f"{name.digest.size_bytes} bytes",
                field="finish_write",
            )
        if not complete:
            self._uploads.drop(name, upload, owner)
            return False
        self._uploads.done(name, upload)
        return True

    async def _receive(
        self, name: WriteName, upload: Upload, owner: object, reader: MessageReader, data: bytes
    ) -> bool | None:
        """Feed an upload; True when stored, False when somebody else stored it, None when the client left."""
        sink = _Sink(name, upload, owner, reader.write_offset)
        look_again_at = _LOOK_AGAIN_BYTES
        piece: bytes | None = data
        while True:
            if piece is None:
                return None
            await sink.feed(piece)
            if reader.finished:
                break
            if upload.stored:
                return False
            if upload.received_bytes >= look_again_at:
                look_again_at = upload.received_bytes + _LOOK_AGAIN_BYTES
                if not await self._missing(name.digest):
                    return False
            piece = await reader.next()
        await reader.end()
        sink.finish()
        await upload.finish(owner)
        return True

    async def _write_stream(self, streams: StreamResource, reader: MessageReader, data: bytes) -> int:
        offset = reader.write_offset
        piece: bytes | None = data
        while piece is not None:
            offset = await streams.append(reader.resource_name, offset, piece, finish=reader.finished)
            if reader.finished:
                await reader.end()
                break
            piece = await reader.next()
        return offset

    @handled
    async def QueryWriteStatus(
        self, request: bytestream_pb2.QueryWriteStatusRequest, context: Any
    ) -> bytestream_pb2.QueryWriteStatusResponse:
        """Tell how much of an upload has come: all, when the blob is here; 0 for one not heard of."""
        if self._streams is not None and self._streams.claims(request.resource_name):
            size_bytes, complete = await self._streams.status(request.resource_name)
            return bytestream_pb2.QueryWriteStatusResponse(committed_size=size_bytes, complete=complete)
        name = parse_write_name(request.resource_name)
        if not await self._missing(name.digest):
            return bytestream_pb2.QueryWriteStatusResponse(committed_size=name.digest.size_bytes, complete=True)
        return bytestream_pb2.QueryWriteStatusResponse(committed_size=self._uploads.received_bytes(name))


class _Sink:
    """Between the messages of one call and the upload: decompresses, and skips what was received before."""

    def __init__(self, name: WriteName, upload: Upload, owner: object, offset: int) -> None:
        self._upload = upload
        self._owner = owner
        self._skip = upload.received_bytes - offset
        self._decoder = zstd.Decoder(name.digest.size_bytes, offset=offset) if name.compressor else None

    async def feed(self, data: bytes) -> None:
        """Take the data of one message."""
        if self._decoder is None:
            await self._pass_on(data)
            return
        self._decoder.feed(data)
        while piece := await zstd.take_async(self._decoder, len(data)):
            await self._pass_on(piece)

    async def _pass_on(self, data: bytes) -> None:
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        await self._upload.feed(self._owner, data)

    def finish(self) -> None:
        """Check that the stream of frames is whole."""
        if self._decoder is not None:
            self._decoder.finish()


_read_name = functools.lru_cache(maxsize=4096)(parse_read_name)


def _parse(kind: type[bytestream_pb2.ReadRequest], data: bytes) -> bytestream_pb2.ReadRequest:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"request: not a {kind.DESCRIPTOR.name}: {error}") from error


def _check_header(context: Any, resource_name: str) -> None:
    named = header(context, RESOURCE_NAME_HEADER)
    if named is not None and named != resource_name:
        raise InvalidInput(
            f"header {RESOURCE_NAME_HEADER}: {named!r} is not the request's resource_name {resource_name[:400]!r}",
            field="resource_name",
        )


async def _send(context: Any, chunks: AsyncGenerator[bytes, None]) -> None:
    async for chunk in chunks:
        if len(chunk) <= MESSAGE_BYTES:
            if chunk:
                await context.write(wire.read_response(chunk))
            continue
        for start in range(0, len(chunk), MESSAGE_BYTES):
            await context.write(wire.read_response(chunk[start : start + MESSAGE_BYTES]))


def _committed_size(name: WriteName, reader: MessageReader, context: Any) -> int:
    """Return what the client of a whole write expects.

    For compressed writes the spec says nothing: Bazel and buck2 want the compressed bytes they sent (or
    -1), siso and reclient the size of the blob. See the survey in bazel#30000.
    """
    if not name.compressor:
        return name.digest.size_bytes
    if request_metadata(context).tool_details.tool_name.lower().startswith(_WANTS_BLOB_SIZE):
        return name.digest.size_bytes
    return -1 if reader.write_offset else reader.wire_bytes


def _write_response(committed_size: int) -> bytes:
    return bytestream_pb2.WriteResponse(committed_size=committed_size).SerializeToString()


def register_bytestream(server: Any, service: ByteStreamService) -> None:
    """Add the service to a server that was not started yet."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Read": grpc.unary_stream_rpc_method_handler(service.Read),
        "Write": grpc.stream_unary_rpc_method_handler(service.Write),
        "QueryWriteStatus": grpc.unary_unary_rpc_method_handler(
            service.QueryWriteStatus,
            bytestream_pb2.QueryWriteStatusRequest.FromString,
            bytestream_pb2.QueryWriteStatusResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
