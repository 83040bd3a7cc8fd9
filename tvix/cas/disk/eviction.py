"""The evictor: keeps the store under its limits. One process at a time, under the evictor's lock.

It chooses the longest unused blobs that nobody pins, says in the journal that they are gone, and only
then frees the space: files are removed, packs that hold nothing live are dropped, packs that hold
little are compacted (what lives is appended to the evictor's own pack). It also compacts the journal.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path

from tvix.cas.digest import Digest
from tvix.cas.disk import journal, large_files
from tvix.cas.disk.catalog import Catalog
from tvix.cas.disk.config import MIB, DiskConfig
from tvix.cas.disk.index import PackUse
from tvix.cas.disk.journal import RECORD_BYTES, encode, encode_note
from tvix.cas.disk.location import OWN_FILE, pack_location, pack_of, rounded, stored_bytes_of, unpack_location
from tvix.cas.disk.packs import OpenFile, PackWriter, lock_pack, read_exactly
from tvix.cas.disk.pins import Closures, Pins
from tvix.cas.disk.recovery import write_snapshot
from tvix.errors import CorruptData

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_LOCK_POLL_SECONDS = 2.0
_MIN_COMPACTED_JOURNAL_BYTES = 64 * MIB
_COMPACTION_BATCH_BYTES = 4 * MIB


def excess_bytes(config: DiskConfig, used_bytes: int, wanted_bytes: int, free_bytes: int) -> int:
    """Return how much has to go now: 0 below the high watermark, else down to the low one, and
    enough for what writers wait for."""
    excess = max(0, config.min_free_bytes - free_bytes + wanted_bytes)
    if config.max_size_bytes is not None:
        if used_bytes > config.high_watermark * config.max_size_bytes:
            excess = max(excess, used_bytes - int(config.low_watermark * config.max_size_bytes))
        excess = max(excess, used_bytes + wanted_bytes - config.max_size_bytes)
    return excess


def choose_victims(blobs: Mapping[Digest, int], kept: Set[Digest], excess: int) -> list[tuple[Digest, int]]:
    """Return the first blobs in order, with their locations, that together free `excess` bytes."""
    victims = []
    for digest, location in blobs.items():
        if excess <= 0:
            break
        if digest in kept:
            continue
        pack, _, stored_bytes, _ = unpack_location(location)
        excess -= rounded(stored_bytes) if pack == OWN_FILE else stored_bytes
        victims.append((digest, location))
    return victims


def choose_packs(packs: Mapping[int, PackUse], excess: int) -> list[int]:
    """Return the packs to compact: those at least half dead, and while that frees less than `excess`
    bytes, others, the most wasteful first."""
    chosen = []
    for pack, use in sorted(packs.items(), key=lambda item: item[1].live_bytes / max(1, item[1].end)):
        dead_bytes = use.end - use.live_bytes
        if dead_bytes > 0 and (dead_bytes * 2 >= use.end or excess > 0):
            chosen.append(pack)
            excess -= dead_bytes
    return chosen


class Evictor:
    """Evicts, and frees space, while it holds the evictor's lock."""

    def __init__(self, catalog: Catalog, packs: PackWriter, pins: Pins, closures: Closures) -> None:
        self._catalog = catalog
        self._packs = packs
        self._pins = pins
        self._closures = closures
        self._path = catalog.config.path
        self._lock_file: OpenFile | None = None
        self._looping = False
        self._busy = asyncio.Lock()

    def try_lock(self) -> bool:
        """Become the evictor, unless another process is; return whether we are."""
        if self._lock_file is None:
            file = OpenFile(self._path / "evictor.lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
                return False
            self._lock_file = file
        return True

    def unlock(self) -> None:
        """Let another process be the evictor."""
        self._lock_file = None

    async def run(self, free_bytes: Callable[[], int]) -> None:
        """Evict whenever it is needed, for ever. Waits for the lock first."""
        self._looping = True
        try:
            while not self.try_lock():  # noqa: ASYNC110 - the holder is another process
                await asyncio.sleep(_LOCK_POLL_SECONDS)
            while True:
                try:
                    await self.look(free_bytes())
                except OSError as error:
                    log.error("store=%s cannot evict: %s", self._path, error)
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._looping = False
            self.unlock()

    async def look(self, free_bytes: int) -> None:
        """Evict if a watermark is crossed or a writer waits; compact what is worth it."""
        self._catalog.catch_up()
        index = self._catalog.index
        wanted, index.wanted_bytes = index.wanted_bytes, 0
        excess = excess_bytes(self._catalog.config, index.used_bytes, wanted, free_bytes)
        async with self._busy:
            if excess > 0:
                await self._evict(excess)
            elif choose_packs(index.packs, 0):
                await self._free_packs(0)
            await self._compact_journal()

    async def make_room(self, excess: int) -> bool:
        """Evict `excess` bytes here and now, or down to the low watermark if that is more; False if
        another process is the evictor."""
        if not self.try_lock():
            return False
        config, used_bytes = self._catalog.config, self._catalog.index.used_bytes
        if config.max_size_bytes is not None:
            excess = max(excess, used_bytes - int(config.low_watermark * config.max_size_bytes))
        try:
            async with self._busy:
                await self._evict(excess)
        finally:
            if not self._looping:
                self.unlock()
        return True

    async def _evict(self, excess: int) -> None:
        catalog = self._catalog
        pins = await catalog.run(self._pins.load, catalog.now())
        kept = await self._closures.kept(pins)
        await catalog.write_uses()
        used_bytes = catalog.index.used_bytes
        victims = choose_victims(catalog.index.blobs, kept, excess)
        await self.remove(victims)
        await self._free_packs(catalog.index.used_bytes - (used_bytes - excess))
        log.info(
            "evicted blobs=%d pinned=%d used_bytes=%d before=%d",
            len(victims),
            len(kept),
            catalog.index.used_bytes,
            used_bytes,
        )

    async def remove(self, victims: list[tuple[Digest, int]]) -> None:
        """Say in the journal that blobs are gone, then remove the files of those that have one."""
        if not victims:
            return
        now = self._catalog.now()
        records = b"".join([encode(journal.EVICT, *victim, now) for victim in victims])
        try:
            await self._catalog.append(records)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Not even the journal has room: free some first. Who reads one of them now finds it missing.
            await self._catalog.run(self._unlink, victims)
            await self._catalog.append(records)
        await self._catalog.run(self._unlink, victims)

    def _unlink(self, victims: Iterable[tuple[Digest, int]]) -> None:
        for digest, location in victims:
            if pack_of(location) == OWN_FILE:
                with suppress(FileNotFoundError):
                    os.unlink(large_files.path_of(self._path / "blobs", digest, location))

    async def _free_packs(self, excess: int) -> None:
        """Compact the packs that are worth it, and drop them."""
        index = self._catalog.index
        chosen = choose_packs(index.packs, excess)
        if self._packs.open_pack in chosen:
            self._packs.seal()
        locked = {pack: file for pack in chosen if (file := lock_pack(self._pack_path(pack)))}
        if any(index.packs[pack].live_bytes for pack in locked):
            blobs = list(index.blobs.items())
            live = await self._catalog.run(_blobs_in, blobs, locked.keys())
            for batch in _batches(live, _COMPACTION_BATCH_BYTES):
                await self._catalog.run(self._move, batch, locked)
                self._catalog.after_append()
            if self._catalog.config.fsync != "never":
                await self._catalog.run(self._flush)
        await self._drop([pack for pack in locked if pack in index.packs and index.packs[pack].live_bytes == 0])
        await self._drop([pack for pack in chosen if pack in index.packs and not self._pack_path(pack).exists()])

    async def _drop(self, packs: list[int]) -> None:
        if packs:
            now = self._catalog.now()
            await self._catalog.append(b"".join([encode_note(journal.DROP_PACK, pack, now) for pack in packs]))
            for pack in packs:
                self._pack_path(pack).unlink(missing_ok=True)

    def _pack_path(self, pack: int) -> Path:
        return self._path / "packs" / str(pack)

    def _flush(self) -> None:
        self._packs.flush()
        self._catalog.journal.flush()

    def _move(self, blobs: list[tuple[Digest, int]], packs: Mapping[int, OpenFile]) -> None:
        """Append blobs to our own pack and say so. Blocks."""
        moved: list[tuple[Digest, int, bytes]] = []
        for digest, location in blobs:
            pack, offset, stored_bytes, codec = unpack_location(location)
            with suppress(CorruptData):
                moved.append((digest, codec, read_exactly(packs[pack].fd, stored_bytes, offset)))
        pack, offsets = self._packs.append([stored for _, _, stored in moved])
        now = self._catalog.now()
        records = [
            encode(journal.RELOCATE, digest, pack_location(pack, offset, len(stored), codec), now)
            for (digest, codec, stored), offset in zip(moved, offsets, strict=True)
        ]
        self._catalog.journal.append(b"".join(records))

    async def _compact_journal(self) -> None:
        index, file = self._catalog.index, self._catalog.journal
        if file.size_bytes < max(_MIN_COMPACTED_JOURNAL_BYTES, 3 * RECORD_BYTES * len(index.blobs)):
            return
        self._catalog.catch_up()
        blobs, packs, position = list(index.blobs.items()), dict(index.packs), file.position
        path = self._path / "journal.new"
        await self._catalog.run(write_snapshot, path, blobs, packs, flush=self._catalog.config.fsync != "never")
        await self._catalog.run(file.replace, path, position, self._catalog.now())
        self._catalog.catch_up()


def _blobs_in(blobs: list[tuple[Digest, int]], packs: Collection[int]) -> list[tuple[Digest, int]]:
    return [blob for blob in blobs if pack_of(blob[1]) in packs]


def _batches(blobs: list[tuple[Digest, int]], batch_bytes: int) -> Iterator[list[tuple[Digest, int]]]:
    batch: list[tuple[Digest, int]] = []
    size_bytes = 0
    for blob in blobs:
        batch.append(blob)
        size_bytes += stored_bytes_of(blob[1])
        if size_bytes >= batch_bytes:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
