"""The kernel's FUSE protocol: layouts as in <linux/fuse.h>."""

from __future__ import annotations

import stat
import struct

from hypothesis import given
from hypothesis import strategies as st

from tvix.executor import fuse_protocol as fuse
from tvix.executor.fuse_protocol import Attributes, Request


def _request(opcode: int, node: int, body: bytes, unique: int = 9) -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, node, 1, 2, 3, 0, 0) + body


def test_requests_are_taken_apart() -> None:
    assert fuse.decode_request(_request(fuse.LOOKUP, 7, b"name\0")) == Request(fuse.LOOKUP, 9, 7, b"name\0")


def test_forgets_come_one_or_many() -> None:
    one = fuse.decode_request(_request(fuse.FORGET, 7, struct.pack("=Q", 3)))
    assert fuse.decode_forgets(one) == [(7, 3)]
    body = struct.pack("=II", 2, 0) + struct.pack("=QQQQ", 7, 3, 8, 1)
    assert fuse.decode_forgets(fuse.decode_request(_request(fuse.BATCH_FORGET, 0, body))) == [(7, 3), (8, 1)]


def test_reads_and_interrupts() -> None:
    body = struct.pack("=QQIIQII", 0, 1 << 40, 4096, 0, 0, 0, 0)
    assert fuse.decode_read(body) == (1 << 40, 4096)
    assert fuse.decode_interrupt(struct.pack("=Q", 77)) == 77


def test_replies_have_the_sizes_that_the_kernel_expects() -> None:
    attributes = Attributes(5, stat.S_IFREG | 0o444, 1000, 1_500_000_001)
    assert len(fuse.encode_header(1, 0)) == 16
    assert len(fuse.encode_init(struct.pack("=IIII", 7, 45, 131072, 0xFFFF_FFFF) + bytes(48))) == 64
    assert len(fuse.encode_attributes(attributes)) == 104
    assert len(fuse.encode_entry(attributes)) == len(fuse.NO_ENTRY) == 128
    assert len(fuse.encode_statfs()) == 80


def test_headers_hold_length_and_negative_errno() -> None:
    assert struct.unpack("=IiQ", fuse.encode_header(3, 100, 5)) == (116, -5, 3)


def test_only_offered_features_are_taken() -> None:
    assert struct.unpack_from("=IIII", fuse.encode_init(struct.pack("=IIII", 7, 45, 0, 1)))[3] == 1
    assert struct.unpack_from("=IIII", fuse.encode_init(struct.pack("=IIII", 7, 45, 0, 0)))[3] == 0


@given(st.integers(-(2**62), 2**62))
def test_times_before_1970_are_floored_to_seconds(mtime_ns: int) -> None:
    body = fuse.encode_attributes(Attributes(5, stat.S_IFREG, 1000, mtime_ns))
    fields = struct.unpack("=QIIQQQqqqIIIIIIIIII", body)
    node, size, blocks, _, seconds, _ = fields[3:9]
    assert (node, size, blocks) == (5, 1000, 2)
    assert 0 <= fields[10] < 1_000_000_000
    assert seconds * 1_000_000_000 + fields[10] == mtime_ns


@given(st.binary(min_size=1, max_size=255))
def test_listing_entries_are_padded_to_eight(name: bytes) -> None:
    entry = fuse.encode_dirent(name, 3, stat.S_IFDIR | 0o777)
    assert len(entry) % 8 == 0
    _, cookie, length, kind = struct.unpack_from("=QQII", entry)
    assert (cookie, length, kind, entry[24 : 24 + length]) == (3, len(name), 4, name)
    plus = fuse.encode_direntplus(name, 3, stat.S_IFDIR, None)
    assert plus == bytes(128) + entry


def test_dropping_a_name_is_a_notification() -> None:
    message = fuse.encode_invalidate_entry(1, b"name")
    assert struct.unpack_from("=IiQQII", message) == (len(message), 3, 0, 1, 4, 0)
    assert message.endswith(b"name\0")
