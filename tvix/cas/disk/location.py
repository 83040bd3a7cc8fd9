"""Where a blob lies, packed into one int to keep the index small. Pure.

    offset: 40 bits | pack: 32 | codec: 4 | stored bytes: 52

Pack 0 means a file of its own, whose unique number stands in `offset` (two files of the same blob
never share a name, so that removing one cannot remove the other).
"""

from __future__ import annotations

from typing import NamedTuple

IDENTITY = 0
"""Codec: the bytes as they are."""
ZSTD = 1
"""Codec: one zstd frame (in packs), or the seekable format of frames.py (in files)."""

OWN_FILE = 0

_PACK_SHIFT = 40
_CODEC_SHIFT = 72
_STORED_SHIFT = 76
_OFFSET_MASK = (1 << 40) - 1
_PACK_MASK = (1 << 32) - 1
_CODEC_MASK = 15

PLACE_MASK = (1 << _CODEC_SHIFT) - 1
"""What of a location says where: pack, then offset; sorts by position on disk."""

MAX_FILE_NUMBER = _OFFSET_MASK
BLOCK_BYTES = 4096


class Location(NamedTuple):
    """An unpacked location."""

    pack: int
    offset: int
    stored_bytes: int
    codec: int


def pack_location(pack: int, offset: int, stored_bytes: int, codec: int) -> int:
    """Return the location as one int of at most 128 bits."""
    return stored_bytes << _STORED_SHIFT | codec << _CODEC_SHIFT | pack << _PACK_SHIFT | offset


def unpack_location(location: int) -> Location:
    """Return the parts of a packed location."""
    return Location(
        location >> _PACK_SHIFT & _PACK_MASK,
        location & _OFFSET_MASK,
        location >> _STORED_SHIFT,
        location >> _CODEC_SHIFT & _CODEC_MASK,
    )


def pack_of(location: int) -> int:
    """Return a packed location's pack, like the next ones much faster than unpacking it."""
    return location >> _PACK_SHIFT & _PACK_MASK


def stored_bytes_of(location: int) -> int:
    """Return a packed location's stored bytes."""
    return location >> _STORED_SHIFT


def end_of(location: int) -> int:
    """Return where in its pack a blob ends."""
    return (location & _OFFSET_MASK) + (location >> _STORED_SHIFT)


def rounded(size_bytes: int) -> int:
    """Return the space that a file of this size takes: whole blocks, at least one (its inode)."""
    return max(1, -(-size_bytes // BLOCK_BYTES)) * BLOCK_BYTES
