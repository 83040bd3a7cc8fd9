"""FastCDC's boundaries are checked against a plain reading of the algorithm, kept here."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvix.cas.chunking import Chunker

GEAR = [int.from_bytes(hashlib.md5(bytes([byte]) * 64).digest()[:8], "big") for byte in range(256)]

MASKS = {
    8: 0x1800035300,
    9: 0x19000353000,
    10: 0x590003530000,
    11: 0xD90003530000,
    12: 0xD90103530000,
    13: 0xD90303530000,
    14: 0xD90313530000,
    15: 0xD90F03530000,
    16: 0xD90303537000,
    17: 0xD90703537000,
    18: 0xD90707537000,
    19: 0xD91707537000,
    20: 0xD91747537000,
    21: 0xD91767537000,
}
"""By the number of bits of the average that the mask is for: the paper's table."""


def reference_cut(data: bytes, average: int) -> list[bytes]:
    """Cut as the 2020 paper does: two bytes a step, normalization 2, minimum and maximum from the average."""
    chunks = []
    while data:
        length = _reference_length(data, average)
        chunks.append(data[:length])
        data = data[length:]
    return chunks


def _reference_length(data: bytes, average: int) -> int:
    minimum, maximum = average // 4, average * 4
    remaining = min(len(data), maximum)
    if remaining <= minimum:
        return remaining
    bits = average.bit_length() - 1
    small, large = MASKS[bits + 2], MASKS[bits - 2]
    fingerprint = 0
    for start, end, mask in (
        (minimum // 2, min(average, remaining) // 2, small),
        (min(average, remaining) // 2, remaining // 2, large),
    ):
        for half in range(start, end):
            at = half * 2
            fingerprint = ((fingerprint << 2) + (GEAR[data[at]] << 1)) & (2**64 - 1)
            if not fingerprint & (mask << 1):
                return at
            fingerprint = (fingerprint + GEAR[data[at + 1]]) & (2**64 - 1)
            if not fingerprint & mask:
                return at + 1
    return remaining


def cut_all(data: bytes, average: int, piece_bytes: int) -> list[bytes]:
    chunker = Chunker(average)
    chunks: list[bytes] = []
    for start in range(0, len(data), piece_bytes):
        chunker.feed(data[start : start + piece_bytes])
        chunks += chunker.cut()
        assert chunker.buffered_bytes < 4 * average + piece_bytes
    return [*chunks, *chunker.cut(last=True)]


@pytest.mark.parametrize("average", [1024, 4096, 16384, 65536, 262144])
def test_boundaries_are_those_of_the_paper(average: int) -> None:
    data = random.Random(average).randbytes(700_000) + bytes(100_000) + b"text " * 20_000
    expected = reference_cut(data, average)
    assert cut_all(data, average, len(data)) == expected
    assert cut_all(data, average, 12_345) == expected


def test_the_default_average_is_what_is_announced() -> None:
    data = random.Random(7).randbytes(3_000_000)
    expected = reference_cut(data, 512 * 1024)
    assert cut_all(data, 512 * 1024, 1_000_000) == expected
    chunker = Chunker()
    chunker.feed(data)
    assert [*chunker.cut(), *chunker.cut(last=True)] == expected
    assert all(128 * 1024 <= len(chunk) <= 2 * 1024 * 1024 for chunk in expected[:-1])


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=30_000), st.integers(1, 9_000))
def test_any_pieces_give_the_same_chunks(data: bytes, piece_bytes: int) -> None:
    chunks = cut_all(data, 1024, piece_bytes)
    assert b"".join(chunks) == data
    assert chunks == reference_cut(data, 1024)


def test_an_insertion_changes_chunks_nearby_only() -> None:
    data = random.Random(3).randbytes(1_000_000)
    changed = data[:500_000] + b"inserted" + data[500_000:]
    before, after = (set(cut_all(content, 16384, 1_000_000)) for content in (data, changed))
    assert len(before - after) <= 3
