import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import pytest
import zstandard

from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import bytestream_pb2_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.grpc_server import Served, serve
from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.digest import EMPTY, Digest, digest_of
from tvix.request_metadata import HEADER
from tvix.rpc import CHANNEL_OPTIONS

UUID = "0f7a4b1c-9c3e-4b60-8f6b-3c1de1f0a001"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
CHUNK = 700_000


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


SMALL = b"hello, world"
LARGE = noise(5_000_000)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


def write_name(digest: Digest, *, compressed: bool = False, instance: str = "", uuid: str = UUID) -> str:
    kind = "compressed-blobs/zstd" if compressed else "blobs"
    return f"{instance}{'/' if instance else ''}uploads/{uuid}/{kind}/{digest}"


def requests(
    name: str, data: bytes, *, offset: int = 0, chunk: int = CHUNK, finish: bool = True
) -> list[bs_pb2.WriteRequest]:
    starts = range(0, len(data), chunk) or [0]
    return [
        bs_pb2.WriteRequest(
            resource_name=name if not start else "",
            write_offset=offset + start,
            data=data[start : start + chunk],
            finish_write=finish and start == starts[-1],
        )
        for start in starts
    ]


async def write(served: Served, messages: Iterable[bs_pb2.WriteRequest], **options: Any) -> int:
    """Write with the synchronous client: the other one may lose the status of a call that ends while it writes."""

    def call() -> int:
        with grpc.insecure_channel(served.address, options=CHANNEL_OPTIONS) as channel:
            return bytestream_pb2_grpc.ByteStreamStub(channel).Write(iter(messages), **options).committed_size

    return await asyncio.to_thread(call)


async def read(served: Served, name: str, *, offset: int = 0, limit: int = 0, **options: Any) -> bytes:
    call = served.bytestream.Read(
        bs_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit), **options
    )
    return b"".join([message.data async for message in call])


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def query(served: Served, name: str) -> tuple[int, bool]:
    reply = await served.bytestream.QueryWriteStatus(bs_pb2.QueryWriteStatusRequest(resource_name=name))
    return reply.committed_size, reply.complete


@pytest.mark.parametrize("function", ["sha256", "blake3", "sha1", "sha384", "sha512", "md5", "sha256tree"])
@pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=["small", "large", "empty"])
@pytest.mark.parametrize("instance", ["", "a/b"])
async def test_what_is_written_is_read(served: Served, data: bytes, instance: str, function: Any) -> None:
    digest = digest_of(data, function)
    prefix = f"{instance}/" if instance else ""
    assert await write(served, requests(write_name(digest, instance=instance), data)) == len(data)
    assert await read(served, f"{prefix}blobs/{digest}") == data
    frames = await read(served, f"{prefix}compressed-blobs/zstd/{digest}")
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frames) == data
    assert await query(served, write_name(digest, instance=instance)) == (len(data), True)


@pytest.mark.parametrize(("offset", "limit"), [(0, 1), (5, 0), (5, 3), (12, 0), (12, 4), (0, 100), (11, 100)])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_ranges(served: Served, data: bytes, offset: int, limit: int) -> None:
    digest = digest_of(data)
    await served.blobs.put_many([(digest, data)])
    expected = data[offset : offset + limit if limit else None]
    assert await read(served, f"blobs/{digest}", offset=offset, limit=limit) == expected


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_compressed_read_offset_counts_plain_bytes(served: Served, data: bytes) -> None:
    digest = digest_of(data)
    await served.blobs.put_many([(digest, data)])
    frames = await read(served, f"compressed-blobs/zstd/{digest}", offset=7)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frames) == data[7:]
    at_end = await read(served, f"compressed-blobs/zstd/{digest}", offset=len(data))
    assert zstandard.ZstdDecompressor().decompress(at_end) == b""


@pytest.mark.parametrize(
    ("offset", "limit", "code", "field"),
    [
        (-1, 0, grpc.StatusCode.OUT_OF_RANGE, "read_offset: -1"),
        (13, 0, grpc.StatusCode.OUT_OF_RANGE, "read_offset: 13"),
        (0, -1, INVALID, "read_limit: -1"),
    ],
)
async def test_bad_ranges(served: Served, offset: int, limit: int, code: grpc.StatusCode, field: str) -> None:
    digest = digest_of(SMALL)
    await served.blobs.put_many([(digest, SMALL)])
    found, message = await failure(read(served, f"blobs/{digest}", offset=offset, limit=limit))
    assert found == code
    assert field in message


async def test_limit_on_a_compressed_read_is_refused(served: Served) -> None:
    digest = digest_of(SMALL)
    await served.blobs.put_many([(digest, SMALL)])
    code, message = await failure(read(served, f"compressed-blobs/zstd/{digest}", limit=3))
    assert code == INVALID
    assert "read_limit: 3" in message


async def test_absent_blobs_are_not_found(served: Served) -> None:
    for data in (SMALL, LARGE):
        digest = digest_of(data)
        for kind in ("blobs", "compressed-blobs/zstd"):
            code, message = await failure(read(served, f"{kind}/{digest}"))
            assert code == grpc.StatusCode.NOT_FOUND
            assert digest.hash in message


async def test_size_and_function_are_part_of_the_name(served: Served) -> None:
    digest = digest_of(SMALL)
    await served.blobs.put_many([(digest, SMALL)])
    for name in (f"blobs/{digest.hash}/11", f"blobs/blake3/{digest}", f"blobs/{digest.hash}/0"):
        assert (await failure(read(served, name)))[0] == grpc.StatusCode.NOT_FOUND


async def test_bad_names_are_refused(served: Served) -> None:
    for name in ("", "/blobs/x/1", "blobs/zz/1", f"blobs/{'a' * 64}/-1", "uploads/x"):
        code, message = await failure(read(served, name))
        assert code == INVALID
        assert "resource_name" in message
        message_list = [bs_pb2.WriteRequest(resource_name=name, data=b"x", finish_write=True)]
        assert (await failure(write(served, message_list)))[0] == INVALID
        assert (await failure(query(served, name)))[0] == INVALID


async def test_the_resource_name_header_must_match(served: Served) -> None:
    digest = digest_of(SMALL)
    await served.blobs.put_many([(digest, SMALL)])
    key = "build.bazel.remote.execution.v2.resource-name"
    name = f"blobs/{digest}"
    assert await read(served, name, metadata=((key, name),)) == SMALL
    assert (await failure(read(served, name, metadata=((key, "blobs/other"),))))[0] == INVALID
    other = digest_of(b"other")
    messages = requests(write_name(other), b"other")
    assert (await failure(write(served, messages, metadata=((key, name),))))[0] == INVALID
    assert other not in served.blobs.blobs


async def test_malformed_messages_are_refused(served: Served) -> None:
    raw_read: Any = served.channel.unary_stream("/google.bytestream.ByteStream/Read")
    code, _ = await failure(raw_read(b"\xff\xff").read())
    assert code == INVALID
    raw_write: Any = served.channel.stream_unary("/google.bytestream.ByteStream/Write")
    for message in (b"\x0a\x7f", b"\x00\x00", b"\x52\xff\xff\xff\xff\x0fx"):
        assert (await failure(raw_write(iter([message]))))[0] == INVALID


async def test_one_uuid_for_many_blobs_at_once(served: Served) -> None:
    contents = [noise(1_500_000 + index) for index in range(6)]
    writes = [write(served, requests(write_name(digest_of(data)), data)) for data in contents]
    assert await asyncio.gather(*writes) == [len(data) for data in contents]


async def test_an_existing_blob_ends_the_write_at_once(served: Served) -> None:
    digest = digest_of(LARGE)
    await served.blobs.put_many([(digest, LARGE)])
    first_only = requests(write_name(digest), LARGE)[:1]
    assert await write(served, first_only) == len(LARGE)
    first_only = [bs_pb2.WriteRequest(resource_name=write_name(digest, compressed=True), data=b"anything")]
    assert await write(served, first_only) == -1


async def test_a_blob_that_comes_from_elsewhere_ends_the_write(served: Served) -> None:
    data = noise(40_000_000)
    digest = digest_of(data)
    sent = 0

    async def sender() -> AsyncIterator[bs_pb2.WriteRequest]:
        nonlocal sent
        for message in requests(write_name(digest), data, chunk=1_000_000, finish=False):
            sent += 1
            if sent == 10:
                await served.blobs.put_many([(digest, data)])
            yield message

    reply = await served.bytestream.Write(sender())
    assert reply.committed_size == len(data)
    assert repr(served.uploads) == "<Uploads 0 known, 0 suspended>"


def frames_of(data: bytes, chunk: int = CHUNK) -> list[bytes]:
    compressor = zstandard.ZstdCompressor()
    return [compressor.compress(data[start : start + chunk]) for start in range(0, len(data), chunk)]


@pytest.mark.parametrize("data", [SMALL, LARGE, b"a" * 9_000_000], ids=["small", "large", "dense"])
async def test_multi_frame_uploads(served: Served, data: bytes) -> None:
    digest = digest_of(data)
    stream = b"".join(frames_of(data))
    committed = await write(served, requests(write_name(digest, compressed=True), stream, chunk=333_333))
    assert committed == len(stream)
    assert served.blobs.blobs[digest] == data


@pytest.mark.parametrize(
    ("tool", "wants_blob_size"),
    [("bazel", False), ("buck2", False), ("", False), ("siso", True), ("reclient", True), ("Siso/1.2", True)],
)
async def test_committed_size_of_a_compressed_write_by_tool(served: Served, tool: str, wants_blob_size: bool) -> None:
    digest = digest_of(b"a" * 100_000)
    stream = frames_of(b"a" * 100_000)[0]
    metadata = re_pb2.RequestMetadata(tool_details=re_pb2.ToolDetails(tool_name=tool)).SerializeToString()
    name = write_name(digest, compressed=True)
    committed = await write(served, requests(name, stream), metadata=((HEADER, metadata),))
    assert committed == (100_000 if wants_blob_size else len(stream))


async def test_malformed_request_metadata_does_no_harm(served: Served) -> None:
    name = write_name(digest_of(SMALL), compressed=True)
    stream = frames_of(SMALL)[0]
    assert await write(served, requests(name, stream), metadata=((HEADER, b"\xff\xff\xff"),)) == len(stream)


def _gap(name: str) -> list[bs_pb2.WriteRequest]:
    messages = requests(name, LARGE)
    del messages[1]
    return messages


def _without_finish(name: str) -> list[bs_pb2.WriteRequest]:
    return requests(name, LARGE, finish=False)


def _after_finish(name: str) -> list[bs_pb2.WriteRequest]:
    return [*requests(name, LARGE), bs_pb2.WriteRequest(write_offset=len(LARGE), data=b"more")]


def _other_name(name: str) -> list[bs_pb2.WriteRequest]:
    messages = requests(name, LARGE)
    messages[1].resource_name = name + "/other"
    return messages


def _wrong_bytes(name: str) -> list[bs_pb2.WriteRequest]:
    return requests(name, LARGE[:-1] + b"?" if LARGE[-1:] != b"?" else LARGE[:-1] + b"!")


BAD_WRITES: list[tuple[str, Callable[[str], list[bs_pb2.WriteRequest]], str]] = [
    ("a gap", _gap, "write_offset: 1400000"),
    ("no finish", _without_finish, "finish_write"),
    ("data after finish", _after_finish, "finish_write"),
    ("another name", _other_name, "resource_name"),
    ("wrong bytes", _wrong_bytes, "announced as"),
    ("too short", lambda name: requests(name, LARGE[:-1]), "finish_write: after 4999999 bytes"),
    ("too long", lambda name: requests(name, LARGE + b"x"), "more than the 5000000 bytes"),
    ("starts beyond what was received", lambda name: requests(name, LARGE[5:], offset=5), "write_offset: 5"),
    ("negative offset", lambda name: requests(name, LARGE, offset=-1), "write_offset: -1"),
    ("no first name", lambda name: requests("", LARGE), "resource_name: empty"),
    ("no message", lambda name: [], "before its first message"),
]


@pytest.mark.parametrize(("reason", "make", "message"), BAD_WRITES, ids=[case[0] for case in BAD_WRITES])
async def test_bad_writes_store_nothing(
    served: Served, reason: str, make: Callable[[str], list[bs_pb2.WriteRequest]], message: str
) -> None:
    digest = digest_of(LARGE)
    code, details = await failure(write(served, make(write_name(digest))))
    assert code == INVALID
    assert message in details
    assert not served.blobs.blobs


SMALL_BAD_WRITES = [
    ("too short", SMALL[:-1]),
    ("too long", SMALL + b"x"),
    ("wrong bytes", SMALL[:-1] + b"?"),
    ("nothing", b""),
]


@pytest.mark.parametrize(("reason", "data"), SMALL_BAD_WRITES)
async def test_bad_small_writes_store_nothing(served: Served, reason: str, data: bytes) -> None:
    code, details = await failure(write(served, requests(write_name(digest_of(SMALL)), data)))
    assert code == INVALID
    assert details
    stream = zstandard.ZstdCompressor().compress(data)
    code, _ = await failure(write(served, requests(write_name(digest_of(SMALL), compressed=True), stream)))
    assert code == INVALID
    assert not served.blobs.blobs


BOMB = zstandard.ZstdCompressor().compress(bytes(200_000_000))


@pytest.mark.parametrize(
    ("reason", "stream"),
    [
        ("a bomb", BOMB),
        ("not zstd", LARGE),
        ("cut off", b"".join(frames_of(LARGE))[:-10]),
        ("a frame too many", b"".join([*frames_of(LARGE), *frames_of(b"x")])),
        ("junk at the end", b"".join([*frames_of(LARGE), b"junk"])),
        ("empty", b""),
    ],
)
async def test_bad_compressed_writes_store_nothing(served: Served, reason: str, stream: bytes) -> None:
    name = write_name(digest_of(LARGE), compressed=True)
    for chunk in (CHUNK, 4_000_000, 100_000_000):
        code, details = await failure(write(served, requests(name, stream, chunk=chunk)))
        assert code == INVALID
        assert "data" in details
    assert not served.blobs.blobs


async def interrupted(served: Served, name: str, data: bytes, sent_bytes: int) -> None:
    """Send the beginning of a blob and break the call off once the server has it."""
    arrived = asyncio.Event()

    async def sender() -> AsyncIterator[bs_pb2.WriteRequest]:
        for message in requests(name, data[:sent_bytes], finish=False):
            yield message
        await arrived.wait()

    call = served.bytestream.Write(sender())
    while (await query(served, name))[0] < sent_bytes:
        pass
    call.cancel()
    arrived.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    while "0 suspended" in repr(served.uploads):
        await query(served, name)


async def test_an_interrupted_write_goes_on(served: Served) -> None:
    name = write_name(digest_of(LARGE))
    await interrupted(served, name, LARGE, 2_000_001)
    assert await query(served, name) == (2_000_001, False)
    assert await query(served, write_name(digest_of(LARGE), instance="other")) == (0, False)
    assert await write(served, requests(name, LARGE[2_000_001:], offset=2_000_001)) == len(LARGE)
    assert served.blobs.blobs[digest_of(LARGE)] == LARGE
    assert repr(served.uploads) == "<Uploads 0 known, 0 suspended>"


async def test_an_interrupted_write_may_repeat_what_was_received(served: Served) -> None:
    name = write_name(digest_of(LARGE))
    await interrupted(served, name, LARGE, 2_000_000)
    assert await write(served, requests(name, LARGE[1_000_000:], offset=1_000_000)) == len(LARGE)
    assert served.blobs.blobs[digest_of(LARGE)] == LARGE


async def test_an_interrupted_write_may_start_over(served: Served) -> None:
    name = write_name(digest_of(LARGE))
    await interrupted(served, name, LARGE, 2_000_000)
    assert await write(served, requests(name, LARGE)) == len(LARGE)
    assert repr(served.uploads) == "<Uploads 0 known, 0 suspended>"


async def test_an_interrupted_compressed_write_goes_on_at_a_plain_offset(served: Served) -> None:
    digest = digest_of(LARGE)
    name = write_name(digest, compressed=True)
    half = b"".join(frames_of(LARGE[:2_000_000]))
    messages = requests(name, half + frames_of(LARGE[2_000_000:])[0][:300_000], finish=False)
    assert (await failure(write(served, messages)))[0] == INVALID
    received, complete = await query(served, name)
    assert 2_000_000 <= received < 3_000_000
    assert not complete
    rest = b"".join(frames_of(LARGE[received:]))
    assert await write(served, requests(name, rest, offset=received)) == -1
    assert served.blobs.blobs[digest] == LARGE


async def test_suspended_writes_expire() -> None:
    async with serve() as served:
        served.uploads._suspended_seconds = 0.0
        name = write_name(digest_of(LARGE))
        assert (await failure(write(served, requests(name, LARGE[:-1], finish=False))))[0] == INVALID
        while await query(served, name) != (0, False):
            pass
        assert repr(served.uploads) == "<Uploads 0 known, 0 suspended>"


async def test_blobs_over_the_limit_are_refused() -> None:
    async with serve(capabilities=CapabilitiesConfig(max_blob_bytes=10)) as served:
        assert await write(served, requests(write_name(digest_of(b"x" * 10)), b"x" * 10)) == 10
        code, details = await failure(write(served, requests(write_name(digest_of(b"x" * 11)), b"x" * 11)))
        assert code == INVALID
        assert "limit of 10" in details


async def test_the_empty_blob_is_always_there(served: Served) -> None:
    digest = EMPTY["sha256"]
    assert await read(served, f"blobs/{digest}") == b""
    assert zstandard.ZstdDecompressor().decompress(await read(served, f"compressed-blobs/zstd/{digest}")) == b""
    assert await query(served, write_name(digest)) == (0, True)
    assert await write(served, requests(write_name(digest), b"")) == 0


async def test_messages_stay_below_what_clients_accept(served: Served) -> None:
    digest = digest_of(LARGE)
    await served.blobs.put_many([(digest, LARGE)])
    call = served.bytestream.Read(bs_pb2.ReadRequest(resource_name=f"blobs/{digest}"))
    sizes = [len(message.data) async for message in call]
    assert max(sizes) <= 2 * 1024 * 1024
    assert sum(sizes) == len(LARGE)
