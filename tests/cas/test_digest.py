"""Digests: what is one, and how the wire says it."""

import hashlib

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import (
    EMPTY,
    FUNCTIONS,
    MAX_SIZE_BYTES,
    Digest,
    DigestFunction,
    digest_from_proto,
    digest_of,
    digest_of_chunks,
    digest_to_proto,
    function_from_wire,
    function_to_wire,
    make_digest,
)
from tvix.errors import InvalidDigest

HASH = "ab" * 32


@pytest.mark.parametrize("function", list(FUNCTIONS))
@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_pieces_have_the_digest_of_the_whole(function: DigestFunction, data: bytes, cut: int) -> None:
    digest = digest_of(data, function)
    assert digest_of_chunks([data[:cut], data[cut:]], function) == digest
    assert make_digest(*digest) == digest
    assert digest_from_proto(digest_to_proto(digest), function_to_wire(function)) == digest


def test_known_hashes() -> None:
    assert digest_of(b"abc").hash == hashlib.sha256(b"abc").hexdigest()
    assert digest_of(b"abc", "md5").hash == "900150983cd24fb0d6963f7d28e17f72"
    assert digest_of(b"abc", "blake3").hash == blake3.blake3(b"abc").hexdigest()


def test_size_and_function_are_part_of_the_name() -> None:
    assert len({Digest("sha256", HASH, 1), Digest("sha256", HASH, 2), Digest("blake3", HASH, 1)}) == 3


def test_the_function_is_spelled_out_only_where_the_length_does_not_tell() -> None:
    assert str(Digest("sha256", HASH, 1)) == f"{HASH}/1"
    assert str(Digest("blake3", HASH, 1)) == f"blake3/{HASH}/1"


@pytest.mark.parametrize(
    ("hash_hex", "size_bytes", "field"),
    [
        (HASH.upper(), 1, "d.hash"),
        (HASH[:-1], 1, "d.hash"),
        (f"{HASH}a", 1, "d.hash"),
        (f"{HASH[:-1]}g", 1, "d.hash"),
        (f"{HASH[:-1]}\n", 1, "d.hash"),
        ("", 0, "d.hash"),
        (HASH, -1, "d.size_bytes"),
        (HASH, MAX_SIZE_BYTES + 1, "d.size_bytes"),
    ],
)
def test_malformed_digests_name_the_field(hash_hex: str, size_bytes: int, field: str) -> None:
    with pytest.raises(InvalidDigest, match=field.replace(".", r"\.")) as raised:
        make_digest("sha256", hash_hex, size_bytes, field="d")
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("length", "function"), [(32, "md5"), (40, "sha1"), (64, "sha256"), (96, "sha384"), (128, "sha512")]
)
def test_an_unset_function_follows_from_the_length(length: int, function: DigestFunction) -> None:
    assert function_from_wire(0, "a" * length) == function


@pytest.mark.parametrize("length", [0, 1, 63, 65, 66])
def test_lengths_of_no_function_are_refused(length: int) -> None:
    with pytest.raises(InvalidDigest, match="no function has hashes"):
        function_from_wire(0, "a" * length)


@pytest.mark.parametrize("value", [re_pb2.DigestFunction.VSO, 12345])
def test_functions_that_we_lack_are_refused_by_name(value: int) -> None:
    with pytest.raises(InvalidDigest, match="is not supported; supported are sha256, blake3"):
        function_from_wire(value, HASH)


def test_the_empty_blob_has_a_name_under_every_function() -> None:
    assert {name: digest_of(b"", name) for name in FUNCTIONS} == EMPTY
