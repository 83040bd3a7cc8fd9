"""Eviction: limits, order of use, pins, freeing space in packs, compacting the journal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.contracts.blob_store import chunked, random_bytes
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.disk import DiskBlobStore, DiskConfig, eviction
from tvix.cas.disk.eviction import choose_packs, choose_victims, excess_bytes
from tvix.cas.disk.index import PackUse
from tvix.cas.disk.location import OWN_FILE, pack_location
from tvix.cas.interfaces import read_whole
from tvix.errors import ResourceExhausted

MIB = 1024 * 1024
KIB = 1024


@asynccontextmanager
async def opened(path: Path, **settings: object) -> AsyncIterator[DiskBlobStore]:
    settings = {"max_size_bytes": 4 * MIB, "touch_seconds": 0.0, "min_free_bytes": 0, "fsync": "never", **settings}
    store = await DiskBlobStore.open(DiskConfig(path=path, **settings))  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


async def write(store: DiskBlobStore, number: int, size_bytes: int) -> Digest:
    data = random_bytes(size_bytes, number)
    digest = digest_of(data)
    await store.write(digest, chunked(data))
    return digest


def disk_bytes(path: Path) -> int:
    return sum(
        file.stat().st_size for name in ("packs", "blobs") for file in (path / name).rglob("*") if file.is_file()
    )


@pytest.mark.parametrize(
    ("used", "wanted", "free", "excess", "reason"),
    [
        (90, 0, 1000, 0, "below the high watermark"),
        (96, 0, 1000, 16, "above it: down to the low one"),
        (90, 15, 1000, 5, "a writer waits for room up to the hard limit"),
        (50, 0, 7, 3, "the file system has less than its floor"),
        (50, 5, 12, 3, "a writer waits and the file system is nearly full"),
    ],
)
def test_excess(used: int, wanted: int, free: int, excess: int, reason: str) -> None:
    config = DiskConfig(Path("x"), high_watermark=0.95, low_watermark=0.8, min_free_bytes=10)
    object.__setattr__(config, "max_size_bytes", 100)
    assert excess_bytes(config, used, wanted, free) == excess, reason


def test_unlimited_store_has_no_excess() -> None:
    assert excess_bytes(DiskConfig(Path("x"), min_free_bytes=10), 10**15, 0, 11) == 0


def test_victims_are_the_longest_unused_that_are_not_kept() -> None:
    blobs = {
        Digest("sha256", f"{number}" * 64, 100): pack_location(OWN_FILE if number % 2 else 9, number, 100, 0)
        for number in range(6)
    }
    order = list(blobs)
    assert choose_victims(blobs, set(), 0) == []
    assert [digest for digest, _ in choose_victims(blobs, {order[0]}, 4097)] == order[1:3]
    assert [digest for digest, _ in choose_victims(blobs, set(), 101)] == order[:2]
    assert [digest for digest, _ in choose_victims(blobs, set(order), 1)] == []


def test_packs_are_compacted_when_half_dead_or_when_space_is_short() -> None:
    packs = {1: PackUse(100, 100), 2: PackUse(100, 50), 3: PackUse(100, 90), 4: PackUse(100, 0), 5: PackUse(100, 80)}
    assert choose_packs(packs, 0) == [4, 2]
    assert choose_packs(packs, 160) == [4, 2, 5]
    assert choose_packs(packs, 10_000) == [4, 2, 5, 3]


@pytest.mark.parametrize("size", [20 * KIB, 300 * KIB], ids=["packs", "files"])
async def test_store_stays_under_its_limit_and_keeps_what_was_used_last(tmp_path: Path, size: int) -> None:
    async with opened(tmp_path) as store:
        digests = [await write(store, number, size) for number in range(3 * 4 * MIB // size)]
        assert store.statistics().used_bytes <= 4 * MIB
        await store.evict_now()
        assert disk_bytes(tmp_path) <= 4 * MIB
        missing = await store.find_missing(digests)
        kept = [digest for digest in digests if digest not in missing]
        assert kept == digests[-len(kept) :]
        assert len(kept) * size > 3 * MIB
        for digest in kept:
            assert digest_of(await read_whole(store, digest)) == digest


async def test_used_blobs_outlive_unused_ones_whichever_process_used_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        digests = [await write(store, number, 300 * KIB) for number in range(12)]
        await other.find_missing(digests[:1])
        await other.get_many(digests[1:2])
        await read_whole(other, digests[2])
        await other._catalog.write_uses()
        await write(store, 99, 600 * KIB)
        assert await store.find_missing(digests[:3]) == set()
        assert await store.find_missing(digests[3:4]) == set(digests[3:4])


async def test_eviction_shows_in_other_processes(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        digests = [await write(store, number, 300 * KIB) for number in range(20)]
        assert await other.find_missing(digests) == await store.find_missing(digests) != set()
        assert other.statistics().evictions > 5
        assert other.statistics().used_bytes == store.statistics().used_bytes


async def test_pinned_blobs_and_trees_are_never_evicted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file, root = await write(store, 1, 300 * KIB), await write(store, 2, 300 * KIB)
        child = re_pb2.Directory(files=[re_pb2.FileNode(name="file", digest=digest_to_proto(file))])
        child_bytes = child.SerializeToString()
        child_digest = digest_of(child_bytes)
        tree = re_pb2.Directory(directories=[re_pb2.DirectoryNode(name="d", digest=digest_to_proto(child_digest))])
        tree_bytes = tree.SerializeToString()
        await store.put_many([(child_digest, child_bytes), (digest_of(tree_bytes), tree_bytes)])
        pinned = [file, root, child_digest, digest_of(tree_bytes)]
        await store.pin("operation", [root], [digest_of(tree_bytes)], until=store._catalog.now() + 100)
        for number in range(10, 30):
            await write(store, number, 300 * KIB)
        assert await store.find_missing(pinned) == set()
        await store.unpin("operation")
        await store.unpin("operation")
        for number in range(30, 50):
            await write(store, number, 300 * KIB)
        assert await store.find_missing(pinned) >= {file, root}


async def test_full_of_pinned_blobs_is_resource_exhausted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digests = [await write(store, number, 300 * KIB) for number in range(13)]
        await store.pin("operation", digests, [], until=store._catalog.now() + 100)
        with pytest.raises(ResourceExhausted, match=r"no room for 307200 bytes .*max_size_bytes 4194304"):
            await write(store, 99, 300 * KIB)
        (error,) = await store.put_many([(digest_of(random_bytes(300 * KIB)[1:]), random_bytes(300 * KIB)[1:])])
        assert isinstance(error, ResourceExhausted)
        assert await store.find_missing(digests) == set()
        assert store.statistics().reserved_bytes == 0


async def test_blob_larger_than_the_store_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await write(store, 1, 300 * KIB)
        with pytest.raises(ResourceExhausted):
            await write(store, 2, 5 * MIB)
        assert await store.find_missing([digest]) == set()


async def test_file_system_floor_is_respected(tmp_path: Path) -> None:
    async with opened(tmp_path, min_free_bytes=2**60, max_size_bytes=None) as store:
        with pytest.raises(ResourceExhausted, match="min_free_bytes"):
            await write(store, 1, 300 * KIB)


async def test_writers_under_way_are_counted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        resume = asyncio.Event()
        data = random_bytes(3 * MIB)

        async def slow() -> AsyncIterator[bytes]:
            yield data[:MIB]
            await resume.wait()
            yield data[MIB:]

        async with asyncio.TaskGroup() as group:
            group.create_task(store.write(digest_of(data), slow()))
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted, match="3145728 being written"):
                await write(store, 1, 2 * MIB)
            resume.set()
        assert await store.find_missing([digest_of(data)]) == set()
        assert store.statistics().reserved_bytes == 0


async def test_another_processes_evictor_makes_room_on_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as evictor, opened(tmp_path) as writer:
        loop = asyncio.create_task(evictor.evict_loop())
        try:
            for number in range(20):
                await write(writer, number, 400 * KIB)
            assert writer.statistics().used_bytes <= 4 * MIB
        finally:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop


async def test_evict_loop_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_LOCK_POLL_SECONDS", 0.01)
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        first = asyncio.create_task(one.evict_loop())
        await asyncio.sleep(0)
        second = asyncio.create_task(two.evict_loop())
        await asyncio.sleep(0)
        assert one._evictor._lock_file is not None
        assert two._evictor._lock_file is None
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        async with asyncio.timeout(5):
            while two._evictor._lock_file is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


async def test_half_dead_packs_are_compacted_and_readers_find_what_moved(tmp_path: Path) -> None:
    async with opened(tmp_path, max_size_bytes=None, max_pack_bytes=100 * KIB) as store, opened(tmp_path) as reader:
        digests = [await write(store, number, 10 * KIB) for number in range(60)]
        assert await reader.get_many(digests) == [random_bytes(10 * KIB, number) for number in range(60)]
        await store.delete(digests[::3] + digests[1::3])
        assert disk_bytes(tmp_path) >= 600 * KIB
        await store.evict_now()
        assert disk_bytes(tmp_path) == store.statistics().used_bytes == 200 * KIB
        kept = [random_bytes(10 * KIB, number) for number in range(2, 60, 3)]
        assert await reader.get_many(digests[2::3]) == kept
        assert [await read_whole(reader, digest) for digest in digests[2::3]] == kept
    async with opened(tmp_path) as store:
        assert await store.get_many(digests[2::3]) == kept
        assert store.statistics().used_bytes == 200 * KIB


async def test_journal_is_compacted_under_everybodys_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_MIN_COMPACTED_JOURNAL_BYTES", 20_000)
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        digests = [await write(store, number, 100) for number in range(20)]
        for _ in range(10):
            await other.find_missing(digests)
            await other._catalog.write_uses()
        await store.delete(digests[:5])
        before = store.statistics().journal_bytes
        await store.evict_now()
        assert store.statistics().journal_bytes < before / 5
        digests.append(await write(other, 99, 100))
        assert await store.find_missing(digests) == await other.find_missing(digests) == set(digests[:5])
        assert store.digests() == other.digests()
        assert store.statistics()[:3] == other.statistics()[:3]
    async with opened(tmp_path) as store:
        assert await store.find_missing(digests) == set(digests[:5])


async def test_eviction_beside_readers_and_writers(tmp_path: Path) -> None:
    """Readers in another process find each blob whole or not at all."""
    async with opened(tmp_path) as store, opened(tmp_path) as reader:
        read = 0

        async def look(digest: Digest, data: bytes) -> None:
            nonlocal read
            found = await reader.get_many([digest])
            assert found in ([data], [None])
            read += found == [data]

        async with asyncio.TaskGroup() as group:
            for number in range(150):
                data = random_bytes(30 * KIB + number * 2000, number)
                digest = await write(store, number, 30 * KIB + number * 2000)
                group.create_task(look(digest, data))
        assert read > 100
        assert store.statistics().evictions > 50
