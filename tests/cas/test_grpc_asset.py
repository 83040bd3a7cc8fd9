import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from remote_apis import remote_asset_pb2 as ra_pb2
from remote_apis import remote_asset_pb2_grpc as ra_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.grpc_server import Served, serve
from tvix.cas.asset_fetch import FetchConfig
from tvix.cas.digest import digest_of, digest_to_proto
from tvix.cas.memory import MemoryRecordStore
from tvix.rpc import STATUS_DETAILS_KEY

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CONTENT = b"content of an archive" * 100_000
SRI = f"sha384-{base64.b64encode(hashlib.sha384(CONTENT).digest()).decode()}"


def serve_assets(**settings: Any) -> Any:
    fetch = FetchConfig(retry_seconds=0.0, **settings.pop("fetch", {}))
    return serve(assets=MemoryRecordStore(), fetch=fetch, **settings)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve_assets() as running:
        yield running


class Origin:
    """An HTTP server that counts what it is asked."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.failures = 0
        self.release = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/held":
            await self.release.wait()
        if self.failures:
            self.failures -= 1
            return web.Response(status=503)
        if request.path.startswith("/status/"):
            return web.Response(status=int(request.path.rpartition("/")[2]))
        return web.Response(body=CONTENT)


@asynccontextmanager
async def running_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", origin.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    origin.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield origin
    finally:
        origin.release.set()
        await runner.cleanup()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with running_origin() as running:
        yield running


async def fetch(served: Served, *uris: str, qualifiers: dict[str, str] | None = None, **fields: Any) -> Any:
    stub: Any = ra_grpc.FetchStub(served.channel)
    pairs = [ra_pb2.Qualifier(name=name, value=value) for name, value in (qualifiers or {}).items()]
    options = {key: fields.pop(key) for key in ("timeout_rpc",) if key in fields}
    request = ra_pb2.FetchBlobRequest(uris=uris, qualifiers=pairs, **fields)
    return await stub.FetchBlob(request, timeout=options.get("timeout_rpc"))


async def failure(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def put(served: Served, data: bytes) -> re_pb2.Digest:
    await served.blobs.put_many([(digest_of(data), data)])
    return digest_to_proto(digest_of(data))


async def test_what_is_pushed_is_fetched(served: Served) -> None:
    push: Any = ra_grpc.PushStub(served.channel)
    fetcher: Any = ra_grpc.FetchStub(served.channel)
    blob = await put(served, b"artifact")
    root = await put(served, re_pb2.Directory(files=[re_pb2.FileNode(name="a", digest=blob)]).SerializeToString())
    uris = ["urn:fdc:example:1", "urn:fdc:example:2"]
    pairs = [ra_pb2.Qualifier(name="b", value="2"), ra_pb2.Qualifier(name="a", value="1")]
    expire_at = timestamp_pb2.Timestamp(seconds=int(time.time()) + 1000)
    await push.PushBlob(
        ra_pb2.PushBlobRequest(
            instance_name="i",
            uris=uris,
            qualifiers=pairs,
            blob_digest=blob,
            references_directories=[root],
            expire_at=expire_at,
        )
    )
    reply = await fetcher.FetchBlob(
        ra_pb2.FetchBlobRequest(instance_name="i", uris=["urn:other:0", uris[1]], qualifiers=pairs[::-1])
    )
    assert reply.status.code == 0
    assert reply.blob_digest == blob
    assert reply.uri == uris[1]
    assert list(reply.qualifiers) == pairs[::-1]
    assert reply.expires_at == expire_at
    assert reply.digest_function == re_pb2.DigestFunction.SHA256

    await push.PushDirectory(ra_pb2.PushDirectoryRequest(uris=uris, root_directory_digest=root))
    tree = await fetcher.FetchDirectory(ra_pb2.FetchDirectoryRequest(uris=uris[:1]))
    assert tree.status.code == 0
    assert tree.root_directory_digest == root
    missed = await fetcher.FetchDirectory(ra_pb2.FetchDirectoryRequest(uris=uris, instance_name="other"))
    assert missed.status.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_probes_without_uri_are_invalid(served: Served) -> None:
    push: Any = ra_grpc.PushStub(served.channel)
    fetcher: Any = ra_grpc.FetchStub(served.channel)
    for call in (
        fetcher.FetchBlob(ra_pb2.FetchBlobRequest()),
        fetcher.FetchDirectory(ra_pb2.FetchDirectoryRequest()),
        push.PushBlob(ra_pb2.PushBlobRequest()),
        push.PushDirectory(ra_pb2.PushDirectoryRequest()),
    ):
        error = await failure(call)
        assert error.code() == INVALID
        assert "uris" in (error.details() or "")


async def test_bad_pushes(served: Served) -> None:
    push: Any = ra_grpc.PushStub(served.channel)
    blob = await put(served, b"artifact")
    absent = digest_to_proto(digest_of(b"absent"))
    for message, fields in (
        ("digest_function", {}),
        ("not in the CAS", {"blob_digest": absent}),
        ("references_blobs[0]", {"blob_digest": blob, "references_blobs": [re_pb2.Digest(hash="x")]}),
        ("instance_name", {"blob_digest": blob, "instance_name": "a//b"}),
        ("qualifiers.name", {"blob_digest": blob, "qualifiers": [ra_pb2.Qualifier(name="a")] * 2}),
    ):
        error = await failure(push.PushBlob(ra_pb2.PushBlobRequest(uris=["urn:x:1"], **fields)))
        assert error.code() == INVALID
        assert message in (error.details() or "")


async def test_pushing_may_be_forbidden() -> None:
    async with serve_assets(may_push_assets=lambda context: False) as served:
        push: Any = ra_grpc.PushStub(served.channel)
        blob = await put(served, b"artifact")
        error = await failure(push.PushBlob(ra_pb2.PushBlobRequest(uris=["urn:x:1"], blob_digest=blob)))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("function", [re_pb2.DigestFunction.UNKNOWN, re_pb2.DigestFunction.BLAKE3])
async def test_http_content_is_fetched_once(served: Served, origin: Origin, function: Any) -> None:
    qualifiers = {"checksum.sri": f"sha256-{'A' * 43}= {SRI}", "bazel.canonical_id": "x", "resource_type": "a/b"}
    digest = digest_of(CONTENT, "blake3" if function else "sha256")
    for _ in range(2):
        reply = await fetch(served, f"{origin.url}/file", qualifiers=qualifiers, digest_function=function)
        assert reply.status.code == 0
        assert reply.blob_digest == digest_to_proto(digest)
        assert reply.digest_function == (function or re_pb2.DigestFunction.SHA256)
        assert reply.uri == f"{origin.url}/file"
    assert served.blobs.blobs[digest] == CONTENT
    assert len(origin.requests) == 1


async def test_young_content_is_fetched_again_and_absent_content_too(served: Served, origin: Origin) -> None:
    uri = f"{origin.url}/file"
    await fetch(served, uri)
    future = timestamp_pb2.Timestamp(seconds=int(time.time()) + 3600)
    assert (await fetch(served, uri, oldest_content_accepted=future)).status.code == 0
    assert len(origin.requests) == 2
    served.blobs.blobs.clear()
    assert (await fetch(served, uri)).status.code == 0
    assert digest_of(CONTENT) in served.blobs.blobs
    assert len(origin.requests) == 3


async def test_mirrors_and_headers(served: Served, origin: Origin) -> None:
    qualifiers = {"http_header:X-All": "all", "http_header_url:1:X-One": "one"}
    reply = await fetch(served, f"{origin.url}/status/404", f"{origin.url}/file", qualifiers=qualifiers)
    assert reply.status.code == 0
    assert reply.uri == f"{origin.url}/file"
    first, second = origin.requests
    assert (first.headers["X-All"], first.headers.get("X-One")) == ("all", None)
    assert (second.headers["X-All"], second.headers.get("X-One")) == ("all", "one")


async def test_passing_faults_are_tried_again_but_not_for_ever(served: Served, origin: Origin) -> None:
    origin.failures = 2
    assert (await fetch(served, f"{origin.url}/a")).status.code == 0
    origin.failures = 3
    reply = await fetch(served, f"{origin.url}/b")
    assert reply.status.code == grpc.StatusCode.ABORTED.value[0]
    assert "HTTP 503" in reply.status.message
    assert len(origin.requests) == 6


@pytest.mark.parametrize(
    ("path", "qualifiers", "code"),
    [
        ("/status/404", {}, grpc.StatusCode.NOT_FOUND),
        ("/status/410", {}, grpc.StatusCode.NOT_FOUND),
        ("/status/403", {}, grpc.StatusCode.PERMISSION_DENIED),
        ("/status/401", {}, grpc.StatusCode.PERMISSION_DENIED),
        ("/status/418", {}, grpc.StatusCode.ABORTED),
        ("/file", {"checksum.sri": f"sha256-{'A' * 43}="}, grpc.StatusCode.ABORTED),
    ],
)
async def test_failures_of_the_origin_are_told_in_the_status(
    served: Served, origin: Origin, path: str, qualifiers: dict[str, str], code: grpc.StatusCode
) -> None:
    reply = await fetch(served, origin.url + path, qualifiers=qualifiers)
    assert reply.status.code == code.value[0]
    assert reply.status.message
    assert reply.uri == origin.url + path
    assert not served.blobs.blobs


async def test_unreachable_hosts(served: Served) -> None:
    reply = await fetch(served, "http://127.0.0.1:1/x")
    assert reply.status.code == grpc.StatusCode.ABORTED.value[0]


async def test_what_cannot_be_fetched(served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    reply = await fetch(served, f"file://{tmp_path}/file")
    assert reply.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    reply = await fetch(served, "urn:nothing:pushed")
    assert reply.status.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_files_hosts_and_sizes_as_configured(tmp_path: Path, origin: Origin) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    settings = {"allow_files": True, "allowed_hosts": ("*.example",), "max_bytes": 100, "folder": tmp_path}
    async with serve_assets(fetch=settings) as served:
        reply = await fetch(served, f"file://{tmp_path}/file")
        assert reply.blob_digest == digest_to_proto(digest_of(b"from a file"))
        reply = await fetch(served, f"file://{tmp_path}/absent")
        assert reply.status.code == grpc.StatusCode.NOT_FOUND.value[0]
        reply = await fetch(served, f"{origin.url}/file")
        assert reply.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
        assert "127.0.0.1" in reply.status.message
    async with serve_assets(fetch={"max_bytes": 100, "folder": tmp_path}) as served:
        reply = await fetch(served, f"{origin.url}/file")
        assert reply.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert not served.blobs.blobs


async def test_unsupported_qualifiers_are_named_one_by_one(served: Served) -> None:
    error = await failure(fetch(served, "https://h.example/x", qualifiers={"vcs.commit": "abc", "color": "red"}))
    assert error.code() == INVALID
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(bytes(trailing[STATUS_DETAILS_KEY]))
    (detail,) = status.details
    bad_request = error_details_pb2.BadRequest()
    assert detail.Unpack(bad_request)
    assert [(violation.field, violation.description) for violation in bad_request.field_violations] == [
        ("qualifiers.name", '"color" not supported'),
        ("qualifiers.name", '"vcs.commit" not supported'),
    ]


@pytest.mark.parametrize(
    "qualifiers",
    [
        {"checksum.sri": "sha256-???"},
        {"checksum.sri": "md5-AAAA"},
        {"checksum.sri": "sha256-AAAA"},
        {"http_header:X": "a\r\nb"},
        {"http_header:": "x"},
        {"http_header_url:x:A": "b"},
        {"resource_type": "application/x-git"},
    ],
)
async def test_bad_qualifiers(served: Served, qualifiers: dict[str, str]) -> None:
    assert (await failure(fetch(served, "https://h.example/x", qualifiers=qualifiers))).code() == INVALID


async def test_negative_timeouts_are_refused(served: Served) -> None:
    error = await failure(fetch(served, "https://h.example/x", timeout=duration_pb2.Duration(seconds=-1)))
    assert error.code() == INVALID
    assert "timeout: -1" in (error.details() or "")


async def test_the_fetch_has_a_timeout_of_its_own(served: Served, origin: Origin) -> None:
    reply = await fetch(served, f"{origin.url}/held", timeout=duration_pb2.Duration(nanos=50_000_000))
    assert reply.status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_a_fetch_goes_on_when_its_caller_has_left(served: Served, origin: Origin) -> None:
    error = await failure(fetch(served, f"{origin.url}/held", timeout_rpc=0.1))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    others = [asyncio.create_task(fetch(served, f"{origin.url}/held")) for _ in range(3)]
    origin.release.set()
    assert {(await other).status.code for other in others} == {0}
    assert len(origin.requests) == 1


async def test_directories_are_not_made_of_archives(served: Served) -> None:
    fetcher: Any = ra_grpc.FetchStub(served.channel)
    reply = await fetcher.FetchDirectory(ra_pb2.FetchDirectoryRequest(uris=["https://h.example/x.tar"]))
    assert reply.status.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "unpacks" in reply.status.message
