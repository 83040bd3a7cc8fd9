"""Room on disk for a write: the hard limit and the file system's floor, with what is under way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tvix.cas.disk import journal
from tvix.cas.disk.catalog import Catalog
from tvix.cas.disk.journal import encode_note
from tvix.errors import ResourceExhausted

_POLL_SECONDS = 0.02
_EVICTIONS = 3
"""How often to try: what one eviction frees may lie in packs that others still write to."""
_FREE_CHECK_SECONDS = 1.0
_FREE_CHECK_BYTES = 16 * 1024 * 1024
"""The file system is asked for its free space after so much time or so many bytes."""


class Room:
    """Reservations of one process. What other processes have under way is not counted: the low
    watermark leaves space for it."""

    def __init__(self, catalog: Catalog, evict_here: Callable[[int], Awaitable[bool]]) -> None:
        """`evict_here` makes room of so many bytes; False: another process's evictor has to do it."""
        self._catalog = catalog
        self._evict_here = evict_here
        self.reserved_bytes = 0
        self._free_bytes = 0
        self._free_until = 0.0

    def __str__(self) -> str:
        config, used = self._catalog.config, self._catalog.index.used_bytes
        return (
            f"{used} bytes used, {self.reserved_bytes} being written, max_size_bytes {config.max_size_bytes}, "
            f"min_free_bytes {config.min_free_bytes}"
        )

    def lacking_bytes(self, wanted_bytes: int) -> int:
        """Return how many bytes would have to go for `wanted_bytes` more; 0 or less: it fits."""
        config = self._catalog.config
        coming = self.reserved_bytes + wanted_bytes
        lacking = config.min_free_bytes + coming - self.free_bytes(wanted_bytes)
        if config.max_size_bytes is not None:
            lacking = max(lacking, self._catalog.index.used_bytes + coming - config.max_size_bytes)
        return lacking

    def free_bytes(self, wanted_bytes: int = 0) -> int:
        """Return what the file system has free, a little out of date."""
        self._free_bytes -= wanted_bytes
        now = self._catalog.now()
        if not now < self._free_until or wanted_bytes > _FREE_CHECK_BYTES:
            status = os.statvfs(self._catalog.config.path)
            self._free_bytes = status.f_bavail * status.f_frsize
            self._free_until = now + _FREE_CHECK_SECONDS
        return self._free_bytes

    async def reserve(self, size_bytes: int) -> AbstractContextManager[None]:
        """Wait until there is room, evicting; return what holds it. ResourceExhausted if there is none."""
        if self.lacking_bytes(size_bytes) > 0:
            await self._wait(size_bytes)
        self.reserved_bytes += size_bytes
        return self._held(size_bytes)

    @contextmanager
    def _held(self, size_bytes: int) -> Iterator[None]:
        try:
            yield
        finally:
            self.reserved_bytes -= size_bytes

    async def _wait(self, size_bytes: int) -> None:
        config = self._catalog.config
        if config.max_size_bytes is None or size_bytes <= config.max_size_bytes:
            for _ in range(_EVICTIONS):
                if not await self._evict_here(self.lacking_bytes(size_bytes)):
                    await self._ask(size_bytes)
                if self._has(size_bytes):
                    return
        raise ResourceExhausted(f"no room for {size_bytes} bytes in {config.path}: {self}")

    def _has(self, size_bytes: int) -> bool:
        self._catalog.catch_up()
        self._free_until = 0.0
        return self.lacking_bytes(size_bytes) <= 0

    async def _ask(self, size_bytes: int) -> None:
        """Have another process's evictor make room, for a while."""
        wanted = encode_note(journal.ROOM, self.reserved_bytes + size_bytes, self._catalog.now())
        await self._catalog.append(wanted)
        for _ in range(int(self._catalog.config.room_wait_seconds / _EVICTIONS / _POLL_SECONDS)):
            if self._has(size_bytes):
                return
            await asyncio.sleep(_POLL_SECONDS)
