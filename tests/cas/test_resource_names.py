import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.cas.digest import FUNCTIONS, MAX_SIZE_BYTES, Digest
from tvix.cas.resource_names import (
    RESERVED_SEGMENTS,
    ReadName,
    WriteName,
    check_instance_name,
    format_read_name,
    format_write_name,
    parse_read_name,
    parse_write_name,
)
from tvix.errors import InvalidInput

HASH = "0123456789abcdef" * 4
UUID = "0f7a4b1c-9c3e-4b60-8f6b-3c1de1f0a001"

segments = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda segment: segment not in RESERVED_SEGMENTS
)
instance_names = st.lists(segments, max_size=4).map("/".join)
digests = st.sampled_from(sorted(FUNCTIONS)).flatmap(
    lambda function: st.builds(
        Digest,
        st.just(function),
        st.text("0123456789abcdef", min_size=FUNCTIONS[function].hex_length, max_size=FUNCTIONS[function].hex_length),
        st.integers(0, MAX_SIZE_BYTES),
    )
)
compressors = st.sampled_from(["", "zstd"])


@given(st.builds(ReadName, instance_names, digests, compressors))
def test_read_names_round_trip(name: ReadName) -> None:
    assert parse_read_name(format_read_name(name)) == name


@given(st.builds(WriteName, instance_names, st.uuids().map(str), digests, compressors), st.lists(segments, max_size=3))
def test_write_names_round_trip_and_trailing_metadata_is_ignored(name: WriteName, metadata: list[str]) -> None:
    assert parse_write_name("/".join([format_write_name(name), *metadata])) == name


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_read_name, parse_write_name):
        with contextlib.suppress(InvalidInput):
            parse(text)


@given(st.lists(st.sampled_from([*sorted(RESERVED_SEGMENTS), "", "a", HASH, "5", "zstd", "blake3", UUID]), max_size=9))
def test_any_shuffle_of_words_is_parsed_or_refused(words: list[str]) -> None:
    for parse in (parse_read_name, parse_write_name):
        with contextlib.suppress(InvalidInput):
            parse("/".join(words))


def test_examples() -> None:
    sha256 = Digest("sha256", HASH, 5)
    assert parse_read_name(f"blobs/{HASH}/5") == ReadName("", sha256, "")
    assert parse_read_name(f"a/b/compressed-blobs/zstd/blake3/{HASH}/5") == ReadName(
        "a/b", Digest("blake3", HASH, 5), "zstd"
    )
    assert parse_read_name(f"i/blobs/{'a' * 40}/0") == ReadName("i", Digest("sha1", "a" * 40, 0), "")
    assert parse_write_name(f"i/uploads/{UUID}/blobs/{HASH}/5/src/main.c") == WriteName("i", UUID, sha256, "")


BAD_READ_NAMES = [
    ("", "empty"),
    ("/", "no kind"),
    ("blobs", "nothing after the kind"),
    (f"blobs/{HASH}", "no size"),
    (f"/blobs/{HASH}/5", "leading slash"),
    (f"//blobs/{HASH}/5", "two leading slashes"),
    (f"a//b/blobs/{HASH}/5", "double slash in the instance"),
    (f"a//blobs/{HASH}/5", "trailing slash in the instance"),
    (f"actions/blobs/{HASH}/5", "reserved segment"),
    (f"a/operations/b/blobs/{HASH}/5", "reserved segment inside"),
    (f"blobs/blobs/{HASH}/5", "kind twice"),
    (f"uploads/{UUID}/blobs/{HASH}/5", "a write name"),
    (f"blobs/{HASH}/-5", "negative size"),
    (f"blobs/{HASH}/+5", "sign"),
    (f"blobs/{HASH}/05", "leading zero"),
    (f"blobs/{HASH}/5 ", "space"),
    (f"blobs/{HASH}/\N{ARABIC-INDIC DIGIT FIVE}", "digit that is not ASCII"),
    (f"blobs/{HASH}/9223372036854775808", "size over 2**63-1"),
    (f"blobs/{HASH}/five", "no number"),
    (f"blobs/{HASH}/", "empty size"),
    (f"blobs/{HASH.upper()}/5", "uppercase hash"),
    (f"blobs/{HASH[:-1]}/5", "hash too short"),
    (f"blobs/{HASH[:-1]}g/5", "not hex"),
    (f"blobs/{HASH}\n/5", "newline after the hash"),
    (f"blobs/blake3/{HASH[:-2]}/5", "short blake3 hash"),
    (f"blobs/sha256/{HASH}/5", "function that must be omitted"),
    (f"blobs/BLAKE3/{HASH}/5", "uppercase function"),
    (f"blobs/gitsha1/{'a' * 40}/5", "function we do not have"),
    (f"blobs/{HASH}/5/tail", "metadata after a read name"),
    (f"blobs/{HASH}/5/", "trailing slash"),
    (f"compressed-blobs/{HASH}/5", "no compressor"),
    (f"compressed-blobs/identity/{HASH}/5", "identity is no compressor here"),
    (f"compressed-blobs/brotli/{HASH}/5", "compressor we do not have"),
    (f"compressed-blobs/ZSTD/{HASH}/5", "uppercase compressor"),
    ("compressed-blobs", "nothing after compressed-blobs"),
    (f"{'a' * 5000}/blobs/{HASH}/5", "too long"),
]


@pytest.mark.parametrize(("name", "reason"), BAD_READ_NAMES)
def test_bad_read_names_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match="resource_name"):
        parse_read_name(name)


BAD_WRITE_NAMES = [
    ("", "empty"),
    (f"blobs/{HASH}/5", "a read name"),
    ("uploads", "nothing after uploads"),
    (f"uploads/{UUID}", "no kind"),
    (f"uploads/{UUID}/blobs/{HASH}", "no size"),
    (f"uploads/blobs/{HASH}/5", "no uuid"),
    (f"uploads/{UUID[:-1]}/blobs/{HASH}/5", "short uuid"),
    (f"uploads/not-a-uuid/blobs/{HASH}/5", "no uuid"),
    (f"/uploads/{UUID}/blobs/{HASH}/5", "leading slash"),
    (f"a//uploads/{UUID}/blobs/{HASH}/5", "double slash"),
    (f"blobs/uploads/{UUID}/blobs/{HASH}/5", "reserved segment"),
    (f"uploads/{UUID}/actions/{HASH}/5", "unknown kind"),
    (f"uploads/{UUID}/compressed-blobs/lz4/{HASH}/5", "compressor nobody has"),
    (f"uploads/{UUID}/compressed-blobs/deflate/{HASH}/5", "compressor we do not have"),
    (f"uploads/{UUID}/blobs/{HASH.upper()}/5", "uppercase hash"),
    (f"uploads/{UUID}/blobs/{HASH}/-1", "negative size"),
]


@pytest.mark.parametrize(("name", "reason"), BAD_WRITE_NAMES)
def test_bad_write_names_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match="resource_name"):
        parse_write_name(name)


@pytest.mark.parametrize("name", ["", "main", "a/b/c", "projects/p/instances/i", "with space", "ünïcode", "blobs2"])
def test_good_instance_names(name: str) -> None:
    assert check_instance_name(name) == name


@pytest.mark.parametrize(
    "name", ["/", "/a", "a/", "a//b", "x" * 5000, *sorted(RESERVED_SEGMENTS), "a/uploads", "blobs/a"]
)
def test_bad_instance_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="instance_name"):
        check_instance_name(name)
