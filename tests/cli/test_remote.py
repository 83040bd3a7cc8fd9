"""What verbs share."""

import pytest

from tvix.cas.digest import Digest
from tvix.cli.remote import human_seconds, human_size, parse_digest
from tvix.errors import InvalidDigest, InvalidInput

HASH = "ab" * 32


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (f"{HASH}/7", Digest("sha256", HASH, 7)),
        (f"{HASH}:7", Digest("sha256", HASH, 7)),
        (f"blake3/{HASH}/7", Digest("blake3", HASH, 7)),
        (f"inst/blobs/{HASH}/7", Digest("sha256", HASH, 7)),
        (f"uploads/x/blobs/blake3/{HASH}/7", Digest("blake3", HASH, 7)),
        (f"{'cd' * 20}/0", Digest("sha1", "cd" * 20, 0)),
        (f"  {HASH}/7\n", Digest("sha256", HASH, 7)),
    ],
)
def test_digests_as_people_copy_them(text: str, digest: Digest) -> None:
    assert parse_digest(text) == digest


@pytest.mark.parametrize("text", ["", "x", HASH, f"{HASH}/", f"{HASH}/-1", f"{HASH.upper()}/1", f"{HASH}/1/2"])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a digest"):
        parse_digest(text)


def test_a_hash_of_no_known_length_is_refused() -> None:
    with pytest.raises(InvalidDigest):
        parse_digest(f"{HASH}ab/1")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 * 1024, "150 KiB"),
        (2**40, "1.0 TiB"),
        (3 * 2**30, "3.0 GiB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert human_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (1.26, "1.3 s"), (100, "1 min 40 s"), (3700, "1 h 01 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
