"""Cases on ByteStream: (a) names, (b) upload ids, (c) and (d) compression, offsets, resumption."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import grpc
import zstandard
from grpc import StatusCode

from conformance.reapi.cases import case
from conformance.reapi.client import CALL_SECONDS, EMPTY, Endpoint, check, digest_of, fresh, key, refused
from conformance.results import Failed, Skipped
from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_execution_pb2 as re_pb2

GOOD = digest_of(b"x").hash
BAD_READ_NAMES = (
    "",
    "blobs",
    f"blobs/{GOOD}",
    f"blobs/{GOOD}/",
    f"blobs/{GOOD}/one",
    f"blobs/{GOOD}/-1",
    f"blobs/{GOOD}/ 1",
    f"blobs/{GOOD}/99999999999999999999999",
    f"blobs/{GOOD.upper()}/1",
    f"blobs/{GOOD[:-1]}/1",
    f"blobs/{GOOD}0/1",
    f"blobs/{'g' * 64}/1",
    f"blobs/{'٣' * 64}/1",
    f"blob/{GOOD}/1",
    f"blobs/murmurhash/{GOOD}/1",
    f"compressed-blobs/{GOOD}/1",
    f"compressed-blobs/lzma/{GOOD}/1",
    f"compressed-blobs/ZSTD/{GOOD}/1",
    f"compressed-blobs/identity/{GOOD}/1",
    f"//blobs/{GOOD}/1",
    f"actionResults/{GOOD}/1",
)
BAD_WRITE_NAMES = (
    "",
    f"blobs/{GOOD}/1",
    f"uploads/blobs/{GOOD}/1",
    f"uploads/{uuid.UUID(int=1)}/{GOOD}/1",
    f"uploads/{uuid.UUID(int=1)}/blobs/{GOOD}",
    f"uploads/{uuid.UUID(int=1)}/blobs/{GOOD}/x",
    f"uploads/{uuid.UUID(int=1)}/blobs/{GOOD}/-1",
    f"uploads/{uuid.UUID(int=1)}/blobs/{GOOD[1:]}/1",
    f"uploads/{uuid.UUID(int=1)}/compressed-blobs/lzma/{GOOD}/1",
    f"uploads/{uuid.UUID(int=1)}/compressed-blobs/{GOOD}/1",
    f"upload/{uuid.UUID(int=1)}/blobs/{GOOD}/1",
)


def _each_refused(names: tuple[str, ...], call: Callable[[str], object]) -> None:
    wrong = []
    for name in names:
        try:
            with refused(StatusCode.INVALID_ARGUMENT, why=repr(name)):
                call(name)
        except Failed as failed:
            wrong.append(str(failed))
    check(not wrong, f"{len(wrong)} of {len(names)} names: {'; '.join(wrong)[:500]}")


@case("a.read-names", "Read: a resource name outside the grammar is INVALID_ARGUMENT")
def read_names(server: Endpoint) -> None:
    _each_refused(BAD_READ_NAMES, server.read)


@case("a.write-names", "Write: a resource name outside the grammar is INVALID_ARGUMENT")
def write_names(server: Endpoint) -> None:
    _each_refused(BAD_WRITE_NAMES, lambda name: server.write(name, [b"x"]))


@case("a.query-names", "QueryWriteStatus: a resource name outside the grammar is INVALID_ARGUMENT")
def query_names(server: Endpoint) -> None:
    request = bs_pb2.QueryWriteStatusRequest
    _each_refused(BAD_WRITE_NAMES, lambda name: server.bytestream.QueryWriteStatus(request(resource_name=name)))


@case("a.trailing", "Write: what follows the size in the resource name is ignored")
def trailing(server: Endpoint) -> None:
    data = fresh()
    server.write(server.upload_name(digest_of(data)) + "/path/of the/file.txt", [data])
    check(server.read_blob(digest_of(data)) == data, "the blob differs")


@case("a.header", "the resource-name header must match the request's name if it is there")
def header(server: Endpoint) -> None:
    name = server.resource(f"blobs/{key(server.put(fresh()))}")
    for value in (name, name + "1"):
        metadata = (("build.bazel.remote.execution.v2.resource-name", value),)
        replies = server.bytestream.Read(
            bs_pb2.ReadRequest(resource_name=name), metadata=metadata, timeout=CALL_SECONDS
        )
        if value == name:
            list(replies)
        else:
            with refused(StatusCode.INVALID_ARGUMENT, why="a header that names another resource"):
                list(replies)


@case("b.uuid-reuse", "one upload id for different blobs, one after the other and at once")
def uuid_reuse(server: Endpoint) -> None:
    upload_id = str(uuid.uuid4())
    blobs = [fresh(200_000) for _ in range(4)]
    server.write(server.upload_name(digest_of(blobs[0]), upload_id), [blobs[0]])
    server.write(server.upload_name(digest_of(blobs[1]), upload_id), [blobs[1]])
    errors: list[BaseException] = []

    def write(data: bytes) -> None:
        pieces = [data[start : start + 10_000] for start in range(0, len(data), 10_000)]
        try:
            server.write(server.upload_name(digest_of(data), upload_id), pieces)
        except grpc.RpcError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in blobs[2:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not errors, f"at once: {errors[:1]}")
    for data in blobs:
        check(server.read_blob(digest_of(data)) == data, "a blob differs")


@case("bs.write", "Write returns the blob's size; what was written can be read")
def write(server: Endpoint) -> None:
    for size in (1, 1024, 3_000_000):
        data = fresh(size)
        pieces = [data[start : start + 1_000_000] for start in range(0, size, 1_000_000)]
        committed = server.write(server.upload_name(digest_of(data)), pieces)
        check(committed == size, f"committed_size {committed} for {size} bytes")
        check(server.read_blob(digest_of(data)) == data, f"{size} bytes differ")


@case("bs.write-empty-end", "a last message without data may finish the write")
def write_empty_end(server: Endpoint) -> None:
    data = fresh()
    check(server.write(server.upload_name(digest_of(data)), [data, b""]) == len(data), "wrong committed_size")
    server.write(server.upload_name(EMPTY), [b""])


@case("bs.write-present", "writing a present blob succeeds with its full size, even when only begun")
def write_present(server: Endpoint) -> None:
    data = fresh(500_000)
    digest = server.put(data)
    check(server.write(server.upload_name(digest), [data]) == len(data), "committed_size is not the full size")
    committed = server.write(server.upload_name(digest), [data[:1000], data[1000:]])
    check(committed == len(data), f"committed_size {committed}")


@case("bs.write-mismatch", "bytes that are not the digest's are INVALID_ARGUMENT; nothing is stored")
def write_mismatch(server: Endpoint) -> None:
    data = fresh(5000)
    digest = digest_of(data)
    for reason, sent in (
        ("other bytes", fresh(5000)),
        ("a byte too few", data[:-1]),
        ("a byte too many", data + b"!"),
    ):
        with refused(StatusCode.INVALID_ARGUMENT, why=reason):
            server.write(server.upload_name(digest), [sent])
    check(server.missing([digest]), "something was stored")


@case("bs.write-protocol", "gaps, wrong offsets, changed names, no finish: INVALID_ARGUMENT; nothing is stored")
def write_protocol(server: Endpoint) -> None:
    data = fresh(6000)
    digest = digest_of(data)

    def send(*requests: bs_pb2.WriteRequest) -> None:
        server.bytestream.Write(iter(requests), timeout=CALL_SECONDS)

    def message(start: int, end: int, *, offset: int | None = None, **fields: object) -> bs_pb2.WriteRequest:
        place = start if offset is None else offset
        return bs_pb2.WriteRequest(data=data[start:end], write_offset=place, **fields)  # type: ignore[arg-type]

    def name() -> str:
        return server.upload_name(digest)

    with refused(StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE, why="a first offset beyond what is stored"):
        send(message(3000, 6000, resource_name=name(), finish_write=True))
    with refused(StatusCode.INVALID_ARGUMENT, why="a gap between messages"):
        send(message(0, 3000, resource_name=name()), message(3000, 6000, offset=3001, finish_write=True))
    with refused(StatusCode.INVALID_ARGUMENT, why="an offset that repeats"):
        send(message(0, 3000, resource_name=name()), message(3000, 6000, offset=0, finish_write=True))
    with refused(StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE, why="a negative offset"):
        send(message(0, 6000, offset=-1, resource_name=name(), finish_write=True))
    with refused(StatusCode.INVALID_ARGUMENT, why="another resource name in the second message"):
        send(message(0, 3000, resource_name=name()), message(3000, 6000, resource_name=name(), finish_write=True))
    with refused(StatusCode.INVALID_ARGUMENT, why="an end without finish_write"):
        send(message(0, 3000, resource_name=name()))
    with refused(StatusCode.INVALID_ARGUMENT, why="no message at all"):
        send()
    check(server.missing([digest]), "something was stored")


@case("bs.write-after-finish", "data after finish_write is INVALID_ARGUMENT")
def write_after_finish(server: Endpoint) -> None:
    data = fresh(100)
    digest = digest_of(data + b"!")
    first = bs_pb2.WriteRequest(resource_name=server.upload_name(digest), data=data, finish_write=True)
    second = bs_pb2.WriteRequest(data=b"!", write_offset=100, finish_write=True)
    with refused(StatusCode.INVALID_ARGUMENT, why="data after finish_write"):
        server.bytestream.Write(iter([first, second]), timeout=CALL_SECONDS)


@case("bs.resume", "a broken write is taken up at the offset that QueryWriteStatus tells")
def resume(server: Endpoint) -> str:
    data = fresh(3_000_000)
    digest = digest_of(data)
    name = server.upload_name(digest)
    broken = threading.Event()

    def half() -> Iterator[bs_pb2.WriteRequest]:
        yield bs_pb2.WriteRequest(resource_name=name, data=data[:1_000_000])
        yield bs_pb2.WriteRequest(write_offset=1_000_000, data=data[1_000_000:2_000_000])
        broken.wait(10)

    call = server.bytestream.Write.future(half(), timeout=CALL_SECONDS)
    status = bs_pb2.QueryWriteStatusResponse()
    for _ in range(40):
        try:
            status = server.bytestream.QueryWriteStatus(
                bs_pb2.QueryWriteStatusRequest(resource_name=name), timeout=CALL_SECONDS
            )
        except grpc.RpcError as error:
            if error.code() != StatusCode.NOT_FOUND:
                raise
        if status.committed_size:
            break
        threading.Event().wait(0.05)
    call.cancel()
    broken.set()
    check(not status.complete, "a half write is complete")
    check(0 <= status.committed_size <= 2_000_000, f"committed_size {status.committed_size} of 2000000 sent")
    check(server.missing([digest]), "a half blob is visible")
    status = server.bytestream.QueryWriteStatus(bs_pb2.QueryWriteStatusRequest(resource_name=name))
    rest = data[status.committed_size :]
    pieces = [rest[start : start + 1_000_000] for start in range(0, len(rest), 1_000_000)]
    committed = server.write(name, pieces, offset=status.committed_size)
    check(committed == len(data), f"committed_size {committed}")
    check(server.read_blob(digest) == data, "the resumed blob differs")
    return f"taken up at {status.committed_size}"


@case("bs.query", "QueryWriteStatus: a present blob is complete with its size; an unknown one is not")
def query(server: Endpoint) -> None:
    digest = server.put(fresh())
    request = bs_pb2.QueryWriteStatusRequest(resource_name=server.upload_name(digest))
    status = server.bytestream.QueryWriteStatus(request, timeout=CALL_SECONDS)
    check(status.complete and status.committed_size == digest.size_bytes, f"present blob: {status}")
    absent = bs_pb2.QueryWriteStatusRequest(resource_name=server.upload_name(digest_of(fresh())))
    try:
        status = server.bytestream.QueryWriteStatus(absent, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        check(error.code() == StatusCode.NOT_FOUND, f"absent blob: {error.code()}")
    else:
        check(not status.complete and status.committed_size == 0, f"absent blob: {status}")


@case("bs.read-ranges", "Read: offsets and limits; the offset may equal the size")
def read_ranges(server: Endpoint) -> None:
    data = fresh(2_500_000)
    digest = server.put(data)
    for offset, limit in (
        (0, 1),
        (1, 0),
        (2_499_999, 0),
        (2_499_999, 5),
        (1_048_570, 20),
        (0, 2_500_000),
        (7, 1_500_000),
    ):
        expected = data[offset:] if not limit else data[offset : offset + limit]
        check(
            server.read_blob(digest, offset=offset, limit=limit) == expected, f"offset {offset} limit {limit} differs"
        )
    check(server.read_blob(digest, offset=len(data)) == b"", "an offset at the end brings data")


@case(
    "bs.read-errors", "Read: NOT_FOUND, OUT_OF_RANGE beyond the end or below 0, INVALID_ARGUMENT for a negative limit"
)
def read_errors(server: Endpoint) -> None:
    digest = server.put(fresh(100))
    with refused(StatusCode.NOT_FOUND, why="an absent blob"):
        server.read_blob(digest_of(fresh()))
    with refused(StatusCode.OUT_OF_RANGE, why="an offset beyond the end"):
        server.read_blob(digest, offset=101)
    with refused(StatusCode.OUT_OF_RANGE, StatusCode.INVALID_ARGUMENT, why="a negative offset"):
        server.read_blob(digest, offset=-1)
    with refused(StatusCode.INVALID_ARGUMENT, why="a negative limit"):
        server.read_blob(digest, limit=-1)


# Compression


def _packed_name(server: Endpoint, digest: re_pb2.Digest) -> str:
    return server.resource(f"uploads/{uuid.uuid4()}/compressed-blobs/zstd/{key(digest)}")


def _read_packed(server: Endpoint, digest: re_pb2.Digest, offset: int = 0) -> bytes:
    packed = server.read(server.resource(f"compressed-blobs/zstd/{key(digest)}"), offset=offset)
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
        return reader.read()


@case("c.zstd-write", "compressed upload; the blob can be read as it is and compressed")
def zstd_write(server: Endpoint) -> str:
    server.require_zstd()
    data = b"compress me " * 100_000 + fresh()
    packed = zstandard.compress(data)
    committed = server.write(_packed_name(server, digest_of(data)), [packed])
    check(
        committed in (-1, len(packed), len(data)), f"committed_size {committed} for {len(packed)} of {len(data)} bytes"
    )
    check(server.read_blob(digest_of(data)) == data, "read as it is differs")
    check(_read_packed(server, digest_of(data)) == data, "read compressed differs")
    again = server.write(_packed_name(server, digest_of(data)), [packed])
    check(again == -1, f"committed_size {again}, not -1, for a compressed write of a present blob")
    return f"committed_size {committed}"


@case("c.zstd-multi-frame", "an upload of several zstd frames, as Bazel sends it")
def zstd_multi_frame(server: Endpoint) -> None:
    server.require_zstd()
    data = fresh(300_000)
    frames = [zstandard.compress(data[start : start + 16_384]) for start in range(0, len(data), 16_384)]
    server.write(_packed_name(server, digest_of(data)), frames)
    check(server.read_blob(digest_of(data)) == data, "the blob differs")
    joined = fresh(50_000)
    both = zstandard.compress(joined[:20_000]) + zstandard.compress(joined[20_000:])
    server.write(
        _packed_name(server, digest_of(joined)), [both[start : start + 7] for start in range(0, 700, 7)] + [both[700:]]
    )
    check(server.read_blob(digest_of(joined)) == joined, "frames cut across messages differ")


@case("c.zstd-bad", "bombs, garbage, cut frames and wrong bytes are INVALID_ARGUMENT; nothing is stored")
def zstd_bad(server: Endpoint) -> None:
    server.require_zstd()
    data = fresh(5000)
    digest = digest_of(data)
    for reason, packed in (
        ("a bomb of 1 GiB", zstandard.compress(bytes(1 << 30))),
        ("garbage", fresh(500)),
        ("a cut frame", zstandard.compress(data)[:-10]),
        ("other bytes", zstandard.compress(fresh(5000))),
        ("too few bytes", zstandard.compress(data[:-1])),
        ("too many bytes", zstandard.compress(data + b"!")),
        ("no frame at all", b""),
    ):
        with refused(StatusCode.INVALID_ARGUMENT, why=reason):
            server.write(_packed_name(server, digest), [packed])
    check(server.missing([digest]), "something was stored")


@case("c.zstd-any", "a blob uploaded as it is can be read compressed; so can the empty blob")
def zstd_any(server: Endpoint) -> None:
    server.require_zstd()
    data = fresh(100_000) + bytes(100_000)
    check(_read_packed(server, server.put(data)) == data, "the blob differs")
    check(_read_packed(server, EMPTY) == b"", "the empty blob is not an empty frame")


@case("d.zstd-offset", "compressed Read: the offset counts uncompressed bytes, a limit is INVALID_ARGUMENT")
def zstd_offset(server: Endpoint) -> None:
    server.require_zstd()
    data = fresh(3_000_000)
    digest = server.put(data)
    for offset in (1, 1_048_576, 2_999_999, 3_000_000):
        check(_read_packed(server, digest, offset) == data[offset:], f"offset {offset} differs")
    name = server.resource(f"compressed-blobs/zstd/{key(digest)}")
    with refused(StatusCode.INVALID_ARGUMENT, why="a limit on a compressed read"):
        server.read(name, limit=10)
    with refused(StatusCode.OUT_OF_RANGE, why="an offset beyond the end"):
        server.read(name, offset=3_000_001)


@case("c.unannounced", "a compressor that is not announced is INVALID_ARGUMENT")
def unannounced(server: Endpoint) -> None:
    announced = server.capabilities.cache_capabilities.supported_compressors
    digest = server.put(fresh(5000))
    tried = False
    for name in ("deflate", "brotli", "zstd"):
        if re_pb2.Compressor.Value.Value(name.upper()) not in announced:
            tried = True
            with refused(StatusCode.INVALID_ARGUMENT, why=f"Read of compressed-blobs/{name}"):
                server.read(server.resource(f"compressed-blobs/{name}/{key(digest)}"))
    if not tried:
        raise Skipped("all compressors are announced")
