"""Hashes in all their spellings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.errors import InvalidInput
from tvix.nix.hashes import ALGORITHMS, SIZES, Algorithm, Hash, hash_of, parse_hash


@given(st.sampled_from(ALGORITHMS), st.binary(min_size=64, max_size=64))
def test_every_spelling_is_read_back(algorithm: Algorithm, data: bytes) -> None:
    value = Hash(algorithm, data[: SIZES[algorithm]])
    for digits in (value.base16, value.base32, value.base64):
        assert parse_hash(f"{algorithm}:{digits}") == value
        assert parse_hash(digits, algorithm) == value
    assert parse_hash(value.sri) == value
    assert parse_hash(value.sri, algorithm) == value


def test_spellings_of_a_known_value() -> None:
    value = hash_of(b"hello\n")
    assert value.nix == "sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq"
    assert value.sri == "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM="


@pytest.mark.parametrize(
    ("text", "algorithm", "reason"),
    [
        ("00", None, "does not say its algorithm"),
        ("sha256:00", None, "wrong length for sha256"),
        ("sha1:" + "0" * 40, "sha256", "should have algorithm sha256"),
        ("sha256:" + "g" * 64, None, "digits that its encoding does not"),
        ("sha256-!!!", None, "not base 64"),
        ("sha256-AAAA", None, "has 32 bytes"),
    ],
)
def test_bad_hashes_say_why(text: str, algorithm: Algorithm | None, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        parse_hash(text, algorithm)
