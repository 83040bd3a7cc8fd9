"""Reading and writing of the hottest messages without message objects. Pure.

Requests that list digests (FindMissingBlobs, BatchReadBlobs) are `instance_name?, digest*, rest`: one
regular expression cuts the serialized digests out, and each is looked up in a bounded table of
digests that were decoded and checked before. Whatever is not written the usual way (another field
order, hashes that are not 64 digits, something malformed) is None here, and the caller takes the
generated classes, which also tell what is wrong.

    bytes of one listed digest: 0x12, length:1, 0x0a, 0x40, hash:64, [0x10, size:varint]
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tvix.cas.digest import EMPTY, MAX_SIZE_BYTES, Digest, DigestFunction

_LISTED_DIGESTS = re.compile(rb"\x12[\x42-\x4c]\n@.{64}(?:\x10[\x80-\xff]*[\x00-\x7f])?", re.DOTALL).findall
_IS_HASH = re.compile(rb"[0-9a-f]{64}").fullmatch
_MAX_INTERNED = 1 << 16

INSTANCE_NAME_TAG = 0x0A


class DigestList(NamedTuple):
    """A request cut in three."""

    instance_name: str
    items: list[bytes]
    """The serialized digests, each with its tag and length."""
    rest: bytes
    """What follows the digests: itself a valid message of the same type."""


class Interned(dict[bytes, Digest]):
    """Digests of one function by their serialized form, decoded on first use; KeyError if irregular."""

    def __init__(self, function: DigestFunction) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, item: bytes) -> Digest:
        hash_bytes = item[4:68]
        size_bytes = parse_varint(item, 69)[0] if len(item) > 68 else 0
        digest = Digest(self._function, hash_bytes.decode("latin-1"), size_bytes)
        regular = item[1] == len(item) - 2 and _IS_HASH(hash_bytes) and size_bytes <= MAX_SIZE_BYTES
        if not regular or (size_bytes == 0 and digest != EMPTY[self._function]):
            raise KeyError(item)
        if len(self) >= _MAX_INTERNED:
            self.clear()
        self[item] = digest
        return digest


def split_digest_list(request: bytes) -> DigestList | None:
    """Cut a request apart; None when it is not of the usual shape."""
    start = 0
    instance_name = ""
    if request and request[0] == INSTANCE_NAME_TAG:
        start = 2 + request[1] if len(request) > 1 else 1
        if request[1:2] >= b"\x80":
            return None
        try:
            instance_name = request[2:start].decode()
        except UnicodeDecodeError:
            return None
    items = _LISTED_DIGESTS(request, start)
    listed = b"".join(items)
    if not request.startswith(listed, start):
        return None
    return DigestList(instance_name, items, request[start + len(listed) :])


def parse_varint(message: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position` and the position after it; IndexError when it is cut short."""
    byte = message[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value = byte & 0x7F
    shift = 7
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError("varint of more than 10 bytes")


def varint(value: int) -> bytes:
    """Return the wire form of a number >= 0."""
    if value < 0x80:
        return _ONE_BYTE[value]
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


_ONE_BYTE = [bytes([value]) for value in range(0x80)]


def read_response(data: bytes) -> bytes:
    """Return the serialized google.bytestream.ReadResponse with these bytes (field 10)."""
    return b"".join((b"R", varint(len(data)), data))


class WriteMessage(NamedTuple):
    """A google.bytestream.WriteRequest."""

    resource_name: str
    write_offset: int
    finish_write: bool
    data: bytes


def parse_write_request(message: bytes) -> WriteMessage | None:
    """Take a serialized WriteRequest apart with one copy of its data; None when it is malformed.

    Fields may come in any order; of a repeated field the last counts, as in any protobuf reader;
    unknown fields are skipped.
    """
    name = data = b""
    offset, finish = 0, False
    position, end = 0, len(message)
    try:
        while position < end:
            tag, position = parse_varint(message, position)
            kind = tag & 7
            if tag < 8:
                return None
            if kind == 0:
                value, position = parse_varint(message, position)
                if tag == 0x10:
                    offset = value - (1 << 64) if value >= 1 << 63 else value
                elif tag == 0x18:
                    finish = value != 0
            elif kind == 2:
                length, start = parse_varint(message, position)
                position = start + length
                if tag == 0x0A:
                    name = message[start:position]
                elif tag == 0x52:
                    data = message[start:position]
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                return None
        if position != end:
            return None
        return WriteMessage(name.decode(), offset, finish, data)
    except (IndexError, UnicodeDecodeError):
        return None


class BlobHeads(dict[bytes, bytes]):
    """What stands before the bytes of a blob in BatchReadBlobsResponse, by the digest as it was listed.

    One `responses` entry (field 1) with digest (1) and the head of data (2): the size is the digest's own.
    """

    def __missing__(self, item: bytes) -> bytes:
        size_bytes = parse_varint(item, 69)[0] if len(item) > 68 else 0
        head = b"".join((b"\n", item[1:], b"\x12", varint(size_bytes)))
        if len(self) >= _MAX_INTERNED:
            self.clear()
        entry = self[item] = b"".join((b"\n", varint(len(head) + size_bytes), head))
        return entry


def tree_entry(directory: bytes) -> bytes:
    """Return one `directories` entry (field 1) of GetTreeResponse."""
    return b"".join((b"\n", varint(len(directory)), directory))
