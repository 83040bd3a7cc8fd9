"""Bazel's HTTP cache protocol: paths, ranges, and every answer, over real connections."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import blake3
import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import EMPTY, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.interfaces import ActionKey
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.errors import InvalidInput, OutOfRange
from tvix.server.address import Address
from tvix.server.http import HttpServer
from tvix.server.http_cache import SMALL_BYTES, HttpCache, Name, parse_path, parse_range
from tvix.server.supervisor import listen

SHA = hashlib.sha256(b"x").hexdigest()
LARGE = bytes(range(256)) * (SMALL_BYTES // 256 * 3)


class Setting:
    """A server on memory stores, and a client."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobStore()
        self.actions: MemoryRecordStore[ActionKey, re_pb2.ActionResult] = MemoryRecordStore()
        self.serving = True
        self.url = ""
        self.client: Any = None

    def find(self, function: DigestFunction, hash_hex: str) -> Digest | None:
        known = [*self.blobs.blobs, EMPTY[function]]
        return next((digest for digest in known if digest[:2] == (function, hash_hex)), None)

    async def store(self, data: bytes) -> Digest:
        digest = digest_of(data)
        await self.blobs.put_many([(digest, data)])
        return digest

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        async with self.client.request(method, self.url + path, **options) as response:
            return response.status, await response.read()


@asynccontextmanager
async def setting() -> AsyncIterator[Setting]:
    it = Setting()
    server = HttpServer(HttpCache(it.blobs, it.actions, it.find), lambda: it.serving)
    listening = listen("--http", Address("127.0.0.1", 0))
    host, port = listening.getsockname()
    it.url = f"http://{host}:{port}"
    await server.start(listening)
    try:
        async with aiohttp.ClientSession() as it.client:
            yield it
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/cas/{SHA}", Name("cas", "", "sha256", SHA)),
        (f"/ac/{SHA}", Name("ac", "", "sha256", SHA)),
        (f"/my/project/cas/{SHA}", Name("cas", "my/project", "sha256", SHA)),
        (f"/cas/blake3/{SHA}", Name("cas", "", "blake3", SHA)),
        (f"/inst/blake3/ac/{SHA}", Name("ac", "inst", "blake3", SHA)),
        (f"/cas/{'a' * 40}", Name("cas", "", "sha1", "a" * 40)),
    ],
)
def test_paths(path: str, name: Name) -> None:
    assert parse_path(path) == name


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cas/xyz", "no function has hashes of 3"),
        (f"/cas/{SHA.upper()}", "is not a sha256 hash"),
        (f"/cas/{SHA[:-1]}", "no function has hashes of 63"),
        (f"/blobs/cas/{SHA}", "reserved word 'blobs'"),
        (f"/a//b/cas/{SHA}", "double slash"),
        (f"/cas/md5/{SHA}", "is not a md5 hash"),
    ],
)
async def test_malformed_paths_are_400(path: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        parse_path(path)
    async with setting() as it:
        status, body = await it.ask("GET", path)
        assert status == 400
        assert reason in body.decode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 6)),
        ("bytes=-3", (7, 3)),
        ("bytes=8-99", (8, 2)),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=5-3", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


def test_a_range_beyond_the_end_is_refused() -> None:
    with pytest.raises(OutOfRange):
        parse_range("bytes=10-", 10)


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
async def test_what_is_put_can_be_got(data: bytes) -> None:
    path = f"/cas/{hashlib.sha256(data).hexdigest()}"
    async with setting() as it:
        assert (await it.ask("GET", path))[0] == 404
        assert await it.ask("PUT", path, data=data) == (200, b"")
        assert await it.ask("PUT", path, data=data) == (200, b"")
        assert await it.ask("GET", path) == (200, data)
        assert await it.ask("GET", path, headers={"Range": "bytes=2-4"}) == (206, data[2:5])
        assert (await it.ask("GET", path, headers={"Range": f"bytes={len(data)}-"}))[0] == 416
        async with it.client.head(it.url + path) as response:
            assert (response.status, response.content_length) == (200, len(data))


async def test_blake3_blobs_have_paths_of_their_own() -> None:
    data = b"named by another function"
    name = blake3.blake3(data).hexdigest()
    async with setting() as it:
        assert (await it.ask("PUT", f"/cas/blake3/{name}", data=data))[0] == 200
        assert await it.ask("GET", f"/blake3/cas/{name}") == (200, data)
        assert (await it.ask("GET", f"/cas/{name}"))[0] == 404


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
async def test_a_body_that_is_not_what_the_path_says_is_400_and_not_stored(data: bytes) -> None:
    async with setting() as it:
        status, body = await it.ask("PUT", f"/cas/{SHA}", data=data)
        assert status == 400
        assert SHA in body.decode()
        assert it.blobs.blobs == {}


async def test_a_body_of_unknown_length_is_411() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    async with setting() as it:
        assert (await it.ask("PUT", f"/cas/{SHA}", data=chunks()))[0] == 411


async def test_an_upload_that_is_cut_stores_nothing() -> None:
    async with setting() as it:
        host, port = it.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        name = hashlib.sha256(LARGE).hexdigest()
        head = f"PUT /cas/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        writer.write(head.encode() + LARGE[: len(LARGE) // 2])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await it.ask("GET", f"/cas/{name}"))[0] == 404
        assert it.blobs.blobs == {}


async def test_the_empty_blob_is_always_there() -> None:
    path = f"/cas/{EMPTY['sha256'].hash}"
    async with setting() as it:
        assert await it.ask("GET", path) == (200, b"")
        assert (await it.ask("HEAD", path))[0] == 200
        assert (await it.ask("PUT", path, data=b""))[0] == 200


async def test_results_are_kept_by_instance() -> None:
    result = re_pb2.ActionResult(exit_code=0, execution_metadata=re_pb2.ExecutedActionMetadata(worker="w"))
    async with setting() as it:
        assert (await it.ask("GET", f"/ac/{SHA}"))[0] == 404
        assert (await it.ask("PUT", f"/ac/{SHA}", data=result.SerializeToString()))[0] == 200
        assert await it.ask("GET", f"/ac/{SHA}") == (200, result.SerializeToString())
        assert (await it.ask("GET", f"/other/ac/{SHA}"))[0] == 404


async def test_a_result_is_shared_with_grpc_clients_when_its_action_is_known() -> None:
    result = re_pb2.ActionResult(execution_metadata=re_pb2.ExecutedActionMetadata(worker="w"))
    async with setting() as it:
        by_http, by_grpc = await it.store(b"an action"), await it.store(b"another action")
        await it.ask("PUT", f"/ac/{by_http.hash}", data=result.SerializeToString())
        assert it.actions.records[ActionKey("", by_http)] == result
        await it.actions.put(ActionKey("", by_grpc), result)
        assert (await it.ask("GET", f"/ac/{by_grpc.hash}"))[0] == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xff", "not an ActionResult"),
        (
            re_pb2.ActionResult(
                output_files=[re_pb2.OutputFile(path="/etc/passwd", digest=digest_to_proto(digest_of(b"")))]
            ).SerializeToString(),
            "is absolute",
        ),
        (
            re_pb2.ActionResult(
                output_files=[re_pb2.OutputFile(path="a", digest=re_pb2.Digest(hash="zz", size_bytes=1))]
            ).SerializeToString(),
            "hash",
        ),
    ],
    ids=["garbage", "absolute path", "bad digest"],
)
async def test_bodies_that_are_no_results_are_400(body: bytes, reason: str) -> None:
    async with setting() as it:
        status, text = await it.ask("PUT", f"/ac/{SHA}", data=body)
        assert status == 400
        assert reason in text.decode()
        assert it.actions.records == {}


async def test_other_methods_and_paths_are_refused() -> None:
    async with setting() as it:
        assert (await it.ask("DELETE", f"/cas/{SHA}"))[0] == 405
        assert (await it.ask("GET", "/favicon.ico"))[0] == 404
        assert (await it.ask("PUT", "/elsewhere", data=b""))[0] == 404
