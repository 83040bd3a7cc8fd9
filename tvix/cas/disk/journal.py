"""The journal: one append-only file of fixed-size records that says which blobs there are and where.

A blob exists from the moment its PUT record is in the journal; its bytes were written before. Every
process reads the journal to its end (`read_new`) before it answers, and so sees what the others did.

    record (104 bytes, little-endian):
    crc32: 4 | op: 1 | function: 1 | zero: 2 | blob size: 8 | location: 16 | time: 8 (float) | hash: 64

`function` is the wire number of the digest function; 0 marks a record that is not about one blob, and
then `location` is a plain number. A record whose checksum is wrong (torn by a crash, or the padding
after one) is skipped: appends happen under a file lock and first pad the file to whole records.

The journal is compacted while others use it: the successor holds a snapshot of the index followed by
what was appended meanwhile; the old file ends in MOVED. A process that has read MOVED knows all that
the successor says up to its header's `start`, and goes on from there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from tvix.cas.digest import FUNCTIONS, Digest, DigestFunction
from tvix.errors import CorruptData

PUT = 1
"""The blob is at `location`. Void if the blob is present already: then the first copy stays."""
EVICT = 2
"""The blob is gone from `location`. Void if it lies elsewhere by now."""
RELOCATE = 3
"""The present blob lies at `location` now. Void if absent."""
TOUCH = 4
"""The blob was used."""
DROP_PACK = 5
"""Pack number `location` is gone, with all that lay in it."""
ROOM = 6
"""A writer needs `location` bytes of room, which the evictor is to make."""
MOVED = 7
"""The journal goes on in its successor."""
CLEAN = 8
"""The last process closed the store in good order. `location` is 0 if all data was flushed then, else
the kernel's boot id as a number: good only until the machine restarts."""
HEADER = 9
"""First record: version in `size`, generation and start in `location`."""

PACK_END = 10
"""Snapshots only: a pack, in the low 32 bits of `location`, is as long as the rest says."""
START = 11
"""A process started alone; `location` is the kernel's boot id as a number."""

VERSION = 1
_READ_BYTES = 104 * 256
_BULK_READ_BYTES = 104 * 65536

_RECORD = struct.Struct("<IBBHQ16sd64s")
_BODY = struct.Struct("<BBHQ16sd64s")
RECORD_BYTES = _RECORD.size
_START_BITS = 64

_NUMBER: dict[DigestFunction, int] = {name: int(info.wire) for name, info in FUNCTIONS.items()}
_FUNCTION: dict[int, tuple[DigestFunction, int]] = {
    int(info.wire): (name, info.hex_length // 2) for name, info in FUNCTIONS.items()
}


class Record(NamedTuple):
    """One decoded record; `digest` is None for those not about one blob."""

    op: int
    digest: Digest | None
    location: int
    time: float


BROKEN = Record(0, None, 0, 0.0)


class Header(NamedTuple):
    """The first record of a journal file."""

    generation: int
    start: int
    """Byte position where a reader of the previous generation goes on."""


def encode(op: int, digest: Digest, location: int, time: float) -> bytes:
    """Return the record about a blob."""
    raw_hash = bytes.fromhex(digest.hash)
    return _encode(op, _NUMBER[digest.function], digest.size_bytes, location, time, raw_hash)


def encode_note(op: int, number: int, time: float) -> bytes:
    """Return a record that is not about one blob."""
    return _encode(op, 0, 0, number, time, b"")


def encode_header(header: Header, time: float) -> bytes:
    """Return a journal's first record."""
    number = header.generation << _START_BITS | header.start
    return _encode(HEADER, 0, VERSION, number, time, b"")


def _encode(op: int, function: int, size: int, location: int, time: float, raw_hash: bytes) -> bytes:
    body = _BODY.pack(op, function, 0, size, location.to_bytes(16, "little"), time, raw_hash)
    return crc32(body).to_bytes(4, "little") + body


def decode(data: bytes) -> Iterator[Record]:
    """Yield the records of `data` (a multiple of RECORD_BYTES); broken ones as op 0."""
    end = 0
    view = memoryview(data)
    new_digest, new_record = Digest._make, Record._make
    for crc, op, function, _, size, location, time, raw_hash in _RECORD.iter_unpack(data):
        start, end = end + 4, end + RECORD_BYTES
        if crc32(view[start:end]) != crc:
            yield BROKEN
            continue
        if function:
            name, length = _FUNCTION[function]
            digest = new_digest((name, raw_hash[:length].hex(), size))
        else:
            digest = None
        yield new_record((op, digest, int.from_bytes(location, "little"), time))


def decode_header(data: bytes) -> Header | None:
    """Return the header, or None if these bytes are none. CorruptData if the version is not ours."""
    if len(data) < RECORD_BYTES or crc32(data[4:RECORD_BYTES]) != int.from_bytes(data[:4], "little"):
        return None
    _, op, _, _, version, location, _, _ = _RECORD.unpack(data[:RECORD_BYTES])
    if op != HEADER:
        return None
    if version != VERSION:
        raise CorruptData(f"the journal has format version {version}; this program knows {VERSION}")
    number = int.from_bytes(location, "little")
    return Header(number >> _START_BITS, number & (1 << _START_BITS) - 1)


class Journal:
    """One process's view of the journal file.

    `read_new` and `follow` belong to one thread (the event loop's); `append` may run in any. Lock
    order: the thread lock, then the file lock.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal, making it if there is none."""
        self.path = path
        self._thread_lock = threading.Lock()
        self._lock_fd = os.open(path.with_name("journal.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with self.locked():
            self._write_fd = self._open_for_append(generation=1)
        self.position = 0
        self._read_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._load_header()
        self.position = RECORD_BYTES

    def __repr__(self) -> str:
        return f"<Journal {self.path} generation {self.header.generation} at {self.position}>"

    def close(self) -> None:
        """Close all files."""
        for fd in (self._write_fd, self._read_fd, self._lock_fd):
            os.close(fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that orders appends among threads and processes."""
        with self._thread_lock:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _open_for_append(self, generation: int) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if os.fstat(fd).st_size < RECORD_BYTES:
            os.ftruncate(fd, 0)
            os.write(fd, encode_header(Header(generation, RECORD_BYTES), 0.0))
        return fd

    def _load_header(self) -> None:
        header = decode_header(os.pread(self._read_fd, RECORD_BYTES, 0))
        if header is None:
            raise CorruptData(f"{self.path} does not begin with a journal header; is it a file of ours?")
        self.header = header

    def append(self, records: bytes, *, flush: bool = False) -> None:
        """Add whole records, visible to everyone on return; with `flush` also safe from power loss.

        Raises OSError when the disk is full; some of the first records may count even so (others may
        have read them), so what they name has to stay where it is.
        """
        with self.locked():
            size = self._prepare()
            written = os.write(self._write_fd, records)
            if written < len(records):
                os.ftruncate(self._write_fd, size + written - written % RECORD_BYTES)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if flush:
            self.flush()

    def _prepare(self) -> int:
        """Make the append descriptor point at the current file, cut to whole records; return its size."""
        status = os.fstat(self._write_fd)
        if status.st_nlink == 0:
            os.close(self._write_fd)
            self._write_fd = self._open_for_append(self.header.generation + 2)
            status = os.fstat(self._write_fd)
        if torn := status.st_size % RECORD_BYTES:
            os.write(self._write_fd, bytes(RECORD_BYTES - torn))
            return status.st_size + RECORD_BYTES - torn
        return status.st_size

    def flush(self) -> None:
        """Make what was appended safe from power loss."""
        with self._thread_lock:
            fd = os.dup(self._write_fd)  # which another thread may replace meanwhile
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    @property
    def size_bytes(self) -> int:
        """Return the present length of the file this process reads."""
        return os.lseek(self._read_fd, 0, os.SEEK_END)

    def has_news(self) -> bool:
        """Whether there may be records that `read_new` has not returned. One cheap system call."""
        return os.lseek(self._read_fd, 0, os.SEEK_END) != self.position

    def read_new(self, *, bulk: bool = False) -> bytes:
        """Return whole records that were not returned before; empty when there are none."""
        data = os.pread(self._read_fd, _BULK_READ_BYTES if bulk else _READ_BYTES, self.position)
        if torn := len(data) % RECORD_BYTES:
            data = data[:-torn]
        self.position += len(data)
        return data

    def last_record(self) -> Record:
        """Return the last whole record of the file."""
        start = self.size_bytes // RECORD_BYTES * RECORD_BYTES - RECORD_BYTES
        return next(decode(os.pread(self._read_fd, RECORD_BYTES, start)))

    def unread(self, records: int) -> None:
        """Let the last `records` records be read once more."""
        self.position -= records * RECORD_BYTES

    def was_removed(self) -> bool:
        """Whether the file this process reads is no longer the journal (moved on, or deleted by hand)."""
        return os.fstat(self._read_fd).st_nlink == 0

    def follow(self) -> bool:
        """Go on to the successor. False: records were missed, forget everything and read anew.

        Where there is no successor (whoever wrote MOVED died of it) the old file goes on.
        """
        generation = self.header.generation
        with self.locked():
            self._prepare()
        if not self.was_removed():
            return True
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._read_fd)
        self._read_fd = fd
        self._load_header()
        contiguous = self.header.generation == generation + 1
        self.position = self.header.start if contiguous else RECORD_BYTES
        return contiguous

    def replace(self, snapshot: Path, snapshot_position: int, time: float) -> None:
        """Put the file `snapshot` (a blank first record, then records) in the journal's place.

        It stands for the journal up to `snapshot_position`; what was appended since is copied over.
        """
        with self.locked():
            end = self._prepare()
            with snapshot.open("r+b") as successor:
                start = successor.seek(0, os.SEEK_END)
                position = snapshot_position
                while chunk := os.pread(self._read_fd, min(_BULK_READ_BYTES, end - position), position):
                    position += len(chunk)
                    start += successor.write(chunk)
                successor.seek(0)
                successor.write(encode_header(Header(self.header.generation + 1, start), time))
                successor.flush()
                os.fdatasync(successor.fileno())
            os.write(self._write_fd, encode_note(MOVED, 0, time))
            snapshot.rename(self.path)
