"""Header blocks: requests in, responses out. Pure.

Decoding is HPACK by the `hpack` package, with a memory in front: clients send the same few bytes for
the same call again and again, and those bytes mean the same until the dynamic table changes. Encoding
uses the static table and literals only, so a response's header block is a constant.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

import hpack
from hpack.exceptions import HPACKError

from tvix.http2.frames import ConnectionFault, ErrorCode

MAX_HEADER_LIST_BYTES = 64 * 1024
_MEMORY_ENTRIES = 256

Metadata = tuple[tuple[str, "str | bytes"], ...]


class RequestHead(NamedTuple):
    """The headers of a gRPC call."""

    method: str
    path: str
    content_type: str
    encoding: str
    """grpc-encoding: how compressed messages are compressed."""
    timeout_seconds: float | None
    metadata: Metadata
    """Everything the client added, and user-agent; values of `-bin` keys decoded."""


_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_HIDDEN = frozenset({"te", "content-type", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "content-length"})


def parse_timeout(value: str) -> float | None:
    """Return the seconds of a grpc-timeout value (up to 8 digits and a unit), None if malformed."""
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * _UNITS[unit]


def _decode_binary(value: str) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError):
        return b""


def request_head(fields: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """Return the call that a decoded header list describes."""
    known: dict[str, str] = {}
    metadata: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.startswith(":") or name in _HIDDEN:
            known[name] = value
        elif name.endswith("-bin"):
            metadata.extend((name, _decode_binary(part.strip())) for part in value.split(","))
        else:
            metadata.append((name, value))
    timeout = known.get("grpc-timeout")
    return RequestHead(
        method=known.get(":method", ""),
        path=known.get(":path", ""),
        content_type=known.get("content-type", ""),
        encoding=known.get("grpc-encoding", "identity"),
        timeout_seconds=parse_timeout(timeout) if timeout else None,
        metadata=tuple(metadata),
    )


class HeaderDecoder:
    """Decodes the header blocks of one connection, in the order in which they arrive."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_LIST_BYTES)
        self._known: dict[bytes, RequestHead] = {}

    def decode(self, block: bytes) -> RequestHead:
        """Return the call a complete block describes; ConnectionFault if it cannot be decoded."""
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table.dynamic_entries
        newest, entries = (table[0] if table else None), len(table)
        try:
            fields = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        request = request_head((bytes(field[0]), bytes(field[1])) for field in fields)
        # Bytes may be remembered only while the table they refer to stands.
        resized = bool(block) and block[0] & 0xE0 == 0x20
        if resized or len(table) != entries or (table[0] if table else None) is not newest:
            self._known.clear()
        elif len(block) <= 4096:
            if len(self._known) >= _MEMORY_ENTRIES:
                self._known.clear()
            self._known[block] = request
        return request


def _integer(value: int, prefix_bits: int, first: int) -> bytes:
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([first | value])
    out = bytearray([first | limit])
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: str, value: str) -> bytes:
    """Return a header field as a literal that enters no table (RFC 7541, section 6.2.2)."""
    raw_name, raw_value = name.encode("ascii"), value.encode("latin-1")
    return b"\x00" + _integer(len(raw_name), 7, 0) + raw_name + _integer(len(raw_value), 7, 0) + raw_value


_STATUS_200 = b"\x88"
"""`:status: 200` is entry 8 of the static table."""

RESPONSE_START = _STATUS_200 + literal("content-type", "application/grpc")
"""The header block that opens every response."""

TRAILERS_OK = literal("grpc-status", "0")


def encode_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Return custom metadata as literals; bytes and `-bin` values in base64 without padding."""
    out = []
    for key, value in metadata:
        if key.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            value = base64.b64encode(raw).rstrip(b"=").decode()
        elif isinstance(value, bytes):
            value = value.decode("latin-1")
        out.append(literal(key.lower(), value))
    return b"".join(out)


def encode_trailers(code: int, message: str, metadata: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    """Return the block that closes a call."""
    out = literal("grpc-status", str(code)) if code else TRAILERS_OK
    if message:
        out += literal("grpc-message", quote(message[:4000], safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"))
    return out + encode_metadata(metadata)


def plain_response(status: int, content_type: str) -> bytes:
    """Return the header block of a response that is not gRPC."""
    return literal(":status", str(status)) + literal("content-type", content_type)
