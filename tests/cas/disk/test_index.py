"""The index: what records do to it."""

from __future__ import annotations

from tvix.cas.digest import Digest, digest_of
from tvix.cas.disk import journal
from tvix.cas.disk.index import Index, PackUse
from tvix.cas.disk.journal import BROKEN, Record
from tvix.cas.disk.location import IDENTITY, OWN_FILE, pack_location

ONE, TWO = Digest("sha256", "1" * 64, 100), Digest("sha256", "2" * 64, 5000)


def in_pack(pack: int, offset: int, stored: int) -> int:
    return pack_location(pack, offset, stored, IDENTITY)


def own_file(number: int, stored: int) -> int:
    return pack_location(OWN_FILE, number, stored, IDENTITY)


def apply(index: Index, *records: tuple[int, Digest | None, int]) -> int:
    return index.apply(Record(op, digest, location, 0.0) for op, digest, location in records)


def test_space_is_that_of_packs_and_of_blocks() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, in_pack(7, 0, 100)), (journal.PUT, TWO, own_file(3, 5000)))
    assert (index.blob_bytes, index.used_bytes) == (5100, 100 + 8192)
    assert index.packs == {7: PackUse(100, 100)}


def test_evicted_blob_leaves_its_pack_long_until_the_pack_is_dropped() -> None:
    index = Index()
    dropped: list[int] = []
    index.on_drop = dropped.append
    apply(index, (journal.PUT, ONE, in_pack(7, 0, 100)), (journal.EVICT, ONE, in_pack(7, 0, 100)))
    assert (index.blobs, index.used_bytes, index.packs) == ({}, 100, {7: PackUse(100, 0)})
    apply(index, (journal.DROP_PACK, None, 7))
    assert (index.used_bytes, index.packs, dropped) == (0, {}, [7])
    assert (index.evictions, index.evicted_bytes) == (1, 100)


def test_second_put_is_void() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, own_file(1, 100)), (journal.PUT, ONE, own_file(2, 100)))
    assert index.blobs == {ONE: own_file(1, 100)}
    assert index.used_bytes == 4096
    apply(index, (journal.PUT, ONE, in_pack(7, 50, 100)))
    assert index.packs == {7: PackUse(150, 0)}


def test_evict_of_another_place_is_void() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, own_file(2, 100)), (journal.EVICT, ONE, own_file(1, 100)))
    assert index.blobs == {ONE: own_file(2, 100)}
    assert index.evictions == 0


def test_touch_moves_to_the_end_and_of_an_absent_blob_does_nothing() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, own_file(1, 1)), (journal.PUT, TWO, own_file(2, 1)), (journal.TOUCH, ONE, 0))
    assert list(index.blobs) == [TWO, ONE]
    apply(index, (journal.TOUCH, digest_of(b"absent"), 0))
    assert list(index.blobs) == [TWO, ONE]


def test_relocation_keeps_the_order_of_use() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, in_pack(7, 0, 100)), (journal.PUT, TWO, own_file(2, 1)))
    apply(index, (journal.RELOCATE, ONE, in_pack(8, 5, 100)), (journal.RELOCATE, digest_of(b"absent"), 1))
    assert index.blobs == {ONE: in_pack(8, 5, 100), TWO: own_file(2, 1)}
    assert list(index.blobs) == [ONE, TWO]
    assert index.packs == {7: PackUse(100, 0), 8: PackUse(105, 100)}


def test_dropping_a_pack_drops_what_lies_in_it() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, in_pack(7, 0, 100)), (journal.PUT, TWO, own_file(2, 1)))
    apply(index, (journal.DROP_PACK, None, 7), (journal.DROP_PACK, None, 7))
    assert index.blobs == {TWO: own_file(2, 1)}
    assert (index.blob_bytes, index.used_bytes) == (TWO.size_bytes, 4096)


def test_stops_after_moved_and_says_how_far_it_came() -> None:
    index = Index()
    records = [BROKEN, Record(journal.MOVED, None, 0, 0.0), Record(journal.PUT, ONE, 1, 0.0)]
    assert index.apply(records) == 2
    assert index.blobs == {}
    assert index.apply(records[2:]) == 0


def test_room_wanted_is_the_largest_wish() -> None:
    index = Index()
    apply(index, (journal.ROOM, None, 10), (journal.ROOM, None, 5))
    assert index.wanted_bytes == 10


def test_clear_forgets_all() -> None:
    index = Index()
    apply(index, (journal.PUT, ONE, in_pack(7, 0, 100)), (journal.PUT, TWO, own_file(2, 1)))
    index.clear()
    assert (index.blobs, index.packs, index.used_bytes, index.blob_bytes) == ({}, {}, 0, 0)
