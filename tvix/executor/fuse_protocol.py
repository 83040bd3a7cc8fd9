"""The kernel's FUSE protocol, as far as a read-only file system needs it. Pure.

Layouts are those of <linux/fuse.h>, protocol 7.31 and later, in native byte order. Requests are a 40-byte header
and a body; replies a 16-byte header (length, negative errno, the request's number) and a body.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

LOOKUP, FORGET, GETATTR, SETATTR, READLINK = 1, 2, 3, 4, 5
OPEN, READ, STATFS, INIT, OPENDIR, READDIR = 14, 15, 17, 26, 27, 28
INTERRUPT, DESTROY, BATCH_FORGET, READDIRPLUS = 36, 38, 42, 44

NAMES = {
    LOOKUP: "lookup",
    FORGET: "forget",
    GETATTR: "getattr",
    SETATTR: "setattr",
    READLINK: "readlink",
    OPEN: "open",
    READ: "read",
    STATFS: "statfs",
    INIT: "init",
    OPENDIR: "opendir",
    READDIR: "readdir",
    INTERRUPT: "interrupt",
    DESTROY: "destroy",
    BATCH_FORGET: "batch_forget",
    READDIRPLUS: "readdirplus",
}

REQUEST_BYTES = 8192
"""Size of the buffer that requests are read into: the least the kernel accepts. Requests that we answer hold no
more than a name (255 bytes) or some dozens of forgets."""
MAX_READ_BYTES = 1024 * 1024

FOREVER_SECONDS = 0xFFFF_FFFF
UNKNOWN_INODE = 0xFFFF_FFFF
"""Stands in directory listings for the inode number of an entry that nobody looked up yet."""

_ASYNC_READ, _DO_READDIRPLUS, _READDIRPLUS_AUTO = 1 << 0, 1 << 13, 1 << 14
_NO_OPEN_SUPPORT, _PARALLEL_DIROPS = 1 << 17, 1 << 18
_MAX_PAGES, _CACHE_SYMLINKS, _NO_OPENDIR_SUPPORT = 1 << 22, 1 << 23, 1 << 24
_WANTED = (
    _ASYNC_READ
    | _DO_READDIRPLUS
    | _READDIRPLUS_AUTO
    | _NO_OPEN_SUPPORT
    | _PARALLEL_DIROPS
    | _MAX_PAGES
    | _CACHE_SYMLINKS
    | _NO_OPENDIR_SUPPORT
)
_MAX_BACKGROUND, _CONGESTION = 128, 96

_in_header = struct.Struct("=IIQQIIIHH")
_out_header = struct.Struct("=IiQ")
_init_in = struct.Struct("=IIII")
_init_out = struct.Struct("=IIIIHHIIHHI28x")
_attr = struct.Struct("=QQQqqqIIIIIIIIII")
_entry_head = struct.Struct("=QQQQII")
_attr_head = struct.Struct("=QII")
_statfs = struct.Struct("=QQQQQIIII24x")
_read_in = struct.Struct("=QQIIQII")
_dirent = struct.Struct("=QQII")
_forget_in = struct.Struct("=Q")
_forget_one = struct.Struct("=QQ")
_batch_forget_in = struct.Struct("=II")
_inval_entry = struct.Struct("=QII")

HEADER_BYTES = _in_header.size
_NOTIFY_INVAL_ENTRY = 3


class Request(NamedTuple):
    """One request; `body` is everything behind the header."""

    opcode: int
    unique: int
    node: int
    body: bytes


class Attributes(NamedTuple):
    """What stat(2) shows. `mode` holds the file type too."""

    node: int
    mode: int
    size_bytes: int
    mtime_ns: int


class ReadRange(NamedTuple):
    """The part of a file or listing that is asked for; in listings, `offset` is the last entry's cookie."""

    offset: int
    size_bytes: int


def decode_request(data: bytes) -> Request:
    """Return the request that one read from the device gave."""
    _, opcode, unique, node, _, _, _, _, _ = _in_header.unpack_from(data)
    return Request(opcode, unique, node, data[HEADER_BYTES:])


def decode_read(body: bytes) -> ReadRange:
    """Return what READ, READDIR and READDIRPLUS ask for."""
    _, offset, size_bytes, _, _, _, _ = _read_in.unpack_from(body)
    return ReadRange(offset, size_bytes)


def decode_forgets(request: Request) -> list[tuple[int, int]]:
    """Return (node, number of lookups forgotten) pairs of FORGET and BATCH_FORGET."""
    if request.opcode == FORGET:
        return [(request.node, _forget_in.unpack_from(request.body)[0])]
    count, _ = _batch_forget_in.unpack_from(request.body)
    start = _batch_forget_in.size
    return list(_forget_one.iter_unpack(request.body[start : start + count * _forget_one.size]))


def decode_interrupt(body: bytes) -> int:
    """Return the number of the request that is to be given up."""
    unique: int = _forget_in.unpack_from(body)[0]
    return unique


def encode_header(unique: int, body_bytes: int, errno: int = 0) -> bytes:
    """Return a reply's header; `errno` is positive."""
    return _out_header.pack(_out_header.size + body_bytes, -errno, unique)


def encode_init(body: bytes) -> bytes:
    """Return the reply to INIT, with the wanted features that the kernel offers."""
    major, _, _, offered = _init_in.unpack_from(body)
    flags = _WANTED & offered
    pages = MAX_READ_BYTES // 4096
    return _init_out.pack(major, 31, MAX_READ_BYTES, flags, _MAX_BACKGROUND, _CONGESTION, 4096, 1, pages, 0, 0)


def encode_attributes(attributes: Attributes) -> bytes:
    """Return the reply to GETATTR."""
    return _attr_head.pack(FOREVER_SECONDS, 0, 0) + _encode_attr(attributes)


def encode_entry(attributes: Attributes) -> bytes:
    """Return the reply to LOOKUP of an entry that is there, valid for ever."""
    return _entry_head.pack(attributes.node, 0, FOREVER_SECONDS, FOREVER_SECONDS, 0, 0) + _encode_attr(attributes)


NO_ENTRY = _entry_head.pack(0, 0, FOREVER_SECONDS, 0, 0, 0) + bytes(_attr.size)
"""The reply to LOOKUP of a name that is not there and never will be."""
_UNKNOWN_ENTRY = bytes(_entry_head.size + _attr.size)


def _encode_attr(attributes: Attributes) -> bytes:
    node, mode, size_bytes, mtime_ns = attributes
    seconds, nanos = divmod(mtime_ns, 1_000_000_000)
    blocks = (size_bytes + 511) >> 9
    return _attr.pack(
        node, size_bytes, blocks, seconds, seconds, seconds, nanos, nanos, nanos, mode, 1, 0, 0, 0, 4096, 0
    )


def encode_dirent(name: bytes, cookie: int, mode: int) -> bytes:
    """Return one entry of a listing; `mode` holds the file type. `cookie` resumes behind it."""
    padding = -(_dirent.size + len(name)) % 8
    return _dirent.pack(UNKNOWN_INODE, cookie, len(name), mode >> 12) + name + bytes(padding)


def encode_direntplus(name: bytes, cookie: int, mode: int, attributes: Attributes | None) -> bytes:
    """Return one entry of a READDIRPLUS listing; without `attributes` the kernel learns the name alone."""
    entry = encode_entry(attributes) if attributes else _UNKNOWN_ENTRY
    return entry + encode_dirent(name, cookie, mode)


def encode_statfs() -> bytes:
    """Return the reply to STATFS: a full file system with names of 255 bytes. Overlays ask for it."""
    return _statfs.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)


def encode_invalidate_entry(parent: int, name: bytes) -> bytes:
    """Return a message, header included, that makes the kernel drop a name and what it cached below."""
    body = _inval_entry.pack(parent, len(name), 0) + name + b"\0"
    return _out_header.pack(_out_header.size + len(body), _NOTIFY_INVAL_ENTRY, 0) + body
