import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas import wire
from tvix.cas.digest import EMPTY, Digest, digest_of, digest_to_proto

sizes = st.integers(1, 2**63 - 1)
digests = st.builds(Digest, st.just("sha256"), st.text("0123456789abcdef", min_size=64, max_size=64), sizes)


def find_request(listed: list[Digest], **fields: object) -> bytes:
    message = re_pb2.FindMissingBlobsRequest(blob_digests=map(digest_to_proto, listed), **fields)  # type: ignore[arg-type]
    return message.SerializeToString()


@given(st.lists(digests, max_size=20), st.text(max_size=20), st.integers(0, 10))
def test_usual_requests_are_cut_apart(listed: list[Digest], instance_name: str, function: int) -> None:
    split = wire.split_digest_list(find_request(listed, instance_name=instance_name, digest_function=function))
    assert split is not None
    assert split.instance_name == instance_name
    interned = wire.Interned("sha256")
    assert [interned[item] for item in split.items] == listed
    assert [interned[item] for item in split.items] == listed
    assert re_pb2.FindMissingBlobsRequest.FromString(split.rest).digest_function == function


@given(st.lists(digests, max_size=5), st.binary(max_size=40), st.integers(0, 400))
def test_whatever_is_inserted_nothing_is_misread(listed: list[Digest], junk: bytes, at: int) -> None:
    """What is cut out is in the request in this order, and the three parts are the whole of it."""
    request = find_request(listed)
    request = request[:at] + junk + request[at:]
    split = wire.split_digest_list(request)
    if split is None:
        return
    assert request.endswith(b"".join(split.items) + split.rest)
    prefix = request[: len(request) - len(b"".join(split.items) + split.rest)]
    assert re_pb2.FindMissingBlobsRequest.FromString(prefix).instance_name == split.instance_name


IRREGULAR = [
    ("uppercase", b"\x12\x44\n@" + b"A" * 64 + b"\x10\x05"),
    ("wrong length", b"\x12\x45\n@" + b"a" * 64 + b"\x10\x05"),
    ("size over 2**63-1", b"\x12\x4d\n@" + b"a" * 64 + b"\x10" + b"\xff" * 9 + b"\x01"),
    ("size 0 but not the empty blob", b"\x12\x42\n@" + b"a" * 64),
    ("varint too long", b"\x12\x4e\n@" + b"a" * 64 + b"\x10" + b"\xff" * 11 + b"\x01"),
]


@pytest.mark.parametrize(("reason", "item"), IRREGULAR)
def test_irregular_digests_are_left_to_the_slow_path(reason: str, item: bytes) -> None:
    with pytest.raises((KeyError, IndexError)):
        wire.Interned("sha256")[item]


def test_the_empty_blob_is_regular() -> None:
    split = wire.split_digest_list(find_request([EMPTY["sha256"]]))
    assert split is not None
    assert wire.Interned("sha256")[split.items[0]] == EMPTY["sha256"]


@pytest.mark.parametrize("request_bytes", [b"\n", b"\n\x80", b"\n\x01\xff", b"\n\x80\x01" + b"a" * 128])
def test_odd_beginnings_are_left_to_the_slow_path(request_bytes: bytes) -> None:
    split = wire.split_digest_list(request_bytes)
    assert split is None or split.items == []


@given(st.integers(0, 2**64 - 1))
def test_varints_round_trip(value: int) -> None:
    encoded = wire.varint(value)
    assert wire.parse_varint(b"\xff" + encoded + b"\x05", 1) == (value, 1 + len(encoded))
    with pytest.raises(IndexError):
        wire.parse_varint(encoded[:-1] if len(encoded) > 1 else b"", 0)


@given(st.binary(max_size=300))
def test_read_response(data: bytes) -> None:
    assert bs_pb2.ReadResponse.FromString(wire.read_response(data)).data == data


write_requests = st.builds(
    bs_pb2.WriteRequest,
    resource_name=st.text(max_size=20),
    write_offset=st.integers(-(2**63), 2**63 - 1),
    finish_write=st.booleans(),
    data=st.binary(max_size=300),
)


@given(write_requests, write_requests, st.booleans())
def test_write_requests_are_read_as_protobuf_reads_them(
    message: bs_pb2.WriteRequest, other: bs_pb2.WriteRequest, merged: bool
) -> None:
    encoded = message.SerializeToString() + (b"\xa0\x06\x01\xa5\x06abcd" + other.SerializeToString() if merged else b"")
    expected = bs_pb2.WriteRequest.FromString(encoded)
    found = wire.parse_write_request(encoded)
    assert found is not None
    assert found.resource_name == expected.resource_name
    assert found.write_offset == expected.write_offset
    assert found.finish_write == expected.finish_write
    assert found.data == expected.data


@given(st.binary(max_size=60))
def test_junk_is_none_or_a_message(junk: bytes) -> None:
    found = wire.parse_write_request(junk)
    assert found is None or isinstance(found.data, bytes)


@given(st.binary(min_size=1, max_size=300))
def test_batch_read_entries(data: bytes) -> None:
    digest = digest_of(data)
    split = wire.split_digest_list(find_request([digest]))
    assert split is not None
    heads = wire.BlobHeads()
    response = re_pb2.BatchReadBlobsResponse.FromString((heads[split.items[0]] + data) * 2)
    assert [(entry.digest, entry.data, entry.status.code) for entry in response.responses] == [
        (digest_to_proto(digest), data, 0)
    ] * 2


@given(st.text(max_size=50))
def test_tree_entries(name: str) -> None:
    directory = re_pb2.Directory(files=[re_pb2.FileNode(name=name)])
    page = re_pb2.GetTreeResponse.FromString(wire.tree_entry(directory.SerializeToString()))
    assert list(page.directories) == [directory]
