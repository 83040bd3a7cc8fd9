"""Large blobs as zstd at rest: frames of 1 MiB of content each, so that ranges are cheap and frames
can be sent as they are. Pure.

The file is in the zstd seekable format (a public convention of the zstd project), which `zstd -d`
reads too: the frames, then a skippable frame that holds the table:

    0x184D2A5E: 4 | table size: 4 | (compressed: 4, content: 4) per frame | frames: 4 | flags: 1 (0) | 0x8F92EAB1: 4
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from tvix.errors import CorruptData

FRAME_BYTES = 1024 * 1024
"""Content of every frame but the last."""

_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_ENTRY = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")


class FrameTable(NamedTuple):
    """Where the frames of one stored blob lie."""

    starts: list[int]
    """Byte position of each frame in the file, and at the end that of the table."""
    content_starts: list[int]
    """Position of each frame's content in the blob, and at the end the blob's size."""

    def frame_at(self, offset: int) -> int:
        """Return the number of the frame that holds the content at `offset` (< blob size)."""
        return bisect_right(self.content_starts, offset) - 1


def encode_table(frames: Sequence[tuple[int, int]]) -> bytes:
    """Return the file's end for frames of (compressed, content) sizes."""
    entries = b"".join(_ENTRY.pack(*frame) for frame in frames)
    body = entries + _FOOTER.pack(len(frames), 0, _SEEKABLE_MAGIC)
    return struct.pack("<II", _SKIPPABLE_MAGIC, len(body)) + body


def table_bytes(content_bytes: int) -> int:
    """Return the length of the table of a blob of this size."""
    return 8 + _ENTRY.size * -(-content_bytes // FRAME_BYTES) + _FOOTER.size


def decode_table(tail: bytes, file_bytes: int, content_bytes: int) -> FrameTable:
    """Return the table from the file's last `table_bytes` bytes; CorruptData if it does not fit."""
    count = -(-content_bytes // FRAME_BYTES)
    if len(tail) != table_bytes(content_bytes) or tail[-_FOOTER.size :] != _FOOTER.pack(count, 0, _SEEKABLE_MAGIC):
        raise CorruptData(f"a stored zstd file of {file_bytes} bytes has no frame table for {content_bytes} bytes")
    sizes = list(_ENTRY.iter_unpack(tail[8 : -_FOOTER.size]))
    starts = list(accumulate((size for size, _ in sizes), initial=0))
    content_starts = list(accumulate((size for _, size in sizes), initial=0))
    if starts[-1] + len(tail) != file_bytes or content_starts[-1] != content_bytes:
        raise CorruptData(f"the frame table of a stored zstd file of {file_bytes} bytes does not add up")
    return FrameTable(starts, content_starts)
