"""Frame tables of large blobs at rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.cas.disk.frames import FRAME_BYTES, decode_table, encode_table, table_bytes
from tvix.errors import CorruptData


@given(st.lists(st.integers(1, 2**31), min_size=1, max_size=50), st.integers(1, FRAME_BYTES))
def test_table_round_trip(compressed: list[int], last_bytes: int) -> None:
    contents = [FRAME_BYTES] * (len(compressed) - 1) + [last_bytes]
    tail = encode_table(list(zip(compressed, contents, strict=True)))
    size = sum(contents)
    assert len(tail) == table_bytes(size)
    table = decode_table(tail, sum(compressed) + len(tail), size)
    assert table.starts[-1] == sum(compressed)
    assert table.content_starts[-1] == size
    assert table.frame_at(0) == 0
    assert table.frame_at(size - 1) == len(compressed) - 1
    assert table.frame_at((len(compressed) - 1) * FRAME_BYTES) == len(compressed) - 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tail: tail[:-1], "short"),
        (lambda tail: tail[:-1] + b"x", "magic"),
        (lambda tail: tail[:8] + b"xx" + tail[10:], "sizes do not add up"),
        (lambda tail: b"", "nothing"),
    ],
)
def test_broken_table_is_corrupt(change: object, reason: str) -> None:
    tail = encode_table([(100, FRAME_BYTES), (50, 10)])
    with pytest.raises(CorruptData):
        decode_table(change(tail), 150 + len(tail), FRAME_BYTES + 10)  # type: ignore[operator]
