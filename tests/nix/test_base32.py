"""Nix's base 32."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.errors import InvalidInput
from tvix.nix import base32


@given(st.binary(max_size=80))
def test_decoding_undoes_encoding(data: bytes) -> None:
    text = base32.encode(data)
    assert len(text) == base32.encoded_length(len(data))
    assert base32.decode(text) == data


def test_known_value() -> None:
    # nix-hash --flat --type sha256 --base32 of a file holding "hello\n", by Nix 2.8
    digest = bytes.fromhex("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
    assert base32.encode(digest) == "00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("e000", "is not one of its digits"), ("A000", "is not one of"), ("0", "whole number"), ("z0", "whole number")],
)
def test_bad_digits_are_named(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        base32.decode(text)
