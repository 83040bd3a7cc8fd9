"""Packs: append-only files that many small blobs share.

Each process appends to a pack of its own, which it holds under a file lock, and reads everybody's. A
pack at its full size is sealed; one that a dead process left unfilled is adopted by the next that
needs one. Freeing space in packs is the evictor's work, see eviction.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tvix.errors import CorruptData

_MAX_OPEN_PACKS = 256
_MAX_BUFFERS = 512
"""Of one writev; the kernel takes 1024."""


class OpenFile:
    """A file descriptor that closes when nobody holds it any more, so that a reader in a thread never
    finds its number taken by another file."""

    __slots__ = ("fd",)

    def __init__(self, path: Path | str, flags: int = os.O_RDONLY) -> None:
        self.fd = -1
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Close now rather than when nobody holds it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def read_exactly(fd: int, size_bytes: int, offset: int) -> bytes:
    """Return the bytes at `offset`; CorruptData if the file ends before."""
    data = os.pread(fd, size_bytes, offset)
    if len(data) == size_bytes:
        return data
    parts = [data]
    while data and sum(map(len, parts)) < size_bytes:
        data = os.pread(fd, size_bytes - sum(map(len, parts)), offset + sum(map(len, parts)))
        parts.append(data)
    whole = b"".join(parts)
    if len(whole) != size_bytes:
        raise CorruptData(f"a stored file ends {size_bytes - len(whole)} bytes early")
    return whole


def read_cached(fd: int, size_bytes: int, offset: int) -> bytearray | None:
    """Return the bytes at `offset` if the kernel has them in memory, else None. Never waits for a disk."""
    buffer = bytearray(size_bytes)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    return buffer if count == size_bytes else None


class PackReader:
    """Open packs by number, the most used ones kept. For the event loop's thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._open: OrderedDict[int, OpenFile] = OrderedDict()

    def get(self, pack: int) -> OpenFile:
        """Return the open pack; hold on to it while reading. FileNotFoundError if it is gone."""
        file = self._open.get(pack)
        if file is None:
            file = self._open[pack] = OpenFile(f"{self._folder}/{pack}")
            if len(self._open) > _MAX_OPEN_PACKS:
                self._open.popitem(last=False)
        return file

    def forget(self, pack: int) -> None:
        """Close a pack that is gone."""
        self._open.pop(pack, None)

    def close(self) -> None:
        """Close all packs."""
        self._open.clear()


class PackWriter:
    """Appends to this process's open pack. For any thread."""

    def __init__(self, folder: Path, pack_bytes: int, *, flushed: bool = True) -> None:
        """`flushed`: `flush` will be called from time to time."""
        self._folder = folder
        self._flushed = flushed
        self._pack_bytes = pack_bytes
        self._lock = threading.Lock()
        self._file: OpenFile | None = None
        self._unflushed: set[OpenFile] = set()
        self._pack = 0
        self._end = 0

    def append(self, blobs: Sequence[bytes]) -> tuple[int, list[int]]:
        """Write the blobs one after the other; return the pack's number and their offsets.

        Raises OSError when the disk is full; then nothing was written.
        """
        with self._lock:
            file = self._file
            if file is None or self._end >= self._pack_bytes or os.fstat(file.fd).st_nlink == 0:
                self._seal()
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = file = self._adopt() or self._create()
            offsets = []
            end = self._end
            for blob in blobs:
                offsets.append(end)
                end += len(blob)
            try:
                self._write(file.fd, blobs)
            except OSError:
                os.ftruncate(file.fd, self._end)
                raise
            self._end = end
            if self._flushed:
                self._unflushed.add(file)
            return self._pack, offsets

    @staticmethod
    def _write(fd: int, blobs: Sequence[bytes]) -> None:
        for start in range(0, len(blobs), _MAX_BUFFERS):
            batch = blobs[start : start + _MAX_BUFFERS]
            written = os.writev(fd, batch)
            rest = memoryview(b"".join(batch))[written:] if written < sum(map(len, batch)) else b""
            while rest:
                rest = rest[os.write(fd, rest) :]

    def _adopt(self) -> OpenFile | None:
        """Take over a pack that nobody writes and that has room."""
        for path in sorted(self._folder.iterdir()):
            with suppress(OSError):
                size = path.stat().st_size
                if size < self._pack_bytes // 2 and (file := self._lock_file(path)):
                    self._pack, self._end = int(path.name), os.fstat(file.fd).st_size
                    return file
        return None

    def _create(self) -> OpenFile:
        while True:
            # Never the number of a pack that has been: others may still have that one open.
            number = 1 + secrets.randbelow((1 << 32) - 1)
            path = self._folder / str(number)
            with suppress(FileExistsError):
                path.touch(exist_ok=False)
                if file := self._lock_file(path):
                    self._pack, self._end = number, 0
                    return file

    @staticmethod
    def _lock_file(path: Path) -> OpenFile | None:
        return lock_pack(path, os.O_WRONLY | os.O_APPEND)

    def _seal(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file.fd, fcntl.LOCK_UN)  # it may stay open until the next flush
        self._file = None

    @property
    def open_pack(self) -> int:
        """Number of the pack written to last, 0 before the first."""
        return self._pack

    def seal(self) -> None:
        """Begin a new pack with the next write, so that the evictor can free this one."""
        with self._lock:
            self._seal()

    def flush(self) -> None:
        """Make what was appended safe from power loss."""
        with self._lock:
            files, self._unflushed = self._unflushed, set()
        for file in files:
            os.fdatasync(file.fd)

    def close(self) -> None:
        """Give up the open pack."""
        with self._lock:
            self._seal()
            self._unflushed = set()


def lock_pack(path: Path, flags: int = os.O_RDONLY) -> OpenFile | None:
    """Return the pack, locked until the file is closed; None if somebody has it or it is gone."""
    try:
        file = OpenFile(path, flags)
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EWOULDBLOCK):
            return None
        raise
    return file if os.fstat(file.fd).st_nlink else None
