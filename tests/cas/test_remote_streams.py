"""Streams that break: reads and writes go on where they were, and never pass off a part as the whole."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from remote_apis import bytestream_pb2, bytestream_pb2_grpc
from tests.cas.blobs import chunks_of, read
from tests.cas.reapi_server import reapi_server, serving
from tests.contracts.blob_store import random_bytes
from tvix.cas.connection import connect
from tvix.cas.digest import digest_of
from tvix.cas.grpc_client import GrpcBlobStore
from tvix.cas.interfaces import BlobStore
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.remote import ClientConfig
from tvix.errors import BlobNotFound, CorruptData, Internal, NotFound, TvixError, Unavailable

DATA = random_bytes(1_000_000)
DIGEST = digest_of(DATA)


class BreakingPeer(bytestream_pb2_grpc.ByteStreamServicer):
    """Breaks off after so many bytes, so many times; remembers what it got."""

    def __init__(self, breaks: int = 0, after: int = 300_000) -> None:
        self.breaks = breaks
        self.after = after
        self.offsets: list[int] = []
        self.received = b""
        self.remembers = True
        self.excess = b""
        self.committed: int | None = None

    async def _break(self, context: Any) -> None:
        self.breaks -= 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the line is gone")

    async def Read(self, request: bytestream_pb2.ReadRequest, context: Any) -> Any:
        self.offsets.append(request.read_offset)
        end = request.read_offset + request.read_limit if request.read_limit else len(DATA)
        data = DATA[request.read_offset : end] + self.excess
        sent = 0
        for start in range(0, len(data), 100_000):
            if self.breaks and sent >= self.after:
                await self._break(context)
            yield bytestream_pb2.ReadResponse(data=data[start : start + 100_000])
            sent += 100_000
        if self.breaks:
            self.breaks -= 1  # ends early without a word

    async def Write(self, requests: Any, context: Any) -> bytestream_pb2.WriteResponse:
        got = 0
        first = True
        finished = False
        async for request in requests:
            assert bool(request.resource_name) == first
            if first:
                self.offsets.append(request.write_offset)
                assert request.write_offset <= len(self.received)
                self.received = self.received[: request.write_offset]
            first = False
            assert request.write_offset == len(self.received)
            self.received += request.data
            got += len(request.data)
            finished = request.finish_write
            if self.breaks and got >= self.after:
                await self._break(context)
        if not finished:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no finish_write")
        committed = len(self.received) if self.committed is None else self.committed
        return bytestream_pb2.WriteResponse(committed_size=committed)

    async def QueryWriteStatus(self, request: Any, context: Any) -> bytestream_pb2.QueryWriteStatusResponse:
        if not self.remembers:
            self.received = b""
            await context.abort(grpc.StatusCode.NOT_FOUND, "never heard of it")
        return bytestream_pb2.QueryWriteStatusResponse(committed_size=len(self.received))


@asynccontextmanager
async def client(peer: BreakingPeer, replay_bytes: int = 10_000_000) -> AsyncIterator[BlobStore]:
    config = ClientConfig(
        small_blob_bytes=-1, attempts=3, first_wait_seconds=0.001, max_wait_seconds=0.002, replay_bytes=replay_bytes
    )

    def add(server: Any) -> None:
        bytestream_pb2_grpc.add_ByteStreamServicer_to_server(peer, server)

    async with serving(add) as url, connect(url) as connection:
        yield GrpcBlobStore(connection, config)


async def test_a_read_goes_on_where_it_broke_off_as_long_as_it_gets_on() -> None:
    peer = BreakingPeer(breaks=5, after=100_000)
    async with client(peer) as store:
        assert await read(store, DIGEST) == DATA
    assert peer.offsets == [0, 100_000, 200_000, 300_000, 400_000, 500_000]


async def test_a_range_that_breaks_asks_for_the_rest_of_the_range() -> None:
    peer = BreakingPeer(breaks=1)
    async with client(peer) as store:
        assert await read(store, DIGEST, offset=10, limit=500_000) == DATA[10:500_010]
    assert peer.offsets == [10, 300_010]


async def test_a_read_that_gets_nowhere_gives_up() -> None:
    peer = BreakingPeer(breaks=100, after=0)
    async with client(peer) as store:
        with pytest.raises(Unavailable, match="the line is gone"):
            await read(store, DIGEST)
    assert len(peer.offsets) == 3


async def test_a_peer_that_sends_too_much_is_corrupt() -> None:
    peer = BreakingPeer()
    peer.excess = b"!"
    async with client(peer) as store:
        with pytest.raises(CorruptData, match="more than"):
            await read(store, DIGEST)


async def test_a_write_goes_on_where_the_peer_is() -> None:
    peer = BreakingPeer(breaks=2)
    async with client(peer) as store:
        await store.write(DIGEST, chunks_of(DATA, 100_000))
    assert peer.received == DATA
    assert peer.offsets == [0, 300_000, 600_000]


async def test_a_write_begins_anew_when_the_peer_forgot_it_and_all_is_kept() -> None:
    peer = BreakingPeer(breaks=1)
    peer.remembers = False
    async with client(peer) as store:
        await store.write(DIGEST, chunks_of(DATA, 100_000))
    assert peer.received == DATA
    assert peer.offsets == [0, 0]


async def test_a_write_fails_when_the_peer_forgot_what_is_not_kept() -> None:
    peer = BreakingPeer(breaks=1)
    peer.remembers = False
    async with client(peer, replay_bytes=150_000) as store:
        with pytest.raises(Unavailable, match="the line is gone"):
            await store.write(DIGEST, chunks_of(DATA, 100_000))


async def test_a_source_that_fails_is_not_tried_again_even_when_unavailable() -> None:
    peer = BreakingPeer()

    async def failing() -> AsyncIterator[bytes]:
        yield DATA[:100_000]
        raise Unavailable("the far store")

    async with client(peer) as store:
        with pytest.raises(Unavailable, match="the far store"):
            await store.write(DIGEST, failing())
    assert len(peer.offsets) <= 1


async def test_a_peer_that_stores_another_size_is_not_believed() -> None:
    peer = BreakingPeer()
    peer.committed = 5
    async with client(peer) as store:
        with pytest.raises(Internal, match="stored 5 bytes"):
            await store.write(DIGEST, chunks_of(DATA, 100_000))


async def test_a_blob_that_is_there_ends_the_upload_early() -> None:
    inner = MemoryBlobStore()
    inner.blobs[DIGEST] = DATA
    pulled = 0

    async def slow() -> AsyncIterator[bytes]:
        nonlocal pulled
        async for chunk in chunks_of(DATA * 30, 100_000):
            pulled += len(chunk)
            yield chunk

    async with reapi_server(inner) as url, connect(url) as connection:
        await GrpcBlobStore(connection, ClientConfig(small_blob_bytes=-1)).write(DIGEST, slow())
    assert pulled < 30 * len(DATA)


async def test_compressed_streams_resume_reads_and_restart_writes() -> None:
    text = b"".join(b"line %d\n" % number for number in range(200_000))
    digest = digest_of(text)
    inner = MemoryBlobStore()
    config = ClientConfig(small_blob_bytes=-1, compress=True)
    async with reapi_server(inner) as url, connect(url) as connection:
        store = GrpcBlobStore(connection, config)
        await store.write(digest, chunks_of(text, 100_000))
        assert inner.blobs == {digest: text}
        assert await read(store, digest) == text
        assert await read(store, digest, offset=1_000_000) == text[1_000_000:]
        assert await read(store, digest, offset=7, limit=9) == text[7:16]
        with pytest.raises(BlobNotFound):
            await read(store, digest_of(b"absent"))


async def test_leaving_a_read_early_ends_the_call() -> None:
    peer = BreakingPeer()
    async with client(peer) as store:
        async with aclosing(store.read(DIGEST)) as chunks:
            assert DATA.startswith(await anext(chunks))
        assert issubclass(NotFound, TvixError)
