"""The ContentAddressableStorage service.

FindMissingBlobs and BatchReadBlobs, the hottest calls, work on serialized messages (see wire.py); the
others on message objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas import wire, zstd
from tvix.cas.capabilities import MAX_BATCH_BYTES
from tvix.cas.chunks import Chunks
from tvix.cas.digest import (
    EMPTY,
    Digest,
    DigestFunction,
    digest_from_proto,
    digest_to_proto,
    function_from_wire,
    function_to_wire,
)
from tvix.cas.interfaces import BlobStore
from tvix.cas.resource_names import check_instance_name
from tvix.cas.tree import TreeWalker
from tvix.errors import BlobNotFound, InvalidInput, TvixError
from tvix.rpc import handled, status_from_error

SERVICE = "build.bazel.remote.execution.v2.ContentAddressableStorage"

MAX_TREE_PAGE_BYTES = 2 * 1024 * 1024
"""Directories of one GetTreeResponse; with one more Directory it must stay below 4 MiB."""

_FULL_LISTS: dict[int, DigestFunction] = {0: "sha256", 1: "sha256", 8: "sha256tree", 9: "blake3"}

M = TypeVar("M", bound=Message)


def parse_message(kind: type[M], data: bytes) -> M:
    """Return the message; InvalidInput when the bytes are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"request: not a {kind.DESCRIPTOR.name}: {error}") from error


class CasService:
    """The methods, over one store for all instances; `bytes` stands for serialized messages."""

    def __init__(
        self, blobs: BlobStore, chunks: Chunks, *, max_blob_bytes: int = 0, max_batch_bytes: int = MAX_BATCH_BYTES
    ) -> None:
        self._blobs = blobs
        self._chunks = chunks
        self._max_blob_bytes = max_blob_bytes
        self._max_batch_bytes = max_batch_bytes
        self._interned = {function: wire.Interned(function) for function in set(_FULL_LISTS.values())}
        # Servers may serve trees that are not canonical; nothing is remembered, as nothing is asked twice.
        self._walker = TreeWalker(blobs, 0, strict=False)
        self._heads = wire.BlobHeads()
        self._find_rests: dict[bytes, wire.Interned] = {b"": self._interned["sha256"]}
        self._read_rests: dict[bytes, tuple[wire.Interned, bool]] = {b"": (self._interned["sha256"], False)}

    @handled
    async def FindMissingBlobs(self, request: bytes, context: Any) -> bytes:
        """Return those of the digests that are not here, each once; the others count as used."""
        split = wire.split_digest_list(request)
        if split is None:
            return await self._find_missing_slowly(request)
        instance_name, items, rest = split
        interned = self._find_rests.get(rest)
        if interned is None and (interned := self._remember_find_rest(rest)) is None:
            return await self._find_missing_slowly(request)
        try:
            digests = [interned[item] for item in items]
        except (KeyError, IndexError):
            return await self._find_missing_slowly(request)
        if instance_name:
            check_instance_name(instance_name)
        missing = await self._blobs.find_missing(digests)
        if not missing:
            return b""
        if len(missing) == len(items):
            return b"".join(items)
        absent = [item for item, digest in zip(items, digests, strict=True) if digest in missing]
        return b"".join(absent if len(absent) == len(missing) else dict.fromkeys(absent))

    def _remember_find_rest(self, rest: bytes) -> wire.Interned | None:
        try:
            message = re_pb2.FindMissingBlobsRequest.FromString(rest)
        except DecodeError:
            return None
        function = _FULL_LISTS.get(message.digest_function)
        if function is None or message.blob_digests or message.instance_name or len(rest) > 16:
            return None
        if len(self._find_rests) < 100:
            self._find_rests[rest] = self._interned[function]
        return self._interned[function]

    async def _find_missing_slowly(self, data: bytes) -> bytes:
        request = parse_message(re_pb2.FindMissingBlobsRequest, data)
        check_instance_name(request.instance_name)
        digests = _digests(request.blob_digests, request.digest_function, "blob_digests")
        missing = await self._blobs.find_missing([digest for digest in digests if not _names_nothing(digest)])
        absent = dict.fromkeys(digest for digest in digests if digest in missing or _names_nothing(digest))
        return re_pb2.FindMissingBlobsResponse(missing_blob_digests=map(digest_to_proto, absent)).SerializeToString()

    @handled
    async def BatchReadBlobs(self, request: bytes, context: Any) -> bytes:
        """Return the contents of small blobs, each with a status of its own."""
        split = wire.split_digest_list(request)
        options = self._read_rests.get(split.rest) or self._remember_read_rest(split.rest) if split else None
        if split is None or options is None:
            return await self._batch_read_slowly(request)
        interned, accepts_zstd = options
        try:
            digests = [interned[item] for item in split.items]
        except (KeyError, IndexError):
            return await self._batch_read_slowly(request)
        if accepts_zstd:
            return await self._batch_read_slowly(request)
        if split.instance_name:
            check_instance_name(split.instance_name)
        self._check_batch(sum([digest.size_bytes for digest in digests]))
        heads = self._heads
        parts: list[bytes] = []
        for item, digest, data in zip(split.items, digests, await self._blobs.get_many(digests), strict=True):
            parts += (heads[item], data) if data is not None else (_absent_entry(digest),)
        return b"".join(parts)

    def _remember_read_rest(self, rest: bytes) -> tuple[wire.Interned, bool] | None:
        try:
            message = re_pb2.BatchReadBlobsRequest.FromString(rest)
        except DecodeError:
            return None
        function = _FULL_LISTS.get(message.digest_function)
        if function is None or message.digests or message.instance_name or len(rest) > 16:
            return None
        options = self._interned[function], re_pb2.Compressor.ZSTD in message.acceptable_compressors
        if len(self._read_rests) < 100:
            self._read_rests[rest] = options
        return options

    async def _batch_read_slowly(self, data: bytes) -> bytes:
        request = parse_message(re_pb2.BatchReadBlobsRequest, data)
        check_instance_name(request.instance_name)
        digests = _digests(request.digests, request.digest_function, "digests")
        self._check_batch(sum(digest.size_bytes for digest in digests))
        contents = await self._blobs.get_many([_or_empty(digest) for digest in digests])
        accepts_zstd = re_pb2.Compressor.ZSTD in request.acceptable_compressors
        response = re_pb2.BatchReadBlobsResponse()
        for digest, content in zip(digests, contents, strict=True):
            if content is None or _names_nothing(digest):
                response.responses.append(_absent(digest))
            else:
                response.responses.append(await _read_entry(digest, content, accepts_zstd))
        return response.SerializeToString()

    def _check_batch(self, total_bytes: int) -> None:
        if total_bytes > self._max_batch_bytes:
            raise InvalidInput(
                f"the blobs of one batch may have {self._max_batch_bytes} bytes together, these have {total_bytes}: "
                "use ByteStream or smaller batches"
            )

    @handled
    async def BatchUpdateBlobs(
        self, request: re_pb2.BatchUpdateBlobsRequest, context: Any
    ) -> re_pb2.BatchUpdateBlobsResponse:
        """Store small blobs, each with a status of its own."""
        check_instance_name(request.instance_name)
        entries = request.requests
        digests = [_try_digest(entry.digest, request.digest_function, index) for index, entry in enumerate(entries)]
        payloads = [entry.data for entry in entries]
        declared = (digest.size_bytes for digest in digests if isinstance(digest, Digest))
        self._check_batch(max(sum(map(len, payloads)), sum(declared)))
        outcomes: list[TvixError | None] = [None] * len(entries)
        accepted: list[tuple[Digest, bytes]] = []
        positions: list[int] = []
        for index, entry in enumerate(entries):
            try:
                blob = await self._admit(digests[index], payloads[index], entry.compressor)
            except TvixError as error:
                outcomes[index] = error
            else:
                accepted.append(blob)
                positions.append(index)
        for index, outcome in zip(positions, await self._blobs.put_many(accepted), strict=True):
            outcomes[index] = outcome
        return re_pb2.BatchUpdateBlobsResponse(
            responses=[
                re_pb2.BatchUpdateBlobsResponse.Response(
                    digest=entry.digest, status=status_pb2.Status() if outcome is None else status_from_error(outcome)
                )
                for entry, outcome in zip(entries, outcomes, strict=True)
            ]
        )

    async def _admit(self, digest: Digest | TvixError, data: bytes, compressor: int) -> tuple[Digest, bytes]:
        """Return digest and plain bytes of one upload, or raise why it is refused."""
        if isinstance(digest, TvixError):
            raise digest
        if 0 < self._max_blob_bytes < digest.size_bytes:
            raise InvalidInput(
                f"digest.size_bytes: {digest.size_bytes} is over the limit of {self._max_blob_bytes} bytes"
            )
        if compressor == re_pb2.Compressor.ZSTD:
            data = await zstd.decompress_async(data, digest.size_bytes)
        elif compressor != re_pb2.Compressor.IDENTITY:
            raise InvalidInput(f"compressor: {compressor} is not supported; supported are IDENTITY (0) and ZSTD (1)")
        return digest, data

    @handled
    async def GetTree(self, request: re_pb2.GetTreeRequest, context: Any) -> None:
        """Write the Directories of a tree, each once, parents first; absent ones are left out."""
        check_instance_name(request.instance_name)
        root = digest_from_proto(request.root_digest, request.digest_function, field="root_digest")
        if request.page_size < 0:
            raise InvalidInput(f"page_size: {request.page_size} is negative", field="page_size")
        pages = _TreePages(_skip_from_token(request.page_token), request.page_size)
        found = False
        async with aclosing(self._walker.levels(root)) as batches:
            async for batch in batches:
                found = True
                for _, directory in batch:
                    if (page := pages.add(directory)) is not None:
                        await context.write(page)
        if not found:
            raise BlobNotFound(root)
        await context.write(pages.last())

    @handled
    async def SplitBlob(self, request: re_pb2.SplitBlobRequest, context: Any) -> re_pb2.SplitBlobResponse:
        """Return the chunks of a blob, which are blobs too from then on."""
        check_instance_name(request.instance_name)
        digest = digest_from_proto(request.blob_digest, request.digest_function, field="blob_digest")
        return await self._chunks.split(digest, request.chunking_function)

    @handled
    async def SpliceBlob(self, request: re_pb2.SpliceBlobRequest, context: Any) -> re_pb2.SpliceBlobResponse:
        """Make a blob of chunks."""
        check_instance_name(request.instance_name)
        digest = digest_from_proto(request.blob_digest, request.digest_function, field="blob_digest")
        chunks = _digests(request.chunk_digests, function_to_wire(digest.function), "chunk_digests")
        if 0 < self._max_blob_bytes < digest.size_bytes:
            raise InvalidInput(
                f"blob_digest.size_bytes: {digest.size_bytes} is over the limit of {self._max_blob_bytes} bytes"
            )
        await self._chunks.splice(digest, chunks, request.chunking_function)
        return re_pb2.SpliceBlobResponse(blob_digest=digest_to_proto(digest))


def _digests(messages: Sequence[re_pb2.Digest], function_value: int, field: str) -> list[Digest]:
    return [
        digest_from_proto(message, function_value, field=f"{field}[{index}]") for index, message in enumerate(messages)
    ]


def _try_digest(message: re_pb2.Digest, function_value: int, index: int) -> Digest | TvixError:
    """Return the digest, or what is wrong with it. An unknown function is the whole call's fault and raises."""
    if function_value:
        function_from_wire(function_value, message.hash)
    try:
        return digest_from_proto(message, function_value, field=f"requests[{index}].digest")
    except InvalidInput as error:
        return error


def _names_nothing(digest: Digest) -> bool:
    """Tell whether the digest has size 0 but another hash than the empty blob's: no such blob can be."""
    return not digest.size_bytes and digest != EMPTY[digest.function]


def _or_empty(digest: Digest) -> Digest:
    return digest if digest.size_bytes else EMPTY[digest.function]


def _absent(digest: Digest) -> re_pb2.BatchReadBlobsResponse.Response:
    return re_pb2.BatchReadBlobsResponse.Response(
        digest=digest_to_proto(digest), status=status_from_error(BlobNotFound(digest))
    )


def _absent_entry(digest: Digest) -> bytes:
    return re_pb2.BatchReadBlobsResponse(responses=[_absent(digest)]).SerializeToString()


async def _read_entry(digest: Digest, data: bytes, accepts_zstd: bool) -> re_pb2.BatchReadBlobsResponse.Response:
    compressor = re_pb2.Compressor.IDENTITY
    if accepts_zstd and len(data) >= zstd.MIN_COMPRESSED_BYTES:
        smaller = await zstd.compress_async(data)
        if len(smaller) < len(data):
            data, compressor = smaller, re_pb2.Compressor.ZSTD
    return re_pb2.BatchReadBlobsResponse.Response(
        digest=digest_to_proto(digest), data=data, compressor=compressor, status=status_pb2.Status()
    )


def _skip_from_token(token: str) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit() or len(token) > 18:
        raise InvalidInput(f"page_token: {token[:40]!r} is none of ours", field="page_token")
    return int(token)


class _TreePages:
    """Puts Directories into GetTreeResponses. The order of a walk is the same at every call, so that a page
    token is the number of Directories before the page."""

    def __init__(self, skip: int, page_size: int) -> None:
        self._skip = self._sent = skip
        self._page_size = page_size
        self._entries: list[bytes] = []
        self._bytes = 0

    def add(self, directory: bytes) -> bytes | None:
        """Take the next Directory; return the page before it if that is full."""
        if self._skip:
            self._skip -= 1
            return None
        full = None
        entries = self._entries
        if entries and (self._bytes + len(directory) > MAX_TREE_PAGE_BYTES or len(entries) == self._page_size):
            self._sent += len(entries)
            token = str(self._sent).encode()
            full = b"".join((*entries, b"\x12", wire.varint(len(token)), token))
            self._entries, self._bytes = [], 0
        self._entries.append(wire.tree_entry(directory))
        self._bytes += len(directory)
        return full

    def last(self) -> bytes:
        """Return the last page, which has no token."""
        return b"".join(self._entries)


def register_cas(server: Any, service: CasService) -> None:
    """Add the service to a server that was not started yet."""
    unary = grpc.unary_unary_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "FindMissingBlobs": unary(service.FindMissingBlobs),
        "BatchReadBlobs": unary(service.BatchReadBlobs),
        "BatchUpdateBlobs": unary(
            service.BatchUpdateBlobs,
            re_pb2.BatchUpdateBlobsRequest.FromString,
            re_pb2.BatchUpdateBlobsResponse.SerializeToString,
        ),
        "GetTree": grpc.unary_stream_rpc_method_handler(service.GetTree, re_pb2.GetTreeRequest.FromString),
        "SplitBlob": unary(
            service.SplitBlob, re_pb2.SplitBlobRequest.FromString, re_pb2.SplitBlobResponse.SerializeToString
        ),
        "SpliceBlob": unary(
            service.SpliceBlob, re_pb2.SpliceBlobRequest.FromString, re_pb2.SpliceBlobResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
