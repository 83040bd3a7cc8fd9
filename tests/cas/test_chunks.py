import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.grpc_server import Served, serve
from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.chunking import Chunker
from tvix.cas.digest import EMPTY, Digest, digest_from_proto, digest_of, digest_to_proto, function_to_wire

FAST_CDC = re_pb2.ChunkingFunction.FAST_CDC_2020
DATA = random.Random(11).randbytes(14_000_000)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def store(served: Served, *contents: bytes, function: Any = "sha256") -> list[Digest]:
    digests = [digest_of(data, function) for data in contents]
    assert await served.blobs.put_many(list(zip(digests, contents, strict=True))) == [None] * len(contents)
    return digests


async def split(served: Served, digest: Digest, chunking_function: Any = 0) -> list[Digest]:
    function = function_to_wire(digest.function)
    reply = await served.cas.SplitBlob(
        re_pb2.SplitBlobRequest(
            blob_digest=digest_to_proto(digest), digest_function=function, chunking_function=chunking_function
        )
    )
    assert reply.chunking_function == FAST_CDC
    return [digest_from_proto(chunk, function) for chunk in reply.chunk_digests]


async def splice(served: Served, digest: Digest, chunks: list[Digest], chunking_function: Any = 0) -> None:
    reply = await served.cas.SpliceBlob(
        re_pb2.SpliceBlobRequest(
            blob_digest=digest_to_proto(digest),
            chunk_digests=map(digest_to_proto, chunks),
            digest_function=function_to_wire(digest.function),
            chunking_function=chunking_function,
        )
    )
    assert reply.blob_digest == digest_to_proto(digest)


@pytest.mark.parametrize("function", ["sha256", "blake3"])
@pytest.mark.parametrize("chunking_function", [0, 1, 2, 99])
async def test_split_stores_fast_cdc_chunks(served: Served, function: Any, chunking_function: int) -> None:
    (digest,) = await store(served, DATA, function=function)
    chunks = await split(served, digest, chunking_function)
    chunker = Chunker()
    chunker.feed(DATA)
    assert chunks == [digest_of(chunk, function) for chunk in [*chunker.cut(), *chunker.cut(last=True)]]
    assert b"".join([served.blobs.blobs[chunk] for chunk in chunks]) == DATA
    del served.blobs.blobs[chunks[1]]
    assert await split(served, digest, chunking_function) == chunks
    assert chunks[1] in served.blobs.blobs


async def test_small_blobs_are_one_chunk(served: Served) -> None:
    (digest,) = await store(served, b"small")
    assert await split(served, digest) == [digest]
    assert await split(served, EMPTY["sha256"]) == [EMPTY["sha256"]]


async def test_split_of_an_absent_blob(served: Served) -> None:
    digest = digest_of(b"absent")
    code, details = await failure(split(served, digest))
    assert code == grpc.StatusCode.NOT_FOUND
    assert digest.hash in details


@pytest.mark.parametrize("function", ["sha256", "blake3", "sha1"])
async def test_splice_joins(served: Served, function: Any) -> None:
    pieces = [b"one ", b"two ", b"x" * 5_000_000, b"", b"three", b"two "]
    chunks = await store(served, *pieces, function=function)
    digest = digest_of(b"".join(pieces), function)
    await splice(served, digest, chunks)
    assert served.blobs.blobs[digest] == b"".join(pieces)
    await splice(served, digest, chunks)


async def test_the_chunks_of_a_splice_are_those_of_a_later_split(served: Served) -> None:
    chunks = await store(served, b"a" * 300_000, b"b" * 300_000)
    digest = digest_of(b"a" * 300_000 + b"b" * 300_000)
    await splice(served, digest, chunks, FAST_CDC)
    assert await split(served, digest) == chunks
    assert await split(served, digest, FAST_CDC) == chunks


async def test_chunks_of_another_function_are_not_passed_off_as_fast_cdc(served: Served) -> None:
    chunks = await store(served, b"a", b"b")
    digest = digest_of(b"ab")
    await splice(served, digest, chunks)
    assert await split(served, digest, FAST_CDC) == [digest]


async def test_splice_errors_store_nothing(served: Served) -> None:
    one, two = await store(served, b"one", b"two")
    absent = digest_of(b"absent")
    wrong = Digest("sha256", "0" * 64, 6)
    for digest, chunks, code, message in (
        (digest_of(b"oneabsent"), [one, absent], grpc.StatusCode.NOT_FOUND, absent.hash),
        (wrong, [one, two], grpc.StatusCode.INVALID_ARGUMENT, "announced as"),
        (digest_of(b"onetwo"), [two, one], grpc.StatusCode.INVALID_ARGUMENT, "announced as"),
        (digest_of(b"onetwo"), [one], grpc.StatusCode.INVALID_ARGUMENT, "chunk_digests: have 3 bytes"),
        (digest_of(b"onetwo"), [], grpc.StatusCode.INVALID_ARGUMENT, "chunk_digests: have 0 bytes"),
        (digest_of(b"onetwo"), [Digest("sha256", "Z" * 64, 6)], grpc.StatusCode.INVALID_ARGUMENT, "chunk_digests[0]"),
    ):
        found, details = await failure(splice(served, digest, chunks))
        assert found == code
        assert message in details
        assert set(served.blobs.blobs) == {one, two}


async def test_splice_of_a_blob_that_is_there_but_not_its_chunks(served: Served) -> None:
    digest, one = await store(served, b"onetwo", b"one")
    code, _ = await failure(splice(served, digest, [one, digest_of(b"two")]))
    assert code == grpc.StatusCode.ALREADY_EXISTS


async def test_splice_obeys_the_size_limit() -> None:
    async with serve(capabilities=CapabilitiesConfig(max_blob_bytes=5)) as served:
        chunks = await store(served, b"one", b"two")
        code, details = await failure(splice(served, digest_of(b"onetwo"), chunks))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "limit of 5" in details
