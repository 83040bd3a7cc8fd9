"""Writing blobs: room first, then the bytes, verified, then the journal record that makes them exist."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import ParamSpec

import zstandard

from tvix.cas.digest import Digest, digest_of
from tvix.cas.disk import journal, large_files
from tvix.cas.disk.catalog import EMPTY_BLOBS, Catalog
from tvix.cas.disk.journal import encode
from tvix.cas.disk.large_files import LargeWriter
from tvix.cas.disk.location import IDENTITY, ZSTD, pack_location
from tvix.cas.disk.packs import OpenFile, PackWriter
from tvix.cas.disk.room import Room
from tvix.errors import DigestMismatch, ResourceExhausted, TvixError, Unavailable

P = ParamSpec("P")

_BATCH_BYTES = 2 * 1024 * 1024
"""Bytes gathered per hop to a thread."""
_WASTED_BYTES = 64 * 1024
"""An open pack longer than this is given up when half of it is dead."""
_MIN_COMPRESSED_BYTES = 256
"""Smaller blobs are stored as they are: zstd hardly shrinks them."""


class Writer:
    """The writing half of a store."""

    def __init__(self, catalog: Catalog, packs: PackWriter, room: Room, folder: Path, temp_prefix: str) -> None:
        self._catalog = catalog
        self._packs = packs
        self._room = room
        self._folder = folder
        self._temp_prefix = temp_prefix
        self._temp_numbers = itertools.count()
        config = catalog.config
        self._level = config.compression_level if config.compression == "zstd" else None
        self._always = config.fsync == "always"
        self._unflushed: list[str] = []
        self._written: deque[tuple[Digest, int]] = deque()
        """Files in place whose journal record this process has yet to take in."""

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        """See BlobStore.write."""
        if digest in EMPTY_BLOBS or self._catalog.use(digest) is not None:
            return
        if digest.size_bytes > self._catalog.config.small_blob_bytes:
            await self._write_large(digest, chunks)
            return
        parts: list[bytes] = []
        size_bytes = 0
        async for chunk in chunks:
            parts.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > digest.size_bytes:
                break
        (error,) = await self.put_many([(digest, b"".join(parts))])
        if error is not None:
            raise error

    async def _write_large(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        """Write a file of its own; a thread hashes and writes one batch while the next one comes in."""
        temp_path = Path(f"{self._temp_prefix}{next(self._temp_numbers)}")
        writer = LargeWriter(self._folder, temp_path, digest, self._level)
        hop = _Hop(self._catalog, self._explained)
        with await self._reserve(digest.size_bytes):
            try:
                await _feed(writer, hop, digest, chunks)
                await hop.start(self._commit_large, writer, digest)
                await hop.end()
            except BaseException:
                await hop.settle(writer.abort)
                raise
        self._after_write()

    def _commit_large(self, writer: LargeWriter, digest: Digest) -> None:
        """Blocks."""
        location = writer.finish(flush=self._always)
        path = large_files.path_of(self._folder, digest, location)
        try:
            self._catalog.journal.append(encode(journal.PUT, digest, location, self._catalog.now()), flush=self._always)
        except OSError:
            os.unlink(path)
            raise
        self._written.append((digest, location))

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        """See BlobStore.put_many. One hop, one append to the pack, one to the journal."""
        outcomes: list[TvixError | None] = [None] * len(blobs)
        absent = self._catalog.find_missing([digest for digest, _ in blobs])
        waiting = [number for number, (digest, _) in enumerate(blobs) if digest in absent]
        if not waiting:
            return outcomes
        wanted = [blobs[number] for number in waiting]
        try:
            with await self._reserve(sum(len(data) for _, data in wanted)), self._explained():
                errors = await self._catalog.run(self._store, wanted)
        except (ResourceExhausted, Unavailable) as error:
            errors = [error] * len(wanted)
        self._after_write()
        for number, outcome in zip(waiting, errors, strict=True):
            outcomes[number] = outcome
        return outcomes

    def _store(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        """Verify and store each blob for itself. Blocks; returns what is wrong with each."""
        errors: list[TvixError | None] = []
        small: dict[Digest, bytes] = {}
        for digest, data in blobs:
            actual = digest_of(data, digest.function)
            errors.append(None if actual == digest else DigestMismatch(digest, actual))
            if actual != digest:
                continue
            if digest.size_bytes <= self._catalog.config.small_blob_bytes:
                small[digest] = data
            else:
                self._store_large(digest, data)
        if small:
            self._store_small(small)
        return errors

    def _store_large(self, digest: Digest, data: bytes) -> None:
        temp_path = Path(f"{self._temp_prefix}{next(self._temp_numbers)}")
        writer = LargeWriter(self._folder, temp_path, digest, self._level)
        try:
            writer.add([data])
            self._commit_large(writer, digest)
        except BaseException:
            writer.abort()
            raise

    def _store_small(self, blobs: dict[Digest, bytes]) -> None:
        coded = [self._code(data) for data in blobs.values()]
        use = self._catalog.index.packs.get(self._packs.open_pack)
        if use is not None and use.end > _WASTED_BYTES and use.live_bytes * 2 < use.end:
            self._packs.seal()  # for the evictor, who cannot free what we hold
        pack, offsets = self._packs.append([stored for stored, _ in coded])
        if self._always:
            self._packs.flush()
        now = self._catalog.now()
        records = [
            encode(journal.PUT, digest, pack_location(pack, offset, len(stored), codec), now)
            for digest, (stored, codec), offset in zip(blobs, coded, offsets, strict=True)
        ]
        self._catalog.journal.append(b"".join(records), flush=self._always)

    def _code(self, data: bytes) -> tuple[bytes, int]:
        """Return the bytes to store and their codec: compressed only where that saves space."""
        if self._level is None or len(data) < _MIN_COMPRESSED_BYTES:
            return data, IDENTITY
        compressed = zstandard.ZstdCompressor(level=self._level).compress(data)
        return (compressed, ZSTD) if len(compressed) < 0.9 * len(data) else (data, IDENTITY)

    def _after_write(self) -> None:
        """Take in what was written; remove files that lost a race against the same blob; see to the
        flush."""
        # Taken before catching up, which thus covers the records of all of them.
        written = [self._written.popleft() for _ in range(len(self._written))]
        self._catalog.after_append()
        config, blobs = self._catalog.config, self._catalog.index.blobs
        for digest, location in written:
            path = large_files.path_of(self._folder, digest, location)
            if blobs.get(digest) != location:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            elif config.fsync == "interval":
                self._unflushed.append(path)
        if config.fsync == "interval":
            self._catalog.later("flush", config.fsync_interval_seconds, self._flush_soon)

    def _flush_soon(self) -> None:
        paths, self._unflushed = self._unflushed, []
        self._catalog.start(self._catalog.run(self.flush, paths))

    def flush(self, paths: Sequence[str] | None = None) -> None:
        """Make everything this process has written safe from power loss: data first, then the journal.

        Blocks. `paths` are the files not yet flushed, if the caller has taken charge of them.
        """
        paths = self._unflushed if paths is None else paths
        self._packs.flush()
        for path in paths:
            with suppress(FileNotFoundError):
                file = OpenFile(path)
                os.fdatasync(file.fd)
        for folder in {os.path.dirname(path) for path in paths}:
            with suppress(FileNotFoundError):
                large_files.flush_folder(folder)
        self._catalog.journal.flush()

    async def _reserve(self, size_bytes: int) -> AbstractContextManager[None]:
        with self._explained():
            return await self._room.reserve(size_bytes)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the operating system's refusals into ours."""
        try:
            yield
        except OSError as error:
            path = self._catalog.config.path
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ResourceExhausted(f"no space left for blobs in {path}: {error.strerror}; {self._room}") from error
            raise Unavailable(f"cannot write to {path}: {error}") from error


class _Hop:
    """At most one call at a time in a thread, with the next one being prepared meanwhile."""

    def __init__(self, catalog: Catalog, explained: Callable[[], AbstractContextManager[None]]) -> None:
        self._catalog = catalog
        self._explained = explained
        self._running: asyncio.Future[None] | None = None

    async def start(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Wait for the running call, then start this one. Raises what the former raised."""

        def call() -> None:
            with self._explained():
                function(*args, **kwargs)

        await self.end()
        self._running = self._catalog.start_thread(call)

    async def end(self) -> None:
        """Wait for the running call and raise what it raised."""
        if self._running is not None:
            await asyncio.shield(self._running)
            self._running = None

    async def settle(self, cleanup: Callable[[], None]) -> None:
        """Call `cleanup` once nothing runs any more, even if we are cancelled while waiting for that."""
        running = self._running
        if running is None or running.done():
            cleanup()
            return

        def after(done: asyncio.Future[None]) -> None:
            done.cancelled() or done.exception()  # looked at, so that nobody complains
            cleanup()

        running.add_done_callback(after)
        with suppress(Exception):
            await asyncio.shield(running)


async def _feed(writer: LargeWriter, hop: _Hop, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
    """Hand all chunks to the writer in batches; stop at the first byte too many."""
    batch: list[bytes] = []
    batch_bytes = size_bytes = 0
    async for chunk in chunks:
        batch.append(chunk)
        batch_bytes += len(chunk)
        if batch_bytes >= _BATCH_BYTES:
            size_bytes += batch_bytes
            await hop.start(writer.add, batch)
            batch, batch_bytes = [], 0
        if size_bytes + batch_bytes > digest.size_bytes:
            break
    await hop.start(writer.add, batch)
