"""The disk store itself: puts the parts together and forwards to them.

config     settings                       catalog    index + journal of one process
location   where a blob lies (pure)       reading    BlobStore.read, get_many
index      all blobs (pure)               writing    BlobStore.write, put_many
journal    the file all processes share   room       reservations, hard limit
packs      many small blobs per file      pins       what must not be evicted
large_files, frames   a file per blob     eviction   LRU, compaction
recovery   starting after a crash
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from tvix.cas.digest import Digest
from tvix.cas.disk import recovery
from tvix.cas.disk.catalog import Catalog
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.eviction import Evictor
from tvix.cas.disk.packs import PackReader, PackWriter
from tvix.cas.disk.pins import Closures, Pin, PinFiles, Pins
from tvix.cas.disk.reading import Reader
from tvix.cas.disk.recovery import Opened
from tvix.cas.disk.room import Room
from tvix.cas.disk.writing import Writer
from tvix.cas.interfaces import BlobStore, PinningStore
from tvix.errors import TvixError

_TICK_SECONDS = 0.25
"""How often an idle process looks at the journal: whoever asks it next would wait for it to catch up, some 3 µs a
blob, and packs that are gone should be closed."""
_PIN_FILE_SECONDS = 1.0
"""A pin that lasts longer gets a file, for other processes' evictors and the next start."""


@runtime_checkable
class ZstdSource(Protocol):
    """A store that may hold blobs compressed, and can hand them out as they are."""

    async def read_zstd(self, digest: Digest, *, offset: int = 0) -> AsyncGenerator[bytes, None] | None:
        """Return the blob's content from `offset` on as zstd frames, in pieces of about 1 MiB of content.

        None: the blob is not stored so; read it and compress. Raises BlobNotFound and OutOfRange like
        BlobStore.read. Use what is returned under `aclosing`.
        """


class DiskStatistics(NamedTuple):
    """Figures of a store, as this process knows them."""

    blobs: int
    blob_bytes: int
    """Sum of the blobs' sizes."""
    used_bytes: int
    """Space on disk, whole blocks, dead parts of packs included."""
    reserved_bytes: int
    """Being written by this process."""
    max_size_bytes: int | None
    free_bytes: int
    """Of the file system."""
    packs: int
    journal_bytes: int
    evictions: int
    """Blobs that went, whoever removed them, since this process opened the store."""
    evicted_bytes: int


class DiskBlobStore(BlobStore, PinningStore):
    """Blobs on a local disk, shared by all processes that open the same folder. See DiskConfig.

    Made by `open`. One process should run `evict_loop`. For one event loop.
    """

    def __init__(self, opened: Opened, config: DiskConfig, now: Callable[[], float]) -> None:
        """Use `open`."""
        self.config = config
        self._opened = opened
        self._closed = False
        self._catalog = Catalog(config, opened.journal, opened.index, now)
        self._pack_reader = PackReader(config.path / "packs")
        opened.index.on_drop = self._pack_reader.forget
        self._pack_writer = PackWriter(config.path / "packs", config.pack_bytes, flushed=config.fsync != "never")
        self._pins = Pins(PinFiles(config.path / "pins"))
        self._reader = Reader(self._catalog, self._pack_reader, config.path / "blobs")
        self._evictor = Evictor(self._catalog, self._pack_writer, self._pins, Closures(self._reader.get_many))
        self._room = Room(self._catalog, self._evictor.make_room)
        self._writer = Writer(self._catalog, self._pack_writer, self._room, config.path / "blobs", opened.temp_prefix)
        self._tick()

    def __repr__(self) -> str:
        return f"<DiskBlobStore {self.config.path} {len(self._catalog.index.blobs)} blobs>"

    @classmethod
    async def open(cls, config: DiskConfig, *, now: Callable[[], float] = time.time) -> DiskBlobStore:
        """Open the store in `config.path`, which is made if need be; takes ~2 s per million blobs.

        `now` gives seconds since the epoch. OSError if the folder cannot be used.
        """
        opened = await asyncio.to_thread(recovery.open_folder, config, now, recovery.boot_number())
        return cls(opened, config, now)

    def _tick(self) -> None:
        self._catalog.catch_up()
        self._catalog.later("tick", _TICK_SECONDS, self._tick)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return self._catalog.find_missing(digests)

    def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._reader.read(digest, offset, limit)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        await self._writer.write(digest, chunks)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        return await self._reader.get_many(digests)

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        return await self._writer.put_many(blobs)

    async def read_zstd(self, digest: Digest, *, offset: int = 0) -> AsyncGenerator[bytes, None] | None:
        """See ZstdSource."""
        return await self._reader.read_zstd(digest, offset)

    async def pin(self, owner: str, roots: Collection[Digest], trees: Collection[Digest], until: float) -> None:
        self._pins.put(Pin(owner, until, tuple(roots), tuple(trees)))
        catalog = self._catalog
        catalog.later("pins", _PIN_FILE_SECONDS, lambda: catalog.start(catalog.run(self._pins.write_young)))

    async def unpin(self, owner: str) -> None:
        # Owners of other processes, or of one before this, have files that we do not know of.
        if self._pins.forget(owner):
            await self._catalog.run(self._pins.remove, owner)

    async def delete(self, digests: Collection[Digest]) -> int:
        """Remove blobs, pinned or not; return how many there were. For administrators and tests."""
        self._catalog.catch_up()
        blobs = self._catalog.index.blobs
        present = [(digest, blobs[digest]) for digest in set(digests) if digest in blobs]
        await self._evictor.remove(present)
        return len(present)

    def digests(self) -> list[Digest]:
        """Return all blobs, the longest unused first."""
        self._catalog.catch_up()
        return list(self._catalog.index.blobs)

    def follow(self, tell: Callable[[Digest], object]) -> None:
        """Call `tell` for each blob that comes, by whatever process; evicted ones may come again. One follower."""
        self._catalog.index.on_put = tell

    def catch_up(self) -> None:
        """Take in what other processes have stored. Cheap when there is nothing new."""
        self._catalog.catch_up()

    async def evict_loop(self) -> None:
        """Keep the store under its watermarks, for ever: run it as a task in one process at least.

        Waits while another process does the same, and takes over when that one is gone.
        """
        await self._evictor.run(self._room.free_bytes)

    async def evict_now(self) -> None:
        """Do at once what `evict_loop` does now and then."""
        if self._evictor.try_lock():
            await self._evictor.look(self._room.free_bytes())

    def statistics(self) -> DiskStatistics:
        """Return the store's present figures. Cheap."""
        self._catalog.catch_up()
        index = self._catalog.index
        return DiskStatistics(
            blobs=len(index.blobs),
            blob_bytes=index.blob_bytes,
            used_bytes=index.used_bytes,
            reserved_bytes=self._room.reserved_bytes,
            max_size_bytes=self.config.max_size_bytes,
            free_bytes=self._room.free_bytes(),
            packs=len(index.packs),
            journal_bytes=self._opened.journal.size_bytes,
            evictions=index.evictions,
            evicted_bytes=index.evicted_bytes,
        )

    async def close(self) -> None:
        """Write what is due and let go of everything. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._pins.any_young:
            await self._catalog.run(self._pins.write_young)
        await self._catalog.close()
        self._evictor.unlock()
        now = self._catalog.now()
        await asyncio.to_thread(recovery.close_folder, self._opened, self.config, self._writer.flush, now)
        self._pack_writer.close()
        self._pack_reader.close()
