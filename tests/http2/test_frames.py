"""Frames as bytes."""

import pytest

from tvix.http2 import frames


def test_a_head_is_nine_bytes_in_network_order() -> None:
    assert frames.head(0x010203, frames.DATA, frames.END_STREAM, 7) == bytes([1, 2, 3, 0, 1, 0, 0, 0, 7])


def test_settings_are_pairs_of_sixteen_and_thirty_two_bits() -> None:
    frame = frames.settings({frames.MAX_FRAME_SIZE: 0x10000})
    assert frame == bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes([0, 5, 0, 1, 0, 0])


def test_padding_is_taken_off() -> None:
    assert frames.without_padding(0, b"abc") == b"abc"
    assert frames.without_padding(frames.PADDED, b"\x02abc\x00\x00") == b"abc"


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abc"])
def test_padding_longer_than_the_frame_is_a_fault(payload: bytes) -> None:
    with pytest.raises(frames.ConnectionFault):
        frames.without_padding(frames.PADDED, payload)
