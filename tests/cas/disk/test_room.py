"""Reservations; the hard limit is tested whole in test_eviction.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tvix.cas.disk.catalog import Catalog
from tvix.cas.disk.config import MIB, DiskConfig
from tvix.cas.disk.index import Index
from tvix.cas.disk.journal import Journal
from tvix.cas.disk.room import Room
from tvix.errors import ResourceExhausted


class Evictor:
    """Frees what it is told to, or says that another process has to."""

    def __init__(self, index: Index, *, here: bool, freed_bytes: int = 0) -> None:
        self.index = index
        self.here = here
        self.freed_bytes = freed_bytes
        self.asked: list[int] = []

    async def make_room(self, excess: int) -> bool:
        self.asked.append(excess)
        self.index.file_bytes -= self.freed_bytes
        return self.here


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    file = Journal(tmp_path / "journal")
    config = DiskConfig(tmp_path, max_size_bytes=10 * MIB, min_free_bytes=0, room_wait_seconds=0.1)
    catalog = Catalog(config, file, Index(), lambda: 1000.0)
    yield catalog
    await catalog.close()
    file.close()


async def test_reservations_add_up_and_end(catalog: Catalog) -> None:
    evictor = Evictor(catalog.index, here=True)
    room = Room(catalog, evictor.make_room)
    with await room.reserve(6 * MIB):
        assert room.reserved_bytes == 6 * MIB
        with await room.reserve(4 * MIB):
            assert evictor.asked == []
        with pytest.raises(ResourceExhausted, match=f"no room for {5 * MIB} bytes"):
            await room.reserve(5 * MIB)
        assert evictor.asked == [MIB] * 3
    assert room.reserved_bytes == 0


async def test_room_is_made_by_evicting_here(catalog: Catalog) -> None:
    catalog.index.file_bytes = 9 * MIB
    evictor = Evictor(catalog.index, here=True, freed_bytes=MIB)
    room = Room(catalog, evictor.make_room)
    with await room.reserve(3 * MIB):
        assert evictor.asked == [2 * MIB, MIB]


async def test_another_process_is_asked_for_what_is_needed(catalog: Catalog) -> None:
    catalog.index.file_bytes = 9 * MIB
    room = Room(catalog, Evictor(catalog.index, here=False).make_room)
    with pytest.raises(ResourceExhausted, match="9437184 bytes used, 0 being written, max_size_bytes 10485760"):
        await room.reserve(3 * MIB)
    assert catalog.index.wanted_bytes == 3 * MIB


async def test_free_space_is_asked_for_again_after_a_while(tmp_path: Path) -> None:
    times = iter([0.0, 0.5, 2.0, 3.0])
    file = Journal(tmp_path / "journal")
    catalog = Catalog(DiskConfig(tmp_path), file, Index(), lambda: next(times))
    room = Room(catalog, Evictor(catalog.index, here=True).make_room)
    free = room.free_bytes()
    assert room.free_bytes(1000) == free - 1000
    room._free_bytes = 0
    assert room.free_bytes() > 0
    await catalog.close()
    file.close()
