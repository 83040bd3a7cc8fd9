"""Blobs in files of their own: written under a temporary name, renamed when whole and verified.

    blobs/<function>/<first two hex digits>/<hash>-<size>.<file number, hex>[.zst]

The methods of LargeWriter and all functions here block: call them in threads.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from tvix.cas.digest import FUNCTIONS, Digest
from tvix.cas.disk.frames import FRAME_BYTES, FrameTable, decode_table, encode_table, table_bytes
from tvix.cas.disk.location import IDENTITY, MAX_FILE_NUMBER, OWN_FILE, ZSTD, pack_location, unpack_location
from tvix.cas.disk.packs import OpenFile, read_exactly
from tvix.cas.interfaces import CHUNK_BYTES
from tvix.errors import CorruptData, DigestMismatch

_WORTHWHILE = 0.9
"""A blob whose first frame does not shrink to this fraction is stored as it is."""


def path_of(folder: Path, digest: Digest, location: int) -> str:
    """Return the path of a blob's file; `folder` is the store's `blobs`."""
    _, number, _, codec = unpack_location(location)
    end = ".zst" if codec == ZSTD else ""
    return f"{folder}/{digest.function}/{digest.hash[:2]}/{digest.hash}-{digest.size_bytes}.{number:x}{end}"


class LargeWriter:
    """Takes in one blob: hashes, compresses if it pays, writes. Ends by `finish` or `abort`."""

    def __init__(self, folder: Path, temp_path: Path, digest: Digest, compression_level: int | None) -> None:
        self._folder = folder
        self._temp_path = temp_path
        self._digest = digest
        self._hasher = FUNCTIONS[digest.function].new()
        self._size_bytes = 0
        self._compressor = None if compression_level is None else zstandard.ZstdCompressor(level=compression_level)
        self._pending = b""
        self._frames: list[tuple[int, int]] = []
        self._stored_bytes = 0
        self._file: OpenFile | None = None

    def add(self, chunks: Sequence[bytes]) -> None:
        """Take in bytes. DigestMismatch as soon as there are more than the digest says."""
        for chunk in chunks:
            self._size_bytes += len(chunk)
            self._hasher.update(chunk)
        if self._size_bytes > self._digest.size_bytes:
            raise DigestMismatch(self._digest, self._actual())
        if self._compressor is None:
            self._write(chunks)
        else:
            self._compress(self._compressor, chunks)

    def _actual(self) -> Digest:
        return Digest(self._digest.function, self._hasher.hexdigest(), self._size_bytes)

    def _compress(self, compressor: zstandard.ZstdCompressor, chunks: Sequence[bytes], *, last: bool = False) -> None:
        data = memoryview(b"".join((self._pending, *chunks)))
        done = 0
        while len(data) - done >= FRAME_BYTES or (last and done < len(data)):
            content = data[done : done + FRAME_BYTES]
            frame = compressor.compress(content)
            if not self._frames and len(frame) > _WORTHWHILE * len(content):
                self._compressor = None
                self._write([data])
                return
            self._write([frame])
            self._frames.append((len(frame), len(content)))
            done += len(content)
        self._pending = bytes(data[done:])

    def _open(self) -> OpenFile:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            try:
                self._file = OpenFile(self._temp_path, flags)
            except FileNotFoundError:  # somebody has emptied the store's folder
                self._temp_path.parent.mkdir(parents=True, exist_ok=True)
                self._file = OpenFile(self._temp_path, flags)
        return self._file

    def _write(self, buffers: Sequence[bytes | memoryview]) -> None:
        fd = self._open().fd
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                rest = rest[os.write(fd, rest) :]
            self._stored_bytes += len(buffer)

    def finish(self, *, flush: bool = False) -> int:
        """Verify, move the file to its place, return its location. DigestMismatch if it is another blob."""
        if (actual := self._actual()) != self._digest:
            raise DigestMismatch(self._digest, actual)
        if self._compressor is not None:
            self._compress(self._compressor, (), last=True)
        if self._compressor is not None:
            self._write([encode_table(self._frames)])
        if flush:
            os.fdatasync(self._open().fd)
        codec = IDENTITY if self._compressor is None else ZSTD
        location = pack_location(OWN_FILE, secrets.randbelow(MAX_FILE_NUMBER + 1), self._stored_bytes, codec)
        path = path_of(self._folder, self._digest, location)
        move_into_place(self._temp_path, path)
        if flush:
            flush_folder(os.path.dirname(path))
        return location

    def abort(self) -> None:
        """Leave nothing behind."""
        self._temp_path.unlink(missing_ok=True)


def move_into_place(source: Path, path: str) -> None:
    """Rename, making the folder if it is the first file there."""
    try:
        os.rename(source, path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(source, path)


def flush_folder(path: str) -> None:
    """Make names in a folder safe from power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_table(file: OpenFile, digest: Digest, stored_bytes: int) -> FrameTable:
    """Return the frame table of a compressed file."""
    length = table_bytes(digest.size_bytes)
    tail = read_exactly(file.fd, length, stored_bytes - length) if stored_bytes >= length else b""
    return decode_table(tail, stored_bytes, digest.size_bytes)


def read_frames(file: OpenFile, table: FrameTable, start: int, end: int) -> Iterator[bytes]:
    """Yield the content from `start` to `end` of a compressed file, a piece per frame."""
    decompressor = zstandard.ZstdDecompressor()
    while start < end:
        number = table.frame_at(start)
        content_start, content_end = table.content_starts[number], table.content_starts[number + 1]
        frame = read_exactly(file.fd, table.starts[number + 1] - table.starts[number], table.starts[number])
        content = decompress(decompressor, frame, content_end - content_start)
        last = min(end, content_end)
        yield content if last - start == len(content) else content[start - content_start : last - content_start]
        start = last


def decompress(
    decompressor: zstandard.ZstdDecompressor, frame: bytes | bytearray | memoryview, size_bytes: int
) -> bytes:
    """Return a frame's content; CorruptData unless it is `size_bytes` long."""
    try:
        content = decompressor.decompress(frame, max_output_size=size_bytes)
    except zstandard.ZstdError as error:
        raise CorruptData(f"a stored zstd frame cannot be read: {error}") from error
    if len(content) != size_bytes:
        raise CorruptData(f"a stored zstd frame holds {len(content)} bytes instead of {size_bytes}")
    return content


def read_blob(file: OpenFile, digest: Digest, location: int) -> Iterator[bytes]:
    """Yield a whole blob, wherever it lies and however it is stored; `file` is its pack or its own."""
    pack, offset, stored_bytes, codec = unpack_location(location)
    if codec == IDENTITY:
        start = offset if pack else 0
        for position in range(start, start + stored_bytes, CHUNK_BYTES):
            yield read_exactly(file.fd, min(CHUNK_BYTES, start + stored_bytes - position), position)
    elif pack:
        frame = read_exactly(file.fd, stored_bytes, offset)
        yield decompress(zstandard.ZstdDecompressor(), frame, digest.size_bytes)
    else:
        yield from read_frames(file, read_table(file, digest, stored_bytes), 0, digest.size_bytes)


def read_plain(file: OpenFile, start: int, end: int, pieces: int) -> list[bytes]:
    """Return the bytes from `start` on, in at most `pieces` pieces of CHUNK_BYTES."""
    ends = range(start, end, CHUNK_BYTES)[:pieces]
    return [read_exactly(file.fd, min(CHUNK_BYTES, end - position), position) for position in ends]
