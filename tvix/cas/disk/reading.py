"""Reading blobs: at once where the kernel has the bytes in memory, else in threads."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import zstandard

from tvix.cas.digest import Digest
from tvix.cas.disk import large_files
from tvix.cas.disk.catalog import EMPTY_BLOBS, Catalog
from tvix.cas.disk.frames import FrameTable
from tvix.cas.disk.location import IDENTITY, OWN_FILE, PLACE_MASK, ZSTD, Location, pack_location, unpack_location
from tvix.cas.disk.packs import OpenFile, PackReader, read_cached, read_exactly
from tvix.errors import BlobNotFound, CorruptData, OutOfRange

_PIECES_PER_HOP = 2
"""Pieces of 1 MiB read per hop to a thread; a hop costs some 50 µs, memory counts per stream."""
_MAX_LOOP_BYTES = 1024 * 1024
"""Content that one call reads on the event loop, from the page cache."""
_MAX_GAP_BYTES = 4096
"""Blobs this near to each other are read together."""


class Reader:
    """The reading half of a store."""

    def __init__(self, catalog: Catalog, packs: PackReader, folder: Path) -> None:
        self._catalog = catalog
        self._packs = packs
        self._folder = folder
        self._decompressor = zstandard.ZstdDecompressor()

    async def read(self, digest: Digest, offset: int, limit: int | None) -> AsyncGenerator[bytes, None]:
        """See BlobStore.read."""
        located = None if digest in EMPTY_BLOBS else await self._locate(digest, offset, limit)
        start, end = _range(digest, offset, limit)
        if located is None or start == end:
            return
        file, location, first = located
        if location.pack != OWN_FILE:
            yield await self._read_packed(digest, file, location, start, end)
        elif isinstance(first, FrameTable):
            frames = large_files.read_frames(file, first, start, end)
            while (piece := await self._catalog.run(next, frames, None)) is not None:
                yield piece
        else:
            while True:
                for piece in first:
                    yield piece
                    start += len(piece)
                if start == end:
                    return
                first = await self._catalog.run(large_files.read_plain, file, start, end, _PIECES_PER_HOP)

    async def _locate(
        self, digest: Digest, offset: int, limit: int | None
    ) -> tuple[OpenFile, Location, FrameTable | list[bytes]]:
        """Open the blob's file and, if it is its own, read its table or first pieces in the same hop.

        BlobNotFound if it is absent or its file is gone.
        """
        for _ in range(3):  # it may be moved to another pack meanwhile, once or, hardly, twice
            packed = self._catalog.use(digest)
            if packed is None:
                break
            location = unpack_location(packed)
            try:
                if location.pack != OWN_FILE:
                    return self._packs.get(location.pack), location, []
                path = large_files.path_of(self._folder, digest, packed)
                start, end = _range(digest, offset, limit)
                file, first = await self._catalog.run(_open_and_read, path, digest, location, start, end)
                return file, location, first
            except (FileNotFoundError, CorruptData) as error:
                await self._catalog.lost(digest, packed, with_pack=isinstance(error, FileNotFoundError))
        raise BlobNotFound(digest)

    async def _read_packed(self, digest: Digest, file: OpenFile, location: Location, start: int, end: int) -> bytes:
        _, offset, stored_bytes, codec = location
        if codec == IDENTITY:
            offset, stored_bytes = offset + start, end - start
        data: bytes | bytearray | None = read_cached(file.fd, stored_bytes, offset)
        try:
            if data is None:
                data = await self._catalog.run(read_exactly, file.fd, stored_bytes, offset)
            if codec == IDENTITY:
                return bytes(data)
            return large_files.decompress(self._decompressor, data, digest.size_bytes)[start:end]
        except CorruptData:
            await self._catalog.lost(digest, pack_location(*location))
            raise BlobNotFound(digest) from None

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """See BlobStore.get_many."""
        self._catalog.find_missing(digests)
        blobs = self._catalog.index.blobs
        contents: list[bytes | None] = [None] * len(digests)
        waiting: list[int] = []
        packed: list[tuple[int, int]] = []
        size_bytes = 0
        for number, digest in enumerate(digests):
            location = blobs.get(digest)
            if location is None:
                contents[number] = b"" if digest in EMPTY_BLOBS else None
                continue
            size_bytes += digest.size_bytes
            if digest.size_bytes <= self._catalog.config.small_blob_bytes:
                packed.append((location & PLACE_MASK, number))
            else:
                waiting.append(number)
        if waiting or size_bytes > _MAX_LOOP_BYTES:
            waiting += [number for _, number in packed]
        else:
            packed.sort()
            for run in _runs(packed, digests, blobs):
                if not self._get_cached(run, digests, contents):
                    waiting += [number for number, _ in run]
        if waiting:
            await self._get_waiting(digests, contents, waiting)
        return contents

    def _get_cached(self, run: _Run, digests: Sequence[Digest], contents: list[bytes | None]) -> bool:
        """Fill in what one read of the page cache gives; False if the kernel would have to wait."""
        pack, start, _, _ = run[0][1]
        if pack == OWN_FILE:
            return False
        _, last_offset, last_bytes, _ = run[-1][1]
        try:
            data = read_cached(self._packs.get(pack).fd, last_offset + last_bytes - start, start)
        except FileNotFoundError:
            return False
        if data is None:
            return False
        view = memoryview(data)
        for number, (_, offset, stored_bytes, codec) in run:
            stored = view[offset - start : offset - start + stored_bytes]
            if codec == IDENTITY:
                contents[number] = bytes(stored)
                continue
            try:
                contents[number] = large_files.decompress(self._decompressor, stored, digests[number].size_bytes)
            except CorruptData:
                return False
        return True

    async def _get_waiting(self, digests: Sequence[Digest], contents: list[bytes | None], waiting: list[int]) -> None:
        """Fill in the contents at these numbers: all in one thread, what fails there one by one."""
        reads: list[tuple[Digest, OpenFile | str, Location] | None] = []
        for number in waiting:
            digest = digests[number]
            packed = self._catalog.index.blobs[digest]
            location = unpack_location(packed)
            path = large_files.path_of(self._folder, digest, packed)
            try:
                file = path if location.pack == OWN_FILE else self._packs.get(location.pack)
            except FileNotFoundError:
                reads.append(None)
            else:
                reads.append((digest, file, location))
        for number, content in zip(waiting, await self._catalog.run(_read_all, reads), strict=True):
            contents[number] = await self._get_one(digests[number]) if content is None else content

    async def _get_one(self, digest: Digest) -> bytes | None:
        try:
            async with aclosing(self.read(digest, 0, None)) as chunks:
                return b"".join([chunk async for chunk in chunks])
        except BlobNotFound:
            return None

    async def read_zstd(self, digest: Digest, offset: int) -> AsyncGenerator[bytes, None] | None:
        """See ZstdSource.read_zstd."""
        if digest in EMPTY_BLOBS:
            return None
        file, location, table = await self._locate(digest, offset, 0)
        start, _ = _range(digest, offset, None)
        if location.codec != ZSTD or (location.pack != OWN_FILE and offset):
            return None
        if location.pack != OWN_FILE:
            return self._send_packed(file, location)
        assert isinstance(table, FrameTable)
        return self._send_frames(file, table, start)

    async def _send_packed(self, file: OpenFile, location: Location) -> AsyncGenerator[bytes, None]:
        yield await self._catalog.run(read_exactly, file.fd, location.stored_bytes, location.offset)

    async def _send_frames(self, file: OpenFile, table: FrameTable, start: int) -> AsyncGenerator[bytes, None]:
        """Yield frames as they lie; of the first, what stands before `start` is cut off."""
        size_bytes = table.content_starts[-1]
        if start == size_bytes:
            return
        first = table.frame_at(start)
        if start > table.content_starts[first]:
            yield await self._catalog.run(_recompressed, file, table, start)
            first += 1
        for number in range(first, len(table.starts) - 1):
            position, end = table.starts[number], table.starts[number + 1]
            yield await self._catalog.run(read_exactly, file.fd, end - position, position)


_Run = list[tuple[int, Location]]
"""Numbers of blobs that lie next to each other in one pack, in order of their offsets."""


def _runs(packed: list[tuple[int, int]], digests: Sequence[Digest], blobs: Mapping[Digest, int]) -> Iterator[_Run]:
    """Yield sorted blobs, given as (place, number), in runs worth one read each."""
    run: _Run = []
    pack = end = -1
    for _, number in packed:
        location = unpack_location(blobs[digests[number]])
        if location.pack == OWN_FILE:  # from a time with another small_blob_bytes
            yield [(number, location)]
            continue
        if run and (location.pack != pack or location.offset - end > _MAX_GAP_BYTES):
            yield run
            run = []
        run.append((number, location))
        pack, end = location.pack, location.offset + location.stored_bytes
    if run:
        yield run


def _range(digest: Digest, offset: int, limit: int | None) -> tuple[int, int]:
    if not 0 <= offset <= digest.size_bytes:
        raise OutOfRange(f"offset {offset} is outside blob {digest}")
    end = digest.size_bytes if limit is None else min(digest.size_bytes, offset + max(0, limit))
    return offset, end


def _open_whole(path: str, stored_bytes: int) -> OpenFile:
    """Open a blob's file; CorruptData if it is not as long as the journal says."""
    file = OpenFile(path)
    if os.fstat(file.fd).st_size != stored_bytes:
        raise CorruptData(f"{path} is not {stored_bytes} bytes long")
    return file


def _open_and_read(
    path: str, digest: Digest, location: Location, start: int, end: int
) -> tuple[OpenFile, FrameTable | list[bytes]]:
    file = _open_whole(path, location.stored_bytes)
    if location.codec == ZSTD:
        return file, large_files.read_table(file, digest, location.stored_bytes)
    return file, large_files.read_plain(file, start, end, _PIECES_PER_HOP)


def _read_all(reads: Sequence[tuple[Digest, OpenFile | str, Location] | None]) -> list[bytes | None]:
    decompressor = zstandard.ZstdDecompressor()
    return [None if read is None else _read_one(decompressor, *read) for read in reads]


def _read_one(
    decompressor: zstandard.ZstdDecompressor, digest: Digest, where: OpenFile | str, location: Location
) -> bytes | None:
    """Return a whole blob, None if it cannot be had here."""
    try:
        file = _open_whole(where, location.stored_bytes) if isinstance(where, str) else where
        if location.codec == IDENTITY:
            return read_exactly(file.fd, location.stored_bytes, location.offset if location.pack else 0)
        if location.pack:
            data = read_exactly(file.fd, location.stored_bytes, location.offset)
            return large_files.decompress(decompressor, data, digest.size_bytes)
        table = large_files.read_table(file, digest, location.stored_bytes)
        return b"".join(large_files.read_frames(file, table, 0, digest.size_bytes))
    except (FileNotFoundError, CorruptData):
        return None


def _recompressed(file: OpenFile, table: FrameTable, start: int) -> bytes:
    end = table.content_starts[table.frame_at(start) + 1]
    content = b"".join(large_files.read_frames(file, table, start, end))
    return zstandard.ZstdCompressor(level=1).compress(content)
