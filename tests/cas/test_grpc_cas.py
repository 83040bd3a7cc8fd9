import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import zstandard
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.grpc_server import Served, serve
from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.digest import EMPTY, FUNCTIONS, Digest, digest_of, digest_to_proto, function_to_wire

INVALID = grpc.StatusCode.INVALID_ARGUMENT
HASH = "0123456789abcdef" * 4
ZSTD = re_pb2.Compressor.ZSTD


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
    outcomes = await served.blobs.put_many(list(zip(digests, contents, strict=True)))
    assert outcomes == [None] * len(contents)
    return digests


def find_request(digests: list[Digest], **fields: Any) -> re_pb2.FindMissingBlobsRequest:
    return re_pb2.FindMissingBlobsRequest(blob_digests=map(digest_to_proto, digests), **fields)


async def find_missing(served: Served, digests: list[Digest], **fields: Any) -> list[str]:
    reply = await served.cas.FindMissingBlobs(find_request(digests, **fields))
    return [f"{digest.hash}/{digest.size_bytes}" for digest in reply.missing_blob_digests]


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
@pytest.mark.parametrize("named", [True, False], ids=["function named", "function inferred"])
@pytest.mark.parametrize("instance_name", ["", "main", "a/b" * 60])
async def test_find_missing(served: Served, function: Any, named: bool, instance_name: str) -> None:
    present = await store(served, *(b"present %d" % index for index in range(5)), function=function)
    absent = [digest_of(b"absent %d" % index * index * 50, function) for index in range(1, 5)]
    fields: dict[str, Any] = {"instance_name": instance_name}
    if named or FUNCTIONS[function].named_in_resources:
        fields["digest_function"] = function_to_wire(function)
    shown = [f"{digest.hash}/{digest.size_bytes}" for digest in absent]
    assert await find_missing(served, [*present, *absent, *absent, EMPTY[function]], **fields) == shown
    assert await find_missing(served, absent, **fields) == shown
    assert await find_missing(served, present, **fields) == []
    assert await find_missing(served, [], **fields) == []


async def test_size_and_function_are_part_of_the_digest(served: Served) -> None:
    (digest,) = await store(served, b"content")
    assert await find_missing(served, [digest._replace(size_bytes=8)]) == [f"{digest.hash}/8"]
    assert await find_missing(served, [digest._replace(size_bytes=0)]) == [f"{digest.hash}/0"]
    assert await find_missing(served, [digest], digest_function=re_pb2.DigestFunction.BLAKE3) == [str(digest)]


async def test_unusual_encodings_mean_the_same(served: Served) -> None:
    (present,) = await store(served, b"content")
    absent = digest_of(b"absent")
    call: Any = served.channel.unary_unary(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
        response_deserializer=re_pb2.FindMissingBlobsResponse.FromString,
    )
    one, other = (find_request([digest]).SerializeToString() for digest in (present, absent))
    named = find_request([], digest_function=1, instance_name="i").SerializeToString()
    backwards = b"\x12\x46\x10\x06\x0a\x40" + absent.hash.encode() + b"\x10\x06"
    for request in (one + other, named + one + other, one + named + other, other + named + one, one + backwards):
        reply = await call(request)
        assert list(reply.missing_blob_digests) == [digest_to_proto(absent)]


BAD_DIGESTS = [
    ("uppercase", HASH.upper(), 1, 0, "blob_digests[1].hash"),
    ("short", HASH[:-1], 1, 1, "blob_digests[1].hash"),
    ("no function has this length", HASH[:-1], 1, 0, "digest_function is unset"),
    ("empty", "", 1, 0, "digest_function is unset"),
    ("not hex", "g" * 64, 1, 0, "blob_digests[1].hash"),
    ("negative size", HASH, -1, 0, "blob_digests[1].size_bytes: -1"),
    ("function we do not have", HASH, 1, re_pb2.DigestFunction.VSO, "VSO is not supported"),
    ("function nobody has", HASH, 1, 99, "99 is not supported"),
    ("SHA-1 hash, SHA-256 named", "a" * 40, 1, re_pb2.DigestFunction.SHA256, "blob_digests[1].hash"),
]


@pytest.mark.parametrize(("reason", "hash_hex", "size", "function", "message"), BAD_DIGESTS)
async def test_bad_digests_are_refused(
    served: Served, reason: str, hash_hex: str, size: int, function: Any, message: str
) -> None:
    request = re_pb2.FindMissingBlobsRequest(
        blob_digests=[re_pb2.Digest(hash=HASH, size_bytes=1), re_pb2.Digest(hash=hash_hex, size_bytes=size)],
        digest_function=function,
    )
    code, details = await failure(served.cas.FindMissingBlobs(request))
    assert code == INVALID
    assert message in details
    read_request = re_pb2.BatchReadBlobsRequest(digests=request.blob_digests, digest_function=function)
    code, details = await failure(served.cas.BatchReadBlobs(read_request))
    assert code == INVALID


@pytest.mark.parametrize("instance_name", ["/a", "a/", "a//b", "blobs", "a/uploads/b"])
async def test_bad_instance_names_are_refused(served: Served, instance_name: str) -> None:
    (digest,) = await store(served, b"content")
    wire_digest = digest_to_proto(digest)
    for call in (
        served.cas.FindMissingBlobs(find_request([digest], instance_name=instance_name)),
        served.cas.BatchReadBlobs(re_pb2.BatchReadBlobsRequest(digests=[wire_digest], instance_name=instance_name)),
        served.cas.BatchUpdateBlobs(re_pb2.BatchUpdateBlobsRequest(instance_name=instance_name)),
        served.cas.SplitBlob(re_pb2.SplitBlobRequest(blob_digest=wire_digest, instance_name=instance_name)),
        served.capabilities.GetCapabilities(re_pb2.GetCapabilitiesRequest(instance_name=instance_name)),
    ):
        code, details = await failure(call)
        assert code == INVALID
        assert "instance_name" in details


async def test_messages_that_are_none_are_refused(served: Served) -> None:
    for method in ("FindMissingBlobs", "BatchReadBlobs"):
        call: Any = served.channel.unary_unary(f"/build.bazel.remote.execution.v2.ContentAddressableStorage/{method}")
        for request in (b"\xff", b"\x12\x7f\x0a", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"):
            assert (await failure(call(request)))[0] == INVALID


def read_request(digests: list[Digest], **fields: Any) -> re_pb2.BatchReadBlobsRequest:
    return re_pb2.BatchReadBlobsRequest(digests=map(digest_to_proto, digests), **fields)


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
@pytest.mark.parametrize("accepted", [[], [ZSTD], [re_pb2.Compressor.IDENTITY]])
async def test_batch_read(served: Served, function: Any, accepted: list[Any]) -> None:
    contents = [b"", b"tiny", b"a" * 1000, random.Random(1).randbytes(5000), b"b" * 300_000]
    digests = await store(served, *contents, function=function)
    absent = digest_of(b"absent", function)
    reply = await served.cas.BatchReadBlobs(
        read_request([*digests, absent], acceptable_compressors=accepted, digest_function=function_to_wire(function))
    )
    *found, missing = reply.responses
    for digest, data, response in zip(digests, contents, found, strict=True):
        assert response.digest == digest_to_proto(digest)
        assert response.status.code == 0
        plain = zstandard.ZstdDecompressor().decompress(response.data) if response.compressor else response.data
        assert plain == data
    pays = [data for data in contents if len(set(data)) == 1]
    compressed = [response for response in found if response.compressor == ZSTD]
    assert len(compressed) == (len(pays) if accepted == [ZSTD] else 0)
    assert missing.digest == digest_to_proto(absent)
    assert missing.status.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert absent.hash in missing.status.message


async def test_batch_limits_to_the_byte() -> None:
    async with serve(capabilities=CapabilitiesConfig(max_batch_bytes=100)) as served:
        fits = await store(served, b"a" * 60, b"b" * 40)
        over = await store(served, b"c" * 41)
        assert len((await served.cas.BatchReadBlobs(read_request(fits))).responses) == 2
        code, details = await failure(served.cas.BatchReadBlobs(read_request([fits[0], *over])))
        assert code == INVALID
        assert "101" in details
        assert "100 bytes" in details
        reply = await served.cas.BatchUpdateBlobs(update_request([b"d" * 60, b"e" * 40]))
        assert [response.status.code for response in reply.responses] == [0, 0]
        code, details = await failure(served.cas.BatchUpdateBlobs(update_request([b"f" * 60, b"g" * 41])))
        assert code == INVALID
        assert "101" in details
        assert digest_of(b"f" * 60) not in served.blobs.blobs


def update_request(contents: list[bytes], *, function: Any = "sha256", **fields: Any) -> re_pb2.BatchUpdateBlobsRequest:
    entries = [
        re_pb2.BatchUpdateBlobsRequest.Request(digest=digest_to_proto(digest_of(data, function)), data=data)
        for data in contents
    ]
    return re_pb2.BatchUpdateBlobsRequest(requests=entries, **fields)


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
async def test_batch_update(served: Served, function: Any) -> None:
    contents = [b"", b"one", b"two", b"one"]
    request = update_request(contents, function=function, digest_function=function_to_wire(function))
    compressed = re_pb2.BatchUpdateBlobsRequest.Request(
        digest=digest_to_proto(digest_of(b"z" * 9000, function)),
        data=zstandard.ZstdCompressor().compress(b"z" * 9000),
        compressor=ZSTD,
    )
    request.requests.append(compressed)
    reply = await served.cas.BatchUpdateBlobs(request)
    assert [response.digest for response in reply.responses] == [entry.digest for entry in request.requests]
    assert [response.status.code for response in reply.responses] == [0] * 5
    wanted = [digest_of(data, function) for data in [*contents, b"z" * 9000]]
    assert await served.blobs.get_many(wanted) == [*contents, b"z" * 9000]


def _entry(data: bytes, **fields: Any) -> re_pb2.BatchUpdateBlobsRequest.Request:
    defaults: dict[str, Any] = {"digest": digest_to_proto(digest_of(b"content")), "data": data}
    return re_pb2.BatchUpdateBlobsRequest.Request(**{**defaults, **fields})


BAD_UPDATES = [
    ("wrong bytes", _entry(b"contend"), "announced as"),
    ("wrong size", _entry(b"conten"), "announced as"),
    ("bad hash", _entry(b"content", digest=re_pb2.Digest(hash="x", size_bytes=7)), "digest_function is unset"),
    ("negative size", _entry(b"content", digest=re_pb2.Digest(hash=HASH, size_bytes=-7)), "size_bytes: -7"),
    ("brotli", _entry(b"content", compressor=re_pb2.Compressor.BROTLI), "compressor: 3"),
    ("not zstd", _entry(b"content", compressor=ZSTD), "not Zstandard"),
    ("bomb", _entry(zstandard.ZstdCompressor().compress(bytes(10_000_000)), compressor=ZSTD), "more than the 7 bytes"),
    ("no digest", re_pb2.BatchUpdateBlobsRequest.Request(data=b"content"), "hex digits"),
]


@pytest.mark.parametrize(("reason", "entry", "message"), BAD_UPDATES)
async def test_a_bad_upload_fails_alone(
    served: Served, reason: str, entry: re_pb2.BatchUpdateBlobsRequest.Request, message: str
) -> None:
    request = re_pb2.BatchUpdateBlobsRequest(requests=[_entry(b"good", digest=digest_to_proto(digest_of(b"good")))])
    request.requests.append(entry)
    good, bad = (await served.cas.BatchUpdateBlobs(request)).responses
    assert good.status.code == 0
    assert bad.status.code == INVALID.value[0]
    assert message in bad.status.message
    assert list(served.blobs.blobs) == [digest_of(b"good")]


async def test_a_bad_function_fails_the_whole_update(served: Served) -> None:
    code, details = await failure(served.cas.BatchUpdateBlobs(update_request([b"x"], digest_function=4)))
    assert code == INVALID
    assert "VSO" in details


def directory(files: list[Digest], directories: list[Digest]) -> bytes:
    message = re_pb2.Directory(
        files=[re_pb2.FileNode(name=f"f{i:04}", digest=digest_to_proto(d)) for i, d in enumerate(files)],
        directories=[
            re_pb2.DirectoryNode(name=f"d{i:04}", digest=digest_to_proto(d)) for i, d in enumerate(directories)
        ],
    )
    return message.SerializeToString()


async def tree(served: Served) -> tuple[Digest, list[bytes]]:
    """Store a diamond: root → a, b; both → shared; b → absent; return the root and all that is there."""
    shared = directory([digest_of(b"file")], [])
    left = directory([], [digest_of(shared)])
    right = directory([], [digest_of(shared), digest_of(b"absent")])
    root = directory([digest_of(b"x")], [digest_of(left), digest_of(right), EMPTY["sha256"]])
    await store(served, shared, left, right, root)
    return digest_of(root), [root, left, right, b"", shared]


async def get_tree(served: Served, root: Digest, **fields: Any) -> list[re_pb2.GetTreeResponse]:
    call = served.cas.GetTree(re_pb2.GetTreeRequest(root_digest=digest_to_proto(root), **fields))
    return [response async for response in call]


async def test_get_tree_gives_each_directory_once_and_omits_what_is_absent(served: Served) -> None:
    root, expected = await tree(served)
    (response,) = await get_tree(served, root)
    assert [message.SerializeToString() for message in response.directories] == expected
    assert response.next_page_token == ""


@pytest.mark.parametrize("page_size", [1, 2, 3, 5, 6])
async def test_get_tree_pages(served: Served, page_size: int) -> None:
    root, expected = await tree(served)
    pages = await get_tree(served, root, page_size=page_size)
    assert all(len(page.directories) <= page_size for page in pages)
    assert [d.SerializeToString() for page in pages for d in page.directories] == expected
    assert pages[-1].next_page_token == ""
    done = 0
    for page in pages[:-1]:
        done += len(page.directories)
        rest = await get_tree(served, root, page_size=page_size, page_token=page.next_page_token)
        assert [d.SerializeToString() for again in rest for d in again.directories] == expected[done:]


async def test_get_tree_messages_stay_small(served: Served) -> None:
    unknown_field = b"\xa2\x01\x80\x80\x04" + bytes(65536)
    leaves = [directory([digest_of(b"%d" % index)], []) + unknown_field for index in range(100)]
    (root,) = await store(served, directory([], await store(served, *leaves)))
    pages = await get_tree(served, root)
    assert max(page.ByteSize() for page in pages) < 4 * 1024 * 1024
    assert [found.SerializeToString() for page in pages for found in page.directories][1:] == leaves


async def test_get_tree_errors(served: Served) -> None:
    absent = digest_of(b"absent")
    code, details = await failure(get_tree(served, absent))
    assert code == grpc.StatusCode.NOT_FOUND
    assert absent.hash in details
    root, _ = await tree(served)
    assert "page_size: -1" in (await failure(get_tree(served, root, page_size=-1)))[1]
    for token in ("x", "-1", "1.5", "9" * 30):
        assert "page_token" in (await failure(get_tree(served, root, page_token=token)))[1]
    (junk,) = await store(served, b"\xff\xff no directory")
    assert (await failure(get_tree(served, junk)))[0] == INVALID
