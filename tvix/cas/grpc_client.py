"""Clients of somebody's REAPI storage: a blob store and an action cache over gRPC.

Small blobs travel in batches, and the batches of concurrent callers are merged; large ones are streamed,
and go on where they were when the connection breaks. Passing faults are tried again a few times. Nothing a
peer sends should be believed: put VerifyingBlobStore above `GrpcBlobStore`, as `remote_blobs` does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from typing import TypeVar

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tvix.cas import zstd
from tvix.cas.coalescing import Coalescing
from tvix.cas.concurrently import all_of
from tvix.cas.connection import Connection
from tvix.cas.digest import EMPTY, Digest, digest_to_proto, function_to_wire
from tvix.cas.interfaces import ActionKey, BlobStore, RecordStore, read_whole
from tvix.cas.remote import ClientConfig, Remote
from tvix.cas.remote_streams import read_stream, write_stream
from tvix.cas.verifying import VerifyingBlobStore
from tvix.errors import BlobNotFound, CorruptData, InvalidInput, NotFound, OutOfRange, TvixError, Unsupported
from tvix.rpc import error_from_status

T = TypeVar("T")

_ENTRY_BYTES = 200
"""What a blob takes in a batch besides its data, at most: hash, sizes, tags, status."""

_OK, _NOT_FOUND = 0, 5


def _is_empty(digest: Digest) -> bool:
    return digest == EMPTY[digest.function]


class GrpcBlobStore(BlobStore):
    """The CAS of a peer. The connection is closed by whoever opened it."""

    def __init__(self, connection: Connection, config: ClientConfig | None = None) -> None:
        self._remote = Remote(connection, config or ClientConfig())
        self._stub = re_grpc.ContentAddressableStorageStub(connection.channel)
        concurrency = self._remote.config.concurrency
        self._find = Coalescing(self._find_batch, concurrency, self._remote.config.max_find_missing)
        self._get = Coalescing(self._get_batch, concurrency)
        self._put = Coalescing(self._put_batch, concurrency)

    def __repr__(self) -> str:
        return f"<GrpcBlobStore {self._remote.connection!r}>"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        wanted = [digest for digest in dict.fromkeys(digests) if not _is_empty(digest)]
        if not wanted:
            return set()
        absent = await self._find(wanted)
        return {digest for digest, is_absent in zip(wanted, absent, strict=True) if is_absent}

    async def _find_batch(self, digests: Sequence[Digest]) -> Sequence[bool]:
        count = self._remote.config.max_find_missing
        batches = [
            same[start : start + count] for same in _by_function(digests) for start in range(0, len(same), count)
        ]
        missing = set[Digest]().union(*await all_of([self._find_request(batch) for batch in batches]))
        return [digest in missing for digest in digests]

    async def _find_request(self, digests: Sequence[Digest]) -> set[Digest]:
        function = digests[0].function
        request = re_pb2.FindMissingBlobsRequest(
            instance_name=self._remote.instance_name,
            blob_digests=[digest_to_proto(digest) for digest in digests],
            digest_function=function_to_wire(function),
        )
        response = await self._remote.call(self._stub.FindMissingBlobs, request)
        return {Digest(function, digest.hash, digest.size_bytes) for digest in response.missing_blob_digests}

    async def _is_small(self, digest: Digest) -> bool:
        if digest.size_bytes > self._remote.config.small_blob_bytes:
            return False
        return digest.size_bytes + _ENTRY_BYTES <= await self._remote.batch_bytes()

    async def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        end = digest.size_bytes if limit is None else min(digest.size_bytes, offset + limit)
        if not 0 <= offset < end:
            # Settled here, for a read_limit of 0 would mean no limit.
            if await self.find_missing([digest]):
                raise BlobNotFound(digest)
            if not 0 <= offset <= digest.size_bytes:
                raise OutOfRange(f"offset {offset} is outside blob {digest}")
        elif await self._is_small(digest):
            (blob,) = await self._get([digest])
            if blob is None:
                raise BlobNotFound(digest)
            yield blob[offset:end]
        else:
            async with aclosing(read_stream(self._remote, digest, offset, end - offset)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        if not await self._is_small(digest):
            await write_stream(self._remote, digest, chunks)
            return
        pieces: list[bytes] = []
        size_bytes = 0
        async for chunk in chunks:
            pieces.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > digest.size_bytes:
                raise InvalidInput(f"more data than blob {digest} has", field="data")
        if not _is_empty(digest):
            (refused,) = await self._put([(digest, b"".join(pieces))])
            if refused is not None:
                raise refused

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        found: dict[Digest, bytes | None] = {}
        small: list[Digest] = []
        large: list[Digest] = []
        for digest in dict.fromkeys(digests):
            if _is_empty(digest):
                found[digest] = b""
            else:
                (small if await self._is_small(digest) else large).append(digest)
        if small:
            found.update(zip(small, await self._get(small), strict=True))
        if large:
            found.update(zip(large, await all_of([self._read_large(digest) for digest in large], limit=4), strict=True))
        return [found[digest] for digest in digests]

    async def _read_large(self, digest: Digest) -> bytes | None:
        try:
            return await read_whole(self, digest)
        except BlobNotFound:
            return None

    async def _get_batch(self, digests: Sequence[Digest]) -> Sequence[bytes | None]:
        limit = await self._remote.batch_bytes()
        batches = [
            batch
            for same in _by_function(list(dict.fromkeys(digests)))
            for batch in _by_size(same, limit, lambda digest: digest.size_bytes)
        ]
        found: dict[Digest, bytes | None] = {}
        for part in await all_of([self._get_request(batch) for batch in batches]):
            found.update(part)
        return [found.get(digest) for digest in digests]

    async def _get_request(self, digests: Sequence[Digest]) -> dict[Digest, bytes | None]:
        function = digests[0].function
        request = re_pb2.BatchReadBlobsRequest(
            instance_name=self._remote.instance_name,
            digests=[digest_to_proto(digest) for digest in digests],
            digest_function=function_to_wire(function),
        )
        if await self._remote.compresses(batches=True):
            request.acceptable_compressors.append(re_pb2.Compressor.ZSTD)
        response = await self._remote.call(self._stub.BatchReadBlobs, request)
        found: dict[Digest, bytes | None] = {}
        for entry in response.responses:
            digest = Digest(function, entry.digest.hash, entry.digest.size_bytes)
            if entry.status.code not in (_OK, _NOT_FOUND):
                raise error_from_status(entry.status)
            found[digest] = await self._data_of(digest, entry) if entry.status.code == _OK else None
        return found

    async def _data_of(self, digest: Digest, entry: re_pb2.BatchReadBlobsResponse.Response) -> bytes:
        if entry.compressor == re_pb2.Compressor.ZSTD:
            try:
                return await zstd.decompress_async(entry.data, digest.size_bytes)
            except InvalidInput as error:
                raise CorruptData(f"{self!r}, blob {digest}: {error}") from error
        if len(entry.data) != digest.size_bytes:
            raise CorruptData(f"{self!r} sent {len(entry.data)} bytes for blob {digest}")
        return entry.data

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        outcomes: list[TvixError | None] = [None] * len(blobs)
        small: list[int] = []
        large: list[int] = []
        for index, (digest, _) in enumerate(blobs):
            if not _is_empty(digest):
                (small if await self._is_small(digest) else large).append(index)
        if small:
            refusals = await self._put([blobs[index] for index in small])
            for index, refused in zip(small, refusals, strict=True):
                outcomes[index] = refused
        if large:
            refusals = await all_of([self._write_large(*blobs[index]) for index in large], limit=4)
            for index, refused in zip(large, refusals, strict=True):
                outcomes[index] = refused
        return outcomes

    async def _write_large(self, digest: Digest, data: bytes) -> TvixError | None:
        async def once() -> AsyncGenerator[bytes, None]:
            yield data

        try:
            async with aclosing(once()) as chunks:
                await write_stream(self._remote, digest, chunks)
        except TvixError as error:
            return error
        return None

    async def _put_batch(self, blobs: Sequence[tuple[Digest, bytes]]) -> Sequence[TvixError | None]:
        limit = await self._remote.batch_bytes()
        unique = dict(blobs)
        batches = [
            batch
            for same in _by_function(list(unique))
            for batch in _by_size(same, limit, lambda digest: len(unique[digest]))
        ]
        refused: dict[Digest, TvixError | None] = {}
        for part in await all_of([self._put_request(batch, unique) for batch in batches]):
            refused.update(part)
        return [refused.get(digest) for digest, _ in blobs]

    async def _put_request(
        self, digests: Sequence[Digest], data: dict[Digest, bytes]
    ) -> dict[Digest, TvixError | None]:
        function = digests[0].function
        compress = await self._remote.compresses(batches=True)
        request = re_pb2.BatchUpdateBlobsRequest(
            instance_name=self._remote.instance_name, digest_function=function_to_wire(function)
        )
        for digest in digests:
            entry = request.requests.add(digest=digest_to_proto(digest))
            if compress and digest.size_bytes >= zstd.MIN_COMPRESSED_BYTES:
                entry.data = await zstd.compress_async(data[digest])
                entry.compressor = re_pb2.Compressor.ZSTD
            else:
                entry.data = data[digest]
        response = await self._remote.call(self._stub.BatchUpdateBlobs, request)
        return {
            Digest(function, entry.digest.hash, entry.digest.size_bytes): (
                None if entry.status.code == _OK else error_from_status(entry.status)
            )
            for entry in response.responses
        }


def remote_blobs(connection: Connection, config: ClientConfig | None = None) -> BlobStore:
    """Return the CAS of a peer, with every whole blob that comes or goes checked against its digest."""
    return VerifyingBlobStore(GrpcBlobStore(connection, config))


def _by_function(digests: Sequence[Digest]) -> list[list[Digest]]:
    """Group by digest function, of which a request has one."""
    groups: dict[str, list[Digest]] = {}
    for digest in digests:
        groups.setdefault(digest.function, []).append(digest)
    return list(groups.values())


def _by_size(digests: Sequence[Digest], limit: int, size_of: Callable[[Digest], int]) -> Iterator[list[Digest]]:
    """Cut into batches within the peer's limit."""
    batch: list[Digest] = []
    total = 0
    for digest in digests:
        size = size_of(digest) + _ENTRY_BYTES
        if batch and total + size > limit:
            yield batch
            batch, total = [], 0
        batch.append(digest)
        total += size
    if batch:
        yield batch


class GrpcActionCache(RecordStore[ActionKey, re_pb2.ActionResult]):
    """The action cache of a peer. When the connection names an instance, it is that one for all keys."""

    def __init__(self, connection: Connection, config: ClientConfig | None = None) -> None:
        self._remote = Remote(connection, config or ClientConfig())
        self._stub = re_grpc.ActionCacheStub(connection.channel)

    def __repr__(self) -> str:
        return f"<GrpcActionCache {self._remote.connection!r}>"

    async def get(self, key: ActionKey) -> re_pb2.ActionResult | None:
        request = re_pb2.GetActionResultRequest(
            instance_name=self._remote.instance_name or key.instance_name,
            action_digest=digest_to_proto(key.action_digest),
            digest_function=function_to_wire(key.action_digest.function),
        )
        try:
            result: re_pb2.ActionResult = await self._remote.call(self._stub.GetActionResult, request)
        except NotFound:
            return None
        return result

    async def put(self, key: ActionKey, value: re_pb2.ActionResult) -> None:
        request = re_pb2.UpdateActionResultRequest(
            instance_name=self._remote.instance_name or key.instance_name,
            action_digest=digest_to_proto(key.action_digest),
            action_result=value,
            digest_function=function_to_wire(key.action_digest.function),
        )
        await self._remote.call(self._stub.UpdateActionResult, request)

    async def delete(self, key: ActionKey) -> None:
        """Raise Unsupported: the protocol has no such call."""
        raise Unsupported("action results of a peer cannot be deleted")
