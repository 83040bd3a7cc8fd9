"""Cases on capabilities and the content-addressed store's unary calls: (e), (f), (o) and the general rules."""

from __future__ import annotations

import hashlib
import uuid

import blake3
import grpc
import zstandard
from grpc import StatusCode

from conformance.reapi.cases import case
from conformance.reapi.client import (
    CALL_SECONDS,
    EMPTY,
    Endpoint,
    check,
    digest_of,
    directory_of,
    fresh,
    key,
    refused,
    status_name,
    unary,
)
from conformance.results import Failed, Skipped
from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc

F = re_pb2.DigestFunction
SERVICE = "/build.bazel.remote.execution.v2.ContentAddressableStorage"
BAD_DIGESTS = (
    ("uppercase hex", digest_of(b"x").hash.upper(), 1),
    ("a hash too short", digest_of(b"x").hash[:-1], 1),
    ("no hash", "", 1),
    ("not hex", "g" * 64, 1),
    ("a negative size", digest_of(b"x").hash, -1),
)


@case("cap.versions", "GetCapabilities: low and high API version are set; 2.0 or later, low <= high")
def versions(server: Endpoint) -> str:
    low, high = server.capabilities.low_api_version, server.capabilities.high_api_version
    check((low.major, low.minor) <= (high.major, high.minor), "low_api_version is above high_api_version")
    check(
        (high.major, high.minor) >= (2, 1), f"high_api_version {high.major}.{high.minor}: output_paths need 2.1 and up"
    )
    return f"{low.major}.{low.minor} to {high.major}.{high.minor}"


@case("cap.functions", "digest_functions are set, without UNKNOWN; execution's function is one of them")
def functions(server: Endpoint) -> str:
    cache, execution = server.capabilities.cache_capabilities, server.capabilities.execution_capabilities
    check(F.SHA256 in cache.digest_functions, "SHA256 is not announced")
    check(F.UNKNOWN not in cache.digest_functions, "UNKNOWN is announced")
    check({F.MD5, F.MURMUR3} - {*cache.digest_functions}, "MD5 and MURMUR3 announced together")
    if execution.exec_enabled:
        check(execution.digest_function != F.UNKNOWN, "execution_capabilities.digest_function is unset")
        check(
            execution.digest_function in execution.digest_functions,
            "execution_capabilities.digest_functions lacks digest_function",
        )
    return ", ".join(F.Value.Name(value) for value in cache.digest_functions)


@case("cap.batch-limit", "max_batch_total_size_bytes: not 0, which SDK clients take literally")
def batch_limit(server: Endpoint) -> str:
    limit = server.capabilities.cache_capabilities.max_batch_total_size_bytes
    check(0 < limit < 64 * 1024 * 1024, f"max_batch_total_size_bytes is {limit}")
    return f"{limit} bytes"


@case("cap.compressors", "supported_compressors: zstd first, for clients that take the first")
def compressors(server: Endpoint) -> None:
    for compressor_list in (
        server.capabilities.cache_capabilities.supported_compressors,
        server.capabilities.cache_capabilities.supported_batch_update_compressors,
    ):
        if not compressor_list:
            raise Skipped("no compressor is announced")
        check(compressor_list[0] == re_pb2.Compressor.ZSTD, "the first announced compressor is not zstd")


@case("cap.metadata", "a malformed RequestMetadata header does not fail the call")
def malformed_metadata(server: Endpoint) -> None:
    request = re_pb2.FindMissingBlobsRequest(instance_name=server.instance, blob_digests=[EMPTY])
    header = (("build.bazel.remote.execution.v2.requestmetadata-bin", b"\xff\xff\xff"),)
    server.cas.FindMissingBlobs(request, timeout=CALL_SECONDS, metadata=header)


@case("cap.instances", "instance names: several segments are fine; reserved words and odd slashes are not")
def instances(server: Endpoint) -> None:
    stub = remote_execution_pb2_grpc.CapabilitiesStub(server.channel)
    for name in ("main", "a/b/c", "projects/p/instances/i"):
        stub.GetCapabilities(re_pb2.GetCapabilitiesRequest(instance_name=name), timeout=CALL_SECONDS)
    for name in ("a/blobs/b", "uploads", "/a", "a/", "a//b", "x/compressed-blobs"):
        request = re_pb2.FindMissingBlobsRequest(instance_name=name, blob_digests=[EMPTY])
        with refused(StatusCode.INVALID_ARGUMENT, why=f"instance {name!r}"):
            server.cas.FindMissingBlobs(request, timeout=CALL_SECONDS)


@case("cas.empty", "the empty blob always exists: FindMissing, BatchRead, Read")
def empty_blob(server: Endpoint) -> None:
    check(not server.missing([EMPTY]), "FindMissingBlobs lists the empty blob")
    reply = server.batch_read([EMPTY]).responses[0]
    check(reply.status.code == 0 and not reply.data, f"BatchReadBlobs: {status_name(reply.status.code)}")
    check(server.read_blob(EMPTY) == b"", "ByteStream.Read of the empty blob brings data")


@case("cas.find-missing", "FindMissingBlobs is exact, and takes duplicates")
def find_missing(server: Endpoint) -> None:
    present = [server.put(fresh()) for _ in range(3)]
    absent = [digest_of(fresh()) for _ in range(3)]
    found = server.missing([*present, *absent, *present, *absent])
    check(found == {key(digest) for digest in absent}, f"{len(found)} of 3 absent blobs reported, or others")


@case("cas.find-many", "FindMissingBlobs with 20,000 digests (1.5 MB) in one call")
def find_many(server: Endpoint) -> None:
    digests = [re_pb2.Digest(hash=f"{number:064x}", size_bytes=7) for number in range(20_000)]
    check(len(server.missing(digests)) == 20_000, "not all absent digests are reported")


@case("cas.bad-digests", "malformed digests are INVALID_ARGUMENT in every unary call")
def bad_digests(server: Endpoint) -> None:
    for reason, hash_hex, size in BAD_DIGESTS:
        digest = re_pb2.Digest(hash=hash_hex, size_bytes=size)
        with refused(StatusCode.INVALID_ARGUMENT, why=f"FindMissingBlobs with {reason}"):
            server.missing([digest])
        with refused(StatusCode.INVALID_ARGUMENT, why=f"GetActionResult with {reason}"):
            request = re_pb2.GetActionResultRequest(instance_name=server.instance, action_digest=digest)
            server.actions.GetActionResult(request, timeout=CALL_SECONDS)
        with refused(StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, why=f"GetTree of {reason}"):
            list(server.cas.GetTree(re_pb2.GetTreeRequest(instance_name=server.instance, root_digest=digest)))


@case("cas.bad-digests-batch", "a malformed digest in a batch spoils the call or its own entry, nothing else")
def bad_digests_batch(server: Endpoint) -> None:
    good = server.put(b"good" + fresh())
    for reason, hash_hex, size in BAD_DIGESTS:
        try:
            reply = server.batch_read([good, re_pb2.Digest(hash=hash_hex, size_bytes=size)])
        except grpc.RpcError as error:
            check(error.code() == StatusCode.INVALID_ARGUMENT, f"{reason}: {error.code()}")
        else:
            codes = sorted(entry.status.code for entry in reply.responses)
            check(codes in ([0, 3], [0, 5]), f"{reason}: entries with codes {codes}")


@case("cas.size-is-identity", "the same hash with another size is another blob")
def size_is_identity(server: Endpoint) -> None:
    digest = server.put(fresh(50))
    other = re_pb2.Digest(hash=digest.hash, size_bytes=49)
    check(server.missing([other]) == {key(other)}, "FindMissingBlobs finds it under a wrong size")
    with refused(StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT, why="Read under a wrong size"):
        server.read_blob(other)
    check(server.batch_read([other]).responses[0].status.code in (5, 3), "BatchReadBlobs finds it under a wrong size")


@case(
    "cas.batch-update", "BatchUpdateBlobs answers each blob for itself: a wrong hash is INVALID_ARGUMENT and not stored"
)
def batch_update(server: Endpoint) -> None:
    good, bad = fresh(), fresh()
    wrong = digest_of(fresh())
    wrong.size_bytes = len(bad)
    request = re_pb2.BatchUpdateBlobsRequest(
        instance_name=server.instance,
        requests=[
            re_pb2.BatchUpdateBlobsRequest.Request(digest=digest_of(good), data=good),
            re_pb2.BatchUpdateBlobsRequest.Request(digest=wrong, data=bad),
        ],
    )
    replies = server.cas.BatchUpdateBlobs(request, timeout=CALL_SECONDS).responses
    codes = {key(reply.digest): reply.status.code for reply in replies}
    check(len(replies) == 2, f"{len(replies)} responses to 2 requests")
    check(codes.get(key(digest_of(good))) == 0, "the good blob is refused with the bad one")
    check(codes.get(key(wrong)) == 3, f"wrong hash: code {codes.get(key(wrong))}, not INVALID_ARGUMENT")
    check(server.missing([digest_of(good), wrong]) == {key(wrong)}, "what was stored is not just the good blob")


@case("cas.batch-read", "BatchReadBlobs answers NOT_FOUND for an absent blob only")
def batch_read(server: Endpoint) -> None:
    data = fresh(1000)
    present, absent = server.put(data), digest_of(fresh())
    replies = {key(reply.digest): reply for reply in server.batch_read([present, absent]).responses}
    check(replies[key(present)].data == data, "the present blob's data differ")
    check(replies[key(absent)].status.code == 5, f"absent blob: {status_name(replies[key(absent)].status.code)}")


@case("cas.batch-zstd", "BatchRead/BatchUpdate compress only when asked and announced; identity always works")
def batch_zstd(server: Endpoint) -> None:
    if re_pb2.Compressor.ZSTD not in server.capabilities.cache_capabilities.supported_batch_update_compressors:
        raise Skipped("zstd is not announced for batches")
    data = b"abc" * 1000 + fresh()
    digest = digest_of(data)
    packed = zstandard.compress(data)
    entry = re_pb2.BatchUpdateBlobsRequest.Request(digest=digest, data=packed, compressor=re_pb2.Compressor.ZSTD)
    request = re_pb2.BatchUpdateBlobsRequest(instance_name=server.instance, requests=[entry])
    (reply,) = server.cas.BatchUpdateBlobs(request, timeout=CALL_SECONDS).responses
    check(reply.status.code == 0, f"compressed upload: {reply.status.message}")
    (plain,) = server.batch_read([digest]).responses
    check(plain.compressor == re_pb2.Compressor.IDENTITY and plain.data == data, "compressed though not asked")
    (asked,) = server.batch_read([digest], re_pb2.Compressor.ZSTD).responses
    if asked.compressor == re_pb2.Compressor.ZSTD:
        unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(asked.data)
        check(unpacked == data, "compressed data differ")
    else:
        check(asked.data == data, "data differ")


@case("cas.batch-bomb", "a compressed batch entry that swells beyond its size is INVALID_ARGUMENT, nothing stored")
def batch_bomb(server: Endpoint) -> None:
    if re_pb2.Compressor.ZSTD not in server.capabilities.cache_capabilities.supported_batch_update_compressors:
        raise Skipped("zstd is not announced for batches")
    bomb = zstandard.compress(bytes(1 << 30))
    digest = digest_of(fresh(100))
    for reason, data in (
        ("a bomb", bomb),
        ("garbage", fresh(200)),
        ("a cut frame", zstandard.compress(fresh(100))[:-4]),
    ):
        entry = re_pb2.BatchUpdateBlobsRequest.Request(digest=digest, data=data, compressor=re_pb2.Compressor.ZSTD)
        request = re_pb2.BatchUpdateBlobsRequest(instance_name=server.instance, requests=[entry])
        (reply,) = server.cas.BatchUpdateBlobs(request, timeout=CALL_SECONDS).responses
        check(reply.status.code == 3, f"{reason}: {status_name(reply.status.code)}")
    check(server.missing([digest]), "something was stored")


@case("o.batch-limits", "a batch of exactly max_batch_total_size_bytes passes, one byte more is INVALID_ARGUMENT")
def limits(server: Endpoint) -> None:
    limit = server.capabilities.cache_capabilities.max_batch_total_size_bytes
    if not limit:
        raise Skipped("no limit is announced")
    data, one = fresh(limit - 1), fresh(1)
    server.put_many([data, b"x"])
    replies = server.batch_read([digest_of(data), digest_of(b"x")]).responses
    check([reply.status.code for reply in replies] == [0, 0], "BatchReadBlobs at the limit is refused")
    with refused(StatusCode.INVALID_ARGUMENT, why="BatchUpdateBlobs of limit + 1 bytes"):
        server.put_many([data, one + b"y"])
    two = server.put(b"zz")
    with refused(StatusCode.INVALID_ARGUMENT, why="BatchReadBlobs of limit + 1 bytes"):
        server.batch_read([digest_of(data), two])


@case("o.blob-limit", "a blob over max_cas_blob_size_bytes is INVALID_ARGUMENT")
def blob_limit(server: Endpoint) -> None:
    limit = server.capabilities.cache_capabilities.max_cas_blob_size_bytes
    if not limit:
        raise Skipped("no limit is announced")
    digest = re_pb2.Digest(hash=digest_of(fresh()).hash, size_bytes=limit + 1)
    with refused(StatusCode.INVALID_ARGUMENT, why="Write of limit + 1 bytes"):
        server.write(server.upload_name(digest), [b"x"], finish=False)


def _put_as(server: Endpoint, data: bytes, digest: re_pb2.Digest, function: F.Value.ValueType) -> int:
    entry = re_pb2.BatchUpdateBlobsRequest.Request(digest=digest, data=data)
    request = re_pb2.BatchUpdateBlobsRequest(instance_name=server.instance, requests=[entry], digest_function=function)
    (reply,) = server.cas.BatchUpdateBlobs(request, timeout=CALL_SECONDS).responses
    return int(reply.status.code)


@case("e.blake3", "BLAKE3 and SHA256 blobs with the same 64 digits are different blobs; BLAKE3 is never inferred")
def blake3_or_sha256(server: Endpoint) -> None:
    server.require_function(F.BLAKE3)
    data = fresh()
    digest = re_pb2.Digest(hash=blake3.blake3(data).hexdigest(), size_bytes=len(data))
    check(_put_as(server, data, digest, F.UNKNOWN) == 3, "BLAKE3 digest taken without digest_function")
    check(_put_as(server, data, digest, F.BLAKE3) == 0, "BLAKE3 upload refused")
    check(server.missing([digest]) == {key(digest)}, "found as SHA256 what was stored as BLAKE3")
    request = re_pb2.FindMissingBlobsRequest(
        instance_name=server.instance, blob_digests=[digest], digest_function=F.BLAKE3
    )
    check(not server.cas.FindMissingBlobs(request).missing_blob_digests, "not found as BLAKE3")
    check(server.read(server.resource(f"blobs/blake3/{key(digest)}")) == data, "Read under blake3/ differs")
    with refused(StatusCode.NOT_FOUND, why="Read without blake3/"):
        server.read_blob(digest)
    other = fresh(3000)
    named = re_pb2.Digest(hash=blake3.blake3(other).hexdigest(), size_bytes=len(other))
    server.write(server.resource(f"uploads/{uuid.uuid4()}/blobs/blake3/{key(named)}"), [other])


@case("e.functions", "every announced digest function stores and returns")
def all_functions(server: Endpoint) -> str:
    tried = []
    for name in ("md5", "sha1", "sha256", "sha384", "sha512"):
        function = F.Value.Value(name.upper())
        if function in server.capabilities.cache_capabilities.digest_functions:
            data = fresh()
            digest = re_pb2.Digest(hash=hashlib.new(name, data).hexdigest(), size_bytes=len(data))
            check(_put_as(server, data, digest, function) == 0, f"{name}: upload refused")
            check(_put_as(server, data, digest, F.UNKNOWN) == 0, f"{name}: not inferred from the length")
            check(server.read_blob(digest) == data, f"{name}: Read differs")
            tried.append(name)
    return ", ".join(tried)


@case("e.unsupported", "an unsupported digest function is INVALID_ARGUMENT")
def unsupported_function(server: Endpoint) -> None:
    request = re_pb2.FindMissingBlobsRequest(
        instance_name=server.instance, blob_digests=[digest_of(b"x")], digest_function=F.MURMUR3
    )
    with refused(StatusCode.INVALID_ARGUMENT, why="FindMissingBlobs with MURMUR3"):
        server.cas.FindMissingBlobs(request, timeout=CALL_SECONDS)


def _get_tree(server: Endpoint, root: re_pb2.Digest, page_size: int = 0) -> tuple[list[re_pb2.Directory], int]:
    """Return all directories, following page tokens, and how many calls it took."""
    found: list[re_pb2.Directory] = []
    token, calls = "", 0
    while True:
        request = re_pb2.GetTreeRequest(
            instance_name=server.instance, root_digest=root, page_size=page_size, page_token=token
        )
        calls += 1
        token = ""
        for reply in server.cas.GetTree(request, timeout=CALL_SECONDS):
            found += reply.directories
            token = reply.next_page_token
        if not token:
            return found, calls
        check(calls < 100, "page tokens without end")


def _put_directory(server: Endpoint, directory: re_pb2.Directory) -> re_pb2.Digest:
    return server.put(directory.SerializeToString())


@case("f.tree", "GetTree returns the root and everything below it, each Directory at least once")
def whole_tree(server: Endpoint) -> None:
    leaf = _put_directory(server, directory_of({"f": server.put(fresh())}))
    middle = _put_directory(server, directory_of(directories={"a": leaf, "b": leaf}))
    root = _put_directory(server, directory_of({"top": EMPTY}, {"left": middle, "right": leaf, "void": EMPTY}))
    found, _ = _get_tree(server, root)
    digests = {key(digest_of(directory.SerializeToString())) for directory in found}
    check(
        {key(root), key(middle), key(leaf)} <= digests, f"{len(digests)} different directories of 3 (and an empty one)"
    )
    check(digests <= {key(root), key(middle), key(leaf), key(EMPTY)}, "directories that are not of the tree")


@case("f.omission", "GetTree silently leaves out missing subtrees; only a missing root is NOT_FOUND")
def tree_omission(server: Endpoint) -> None:
    here = _put_directory(server, directory_of({"f": digest_of(fresh())}))
    gone = digest_of(directory_of({"g": digest_of(fresh())}).SerializeToString())
    root = _put_directory(server, directory_of(directories={"gone": gone, "here": here}))
    found, _ = _get_tree(server, root)
    digests = {key(digest_of(directory.SerializeToString())) for directory in found}
    check(digests == {key(root), key(here)}, f"{len(digests)} directories, not the 2 that are there")
    with refused(StatusCode.NOT_FOUND, why="GetTree of a missing root"):
        _get_tree(server, gone)


@case("f.pages", "GetTree honours page_size and page_token: all pages together are the tree")
def tree_pages(server: Endpoint) -> str:
    leaves = {
        f"d{number:02}": server.put(directory_of({"f": digest_of(fresh())}).SerializeToString()) for number in range(20)
    }
    root = _put_directory(server, directory_of(directories=leaves))
    found, calls = _get_tree(server, root, page_size=4)
    digests = {key(digest_of(directory.SerializeToString())) for directory in found}
    check(len(digests) == 21, f"{len(digests)} of 21 directories over {calls} pages")
    request = re_pb2.GetTreeRequest(instance_name=server.instance, root_digest=root, page_token="nonsense")
    try:
        list(server.cas.GetTree(request, timeout=CALL_SECONDS))
    except grpc.RpcError as error:
        code = error.code()
        check(code == StatusCode.INVALID_ARGUMENT, f"a nonsense page token: {code.name}")
    return f"{calls} calls"


@case("f.large", "GetTree splits its answer: a tree of 9 MB arrives below the default message limit")
def large_tree(server: Endpoint) -> None:
    wide = []
    for number in range(6):
        files = {f"file-with-a-long-name-{number}-{index:05}": digest_of(b"%d" % index) for index in range(12_000)}
        wide.append(server.put(directory_of(files).SerializeToString()))
    root = _put_directory(server, directory_of(directories={f"d{n}": digest for n, digest in enumerate(wide)}))
    with grpc.insecure_channel(server.address) as plain:
        stub = remote_execution_pb2_grpc.ContentAddressableStorageStub(plain)
        request = re_pb2.GetTreeRequest(instance_name=server.instance, root_digest=root)
        count = sum(len(reply.directories) for reply in stub.GetTree(request, timeout=CALL_SECONDS))
    check(count == 7, f"{count} of 7 directories")


def _split(server: Endpoint, digest: re_pb2.Digest) -> list[re_pb2.Digest]:
    request = re_pb2.SplitBlobRequest(
        instance_name=server.instance, blob_digest=digest, chunking_function=re_pb2.ChunkingFunction.FAST_CDC_2020
    )
    return list(server.cas.SplitBlob(request, timeout=CALL_SECONDS).chunk_digests)


def _splice(server: Endpoint, digest: re_pb2.Digest, chunks: list[re_pb2.Digest]) -> re_pb2.SpliceBlobResponse:
    request = re_pb2.SpliceBlobRequest(instance_name=server.instance, blob_digest=digest, chunk_digests=chunks)
    return server.cas.SpliceBlob(request, timeout=CALL_SECONDS)


@case("n.split", "SplitBlob: chunks of the announced sizes, stored, that make up the blob")
def split(server: Endpoint) -> str:
    cache = server.capabilities.cache_capabilities
    if not cache.split_blob_support:
        raise Skipped("split is not announced")
    average = cache.fast_cdc_2020_params.avg_chunk_size_bytes or 512 * 1024
    data = fresh(12 * average)
    chunks = _split(server, server.put(data))
    check(b"".join(server.read_blob(chunk) for chunk in chunks) == data, "the chunks do not make up the blob")
    sizes = [chunk.size_bytes for chunk in chunks]
    check(all(average // 4 <= size <= average * 4 for size in sizes[:-1]), f"chunk sizes {sizes} for average {average}")
    check(not server.missing(chunks), "chunks are not in the store")
    shifted = fresh(1000) + data
    again = _split(server, server.put(shifted))
    shared = {key(chunk) for chunk in chunks} & {key(chunk) for chunk in again}
    check(len(shared) >= len(chunks) // 2, f"{len(shared)} of {len(chunks)} chunks survive an insertion at the front")
    return f"{len(chunks)} chunks, {len(shared)} shared after an insertion"


@case("n.split-missing", "SplitBlob of an absent blob is NOT_FOUND")
def split_missing(server: Endpoint) -> None:
    if not server.capabilities.cache_capabilities.split_blob_support:
        raise Skipped("split is not announced")
    with refused(StatusCode.NOT_FOUND, why="SplitBlob of an absent blob"):
        _split(server, digest_of(fresh()))


@case("n.splice", "SpliceBlob joins chunks, checks the digest, and needs every chunk")
def splice(server: Endpoint) -> None:
    if not server.capabilities.cache_capabilities.splice_blob_support:
        raise Skipped("splice is not announced")
    parts = [fresh(3000), fresh(2000), fresh(10)]
    chunks = [server.put(part) for part in parts]
    whole = b"".join(parts)
    reply = _splice(server, digest_of(whole), chunks)
    check(key(reply.blob_digest) == key(digest_of(whole)), "the answer names another digest")
    check(server.read_blob(digest_of(whole)) == whole, "the spliced blob differs")
    try:
        _splice(server, digest_of(whole), chunks)
    except grpc.RpcError as error:
        check(error.code() == StatusCode.ALREADY_EXISTS, f"second splice: {error.code()}")
    wrong = digest_of(fresh(len(whole)))
    with refused(StatusCode.INVALID_ARGUMENT, why="SpliceBlob to another digest"):
        _splice(server, wrong, chunks)
    check(server.missing([wrong]), "the wrong splice was stored")
    with refused(StatusCode.NOT_FOUND, why="SpliceBlob with an absent chunk"):
        absent = fresh()
        _splice(server, digest_of(whole + absent), [*chunks, digest_of(absent)])


@case("cas.unknown-service", "a call to a method that does not exist is UNIMPLEMENTED")
def unknown_method(server: Endpoint) -> None:
    with refused(StatusCode.UNIMPLEMENTED, why="a method nobody knows"):
        unary(server.channel, f"{SERVICE}/Nonsense", b"")


@case("cas.garbage", "a request that is no protobuf fails alone; the server goes on")
def garbage(server: Endpoint) -> None:
    try:
        unary(server.channel, f"{SERVICE}/FindMissingBlobs", b"\xff" * 30)
    except grpc.RpcError as error:
        code = error.code()
        if code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
            raise Failed(f"garbage: {code.name}") from error
    else:
        raise Failed("garbage is accepted")
    check(not server.missing([EMPTY]), "the server does not go on")
