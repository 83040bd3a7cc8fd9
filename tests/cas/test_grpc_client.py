"""The client against our own server: the contract, batching, limits, functions, and what peers may do wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.blobs import CountingStore, read, write
from tests.cas.reapi_server import reapi_server, serving
from tests.contracts.blob_store import BlobStoreContract
from tests.contracts.record_store import CHECKS, action_key, action_result, deleted_is_absent
from tests.contracts.record_store import deleting_the_absent_is_fine as deleting_the_absent
from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.connection import connect
from tvix.cas.digest import FUNCTIONS, digest_of, digest_to_proto
from tvix.cas.grpc_client import GrpcActionCache, GrpcBlobStore, remote_blobs
from tvix.cas.interfaces import ActionKey, BlobStore
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.remote import ClientConfig
from tvix.errors import CorruptData, InvalidInput, PermissionDenied, Unavailable, Unsupported

QUICK = ClientConfig(attempts=3, first_wait_seconds=0.001, max_wait_seconds=0.002)


class TestRemoteBlobs(BlobStoreContract):
    config = QUICK

    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        async with reapi_server() as url, connect(f"{url}/some/instance") as connection:
            yield remote_blobs(connection, self.config)


class TestRemoteBlobsCompressed(TestRemoteBlobs):
    config = ClientConfig(compress=True)


class TestRemoteBlobsStreamed(TestRemoteBlobs):
    config = ClientConfig(small_blob_bytes=0)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_action_cache_keeps_the_contract_but_cannot_delete(check: Callable[[Any], Any]) -> None:
    async with reapi_server() as url, connect(url) as connection:
        store = GrpcActionCache(connection, QUICK)
        if check in (deleted_is_absent, deleting_the_absent):
            with pytest.raises(Unsupported):
                await store.delete(action_key("a"))
        else:
            await check(store)


async def test_an_instance_in_the_url_is_the_instance_of_all_keys() -> None:
    async with reapi_server() as url, connect(f"{url}/main") as connection, connect(url) as plain:
        await GrpcActionCache(connection).put(action_key("a", "ignored"), action_result("one"))
        key = action_key("a")
        assert await GrpcActionCache(plain).get(ActionKey("main", key.action_digest)) == action_result("one")
        assert await GrpcActionCache(plain).get(key) is None


async def test_concurrent_small_calls_are_merged() -> None:
    inner = CountingStore()
    async with reapi_server(inner) as url, connect(url) as connection:
        store = GrpcBlobStore(connection, ClientConfig(concurrency=1))
        blobs = [b"%d" % number for number in range(200)]
        await asyncio.gather(*(write(store, blob) for blob in blobs))
        assert inner.calls.count("put_many") <= 20
        assert await asyncio.gather(*(read(store, digest_of(blob)) for blob in blobs)) == blobs
        assert inner.calls.count("get_many") <= 20
        inner.calls.clear()
        await asyncio.gather(*(store.find_missing([digest_of(blob)]) for blob in blobs))
        assert inner.calls.count("find_missing") <= 20


async def test_batches_stay_within_the_peers_limit() -> None:
    limits = CapabilitiesConfig(max_batch_bytes=10_000)
    async with reapi_server(capabilities=limits) as url, connect(url) as connection:
        store = GrpcBlobStore(connection, QUICK)
        blobs = [bytes([number]) * size for number, size in enumerate((9_000, 4_000, 4_000, 9_799, 9_801, 50_000))]
        digests = [digest_of(blob) for blob in blobs]
        assert await store.put_many(list(zip(digests, blobs, strict=True))) == [None] * 6
        assert await store.get_many(digests) == blobs


async def test_digests_of_all_functions_and_more_than_one_request_may_hold() -> None:
    async with reapi_server() as url, connect(url) as connection:
        store = GrpcBlobStore(connection, ClientConfig(max_find_missing=50))
        blobs = [
            (digest_of(b"x%d" % number, function), b"x%d" % number) for function in FUNCTIONS for number in range(30)
        ]
        absent = {digest_of(b"absent", function) for function in FUNCTIONS}
        assert set(await store.put_many(blobs)) == {None}
        digests = [digest for digest, _ in blobs]
        assert await store.find_missing([*digests, *absent]) == absent
        assert await store.get_many(digests) == [blob for _, blob in blobs]


async def test_without_verification_the_peer_refuses_wrong_bytes_itself() -> None:
    inner = MemoryBlobStore()
    async with reapi_server(inner) as url, connect(url) as connection:
        for config in (QUICK, ClientConfig(small_blob_bytes=0)):
            store = GrpcBlobStore(connection, config)
            for data in (b"wrong", b"long enough to be too long", b"s"):
                with pytest.raises(InvalidInput):
                    await store.write(digest_of(b"right"), _once(data))
        assert inner.blobs == {}


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_nobody_there_is_unavailable_after_the_attempts() -> None:
    async with connect("grpc://127.0.0.1:1") as connection:
        store = GrpcBlobStore(connection, QUICK)
        with pytest.raises(Unavailable):
            await store.find_missing([digest_of(b"x")])
        with pytest.raises(Unavailable):
            await read(store, digest_of(b"x"))
        with pytest.raises(Unavailable):
            await write(store, b"x")


class StrangePeer:
    """Fails a few times, then answers as it was told to; says nothing of its limits."""

    def __init__(self, failures: int = 0, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.failures = failures
        self.code = code
        self.calls = 0
        self.headers: dict[str, str] = {}
        self.answer = re_pb2.BatchReadBlobsResponse()

    async def BatchReadBlobs(self, request: Any, context: Any) -> re_pb2.BatchReadBlobsResponse:
        self.calls += 1
        self.headers = dict(context.invocation_metadata())
        if self.failures:
            self.failures -= 1
            await context.abort(self.code, "not now")
        return self.answer


@asynccontextmanager
async def strange(peer: StrangePeer) -> AsyncIterator[GrpcBlobStore]:
    def add(server: aio.Server) -> None:
        method = grpc.unary_unary_rpc_method_handler(
            peer.BatchReadBlobs,
            request_deserializer=re_pb2.BatchReadBlobsRequest.FromString,
            response_serializer=re_pb2.BatchReadBlobsResponse.SerializeToString,
        )
        service = "build.bazel.remote.execution.v2.ContentAddressableStorage"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"BatchReadBlobs": method}),))

    async with serving(add) as url, connect(url, {"X-Key": "secret"}) as connection:
        yield GrpcBlobStore(connection, QUICK)


def entry(data: bytes, sent: bytes, code: int = 0) -> re_pb2.BatchReadBlobsResponse:
    response = re_pb2.BatchReadBlobsResponse()
    item = response.responses.add(digest=digest_to_proto(digest_of(data)), data=sent)
    item.status.code = code
    return response


async def test_passing_faults_are_tried_again_and_headers_go_along() -> None:
    peer = StrangePeer(failures=2)
    peer.answer = entry(b"data", b"data")
    async with strange(peer) as store:
        assert await store.get_many([digest_of(b"data")]) == [b"data"]
        assert peer.calls == 3
        assert peer.headers["x-key"] == "secret"


async def test_lasting_faults_are_not_tried_again() -> None:
    peer = StrangePeer(failures=9, code=grpc.StatusCode.PERMISSION_DENIED)
    async with strange(peer) as store:
        with pytest.raises(PermissionDenied, match="not now"):
            await store.get_many([digest_of(b"data")])
        assert peer.calls == 1


async def test_a_peer_that_sends_other_sizes_or_forgets_a_blob() -> None:
    peer = StrangePeer()
    async with strange(peer) as store:
        peer.answer = entry(b"data", b"dat")
        with pytest.raises(CorruptData, match="3 bytes for blob"):
            await store.get_many([digest_of(b"data")])
        peer.answer = entry(b"data", b"", code=8)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await store.get_many([digest_of(b"data")])
        assert type(caught.value).__name__ == "ResourceExhausted"
        peer.answer = re_pb2.BatchReadBlobsResponse()
        assert await store.get_many([digest_of(b"data")]) == [None]
