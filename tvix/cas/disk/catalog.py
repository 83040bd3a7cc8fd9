"""One process's current knowledge of the store: index plus journal, and the uses it has yet to note.

The index changes only here, on the event loop, and only by what is read from the journal: so every
process takes in the same changes in the same order. Whoever appends catches up afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from tvix.cas.digest import EMPTY, Digest
from tvix.cas.disk import journal
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.index import Index
from tvix.cas.disk.journal import RECORD_BYTES, Journal, encode, encode_note
from tvix.cas.disk.location import OWN_FILE, unpack_location

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

EMPTY_BLOBS = frozenset(EMPTY.values())
_TOUCH_DELAY_SECONDS = 0.5
"""Uses are written to the journal together, this long after the first; until then an evictor in
another process does not know of them."""


class Catalog:
    """Index, journal and threads, shared by the parts of a store. For one event loop."""

    def __init__(self, config: DiskConfig, file: Journal, index: Index, now: Callable[[], float]) -> None:
        self.config = config
        self.journal = file
        self.index = index
        self.now = now
        self.threads = ThreadPoolExecutor(8, thread_name_prefix="tvix-disk")
        self._recent: set[Digest] = set()
        self._unnoted: set[Digest] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in a thread of the store's own."""
        return await self.start_thread(function, *args, **kwargs)

    def start_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Begin what `run` does."""
        call = partial(function, **kwargs) if kwargs else function
        return asyncio.get_running_loop().run_in_executor(self.threads, call, *args)

    def catch_up(self) -> None:
        """Take in what any process has appended to the journal. Cheap when there is nothing new."""
        if self.journal.has_news():
            self.replay()

    def replay(self, *, bulk: bool = False) -> None:
        """Read the journal to its end."""
        while data := self.journal.read_new(bulk=bulk):
            if taken := self.index.apply(journal.decode(data)):
                self.journal.unread(len(data) // RECORD_BYTES - taken)
                if not self.journal.follow():
                    self.index.clear()

    def _check_removed(self) -> None:
        if self.journal.was_removed() and not self.journal.follow():
            self.index.clear()
            self.replay()

    async def append(self, records: bytes) -> None:
        """Append to the journal and take it in."""
        await self.run(self.journal.append, records, flush=self.config.fsync == "always")
        self.after_append()

    def after_append(self) -> None:
        """Take in what a thread of ours has appended."""
        self.replay()
        self._check_removed()

    def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return the absent ones; note the use of the others."""
        self.catch_up()
        wanted = set(digests)
        # set.difference(dict) looks up with the hashes that the set has already computed.
        missing = wanted.difference(self.index.blobs)
        used = wanted.difference(missing, self._recent) if missing else wanted.difference(self._recent)
        if used:
            self.note_use(used)
        return missing - EMPTY_BLOBS if missing else missing

    def use(self, digest: Digest) -> int | None:
        """Return the blob's location, None if absent; note the use."""
        self.catch_up()
        location = self.index.blobs.get(digest)
        if location is not None and digest not in self._recent:
            self.note_use({digest})
        return location

    def note_use(self, digests: set[Digest]) -> None:
        """Remember that present blobs were used; the journal is told later, in one go."""
        self._unnoted |= digests
        if self.config.touch_seconds > 0:
            self._recent |= digests
            self.later("forget", self.config.touch_seconds, self._recent.clear)
        self.later("touch", _TOUCH_DELAY_SECONDS, lambda: self.start(self.write_uses()))

    async def write_uses(self) -> None:
        """Append the uses not yet in the journal."""
        used, self._unnoted = self._unnoted, set()
        blobs, now = self.index.blobs, self.now()
        if used:
            await self.append(b"".join([encode(journal.TOUCH, digest, 0, now) for digest in used if digest in blobs]))

    def later(self, name: str, delay_seconds: float, action: Callable[[], object]) -> None:
        """Call `action` after a while, unless it is due already under this name."""
        if name not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_later(delay_seconds, self._due, name, action)

    def _due(self, name: str, action: Callable[[], object]) -> None:
        del self._timers[name]
        action()

    def start(self, job: Coroutine[None, None, None]) -> None:
        """Run a background job; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("store=%s cannot write down: %s", self.config.path, error)

    async def lost(self, digest: Digest, location: int, *, with_pack: bool = False) -> None:
        """Strike out a blob whose bytes are gone from the disk; `with_pack`: with all in its pack."""
        self.catch_up()
        if self.index.blobs.get(digest) != location:
            return
        log.warning("digest=%s is gone from the disk", digest)
        pack = unpack_location(location).pack
        if with_pack and pack != OWN_FILE:
            await self.append(encode_note(journal.DROP_PACK, pack, self.now()))
        else:
            await self.append(encode(journal.EVICT, digest, location, self.now()))

    async def close(self) -> None:
        """Write what is due and end the threads."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        while self._jobs:
            await asyncio.wait(self._jobs)
        await self.write_uses()
        await asyncio.to_thread(self.threads.shutdown)
