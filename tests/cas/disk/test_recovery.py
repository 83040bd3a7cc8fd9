"""Starting after deaths of processes and of the machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.contracts.blob_store import chunked, random_bytes
from tvix.cas.digest import Digest, digest_of
from tvix.cas.disk import DiskBlobStore, DiskConfig, recovery
from tvix.cas.disk.journal import RECORD_BYTES
from tvix.cas.interfaces import read_whole

MIB = 1024 * 1024


@asynccontextmanager
async def opened(path: Path, *, now: float = 1000.0) -> AsyncIterator[DiskBlobStore]:
    store = await DiskBlobStore.open(DiskConfig(path=path), now=lambda: now)
    try:
        yield store
    finally:
        await store.close()


async def write(store: DiskBlobStore, number: int, size_bytes: int) -> Digest:
    data = random_bytes(size_bytes, number)
    await store.write(digest_of(data), chunked(data))
    return digest_of(data)


def crash(path: Path) -> None:
    """Take the mark of a good close away."""
    os.truncate(path / "journal", (path / "journal").stat().st_size - RECORD_BYTES)


@pytest.fixture
def _other_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    boots = iter(range(1, 100))
    monkeypatch.setattr(recovery, "boot_number", lambda: next(boots))


def files(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern))


async def test_files_that_no_record_names_go_after_a_crash(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await write(store, 1, MIB)
    crash(tmp_path)
    (path,) = files(tmp_path, "blobs/*/*/*")
    path.with_name(path.name + "0").write_bytes(b"renamed, but its writer died before the journal knew")
    (tmp_path / "packs" / "77").write_bytes(b"appended, but the journal does not know")
    async with opened(tmp_path) as store:
        assert files(tmp_path, "blobs/*/*/*") == [path]
        assert files(tmp_path, "packs/*") == []
        assert await read_whole(store, digest) == random_bytes(MIB, 1)


async def test_temporary_files_of_the_dead_go_those_of_the_living_stay(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        living = Path(f"{store._opened.temp_prefix}5")
        (tmp_path / "temp" / "dead.lock").touch()
        (tmp_path / "temp" / "dead-3").touch()
        living.touch()  # noqa: ASYNC240
        async with opened(tmp_path):
            assert not files(tmp_path, "temp/dead*")
            assert living in files(tmp_path, "temp/*")


@pytest.mark.usefixtures("_other_boot")
async def test_power_loss_drops_short_and_damaged_blobs_only(tmp_path: Path) -> None:
    async with opened(tmp_path, now=100.0) as store:
        closed_well = await write(store, 1, 200_000)
    async with opened(tmp_path, now=200.0) as store:
        old = [await write(store, number, 200_000) for number in (2, 3)]
        old_small = await write(store, 4, 1000)
    crash(tmp_path)
    paths = {digest: files(tmp_path, f"blobs/*/*/{digest.hash}*")[0] for digest in [closed_well, *old]}
    paths[old[0]].write_bytes(b"short")
    paths[old[1]].write_bytes(bytes(200_000))
    paths[closed_well].write_bytes(bytes(200_000))
    async with opened(tmp_path, now=300.0) as store:
        assert await store.find_missing([closed_well, *old, old_small]) == set(old)
        assert await read_whole(store, old_small) == random_bytes(1000, 4)
        assert files(tmp_path, "blobs/*/*/*") == [paths[closed_well]]


@pytest.mark.usefixtures("_other_boot")
async def test_power_loss_hashes_only_what_was_recorded_last(tmp_path: Path) -> None:
    clock = 1000.0
    store = await DiskBlobStore.open(DiskConfig(path=tmp_path), now=lambda: clock)
    early = await write(store, 1, 200_000)
    clock = 2000.0
    late = await write(store, 2, 200_000)
    await store.close()
    crash(tmp_path)
    for path in files(tmp_path, "blobs/*/*/*"):
        path.write_bytes(bytes(200_000))
    async with opened(tmp_path) as store:
        assert await store.find_missing([early, late]) == {late}


@pytest.mark.usefixtures("_other_boot")
async def test_power_loss_that_shortened_a_pack(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digests = [await write(store, number, 1000) for number in range(5)]
    crash(tmp_path)
    (pack,) = files(tmp_path, "packs/*")
    os.truncate(pack, 2500)
    async with opened(tmp_path) as store:
        assert await store.find_missing(digests) == set(digests[2:])
        digests[2:] = [await write(store, number, 1000) for number in range(2, 5)]
        assert await store.get_many(digests) == [random_bytes(1000, number) for number in range(5)]


async def test_death_of_processes_alone_hashes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await write(store, 1, 200_000)
    crash(tmp_path)
    (path,) = files(tmp_path, "blobs/*/*/*")
    path.write_bytes(bytes(200_000))
    async with opened(tmp_path) as store:
        assert await store.find_missing([digest]) == set()


async def test_history_is_left_behind_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_MIN_HISTORY_BYTES", 1000)
    async with opened(tmp_path) as store:
        digests = [await write(store, number, 100) for number in range(100)]
        await store.find_missing(digests[:50])
        await store.delete(digests[1:])
        used_bytes = store.statistics().used_bytes
    async with opened(tmp_path) as store:
        assert store.statistics().journal_bytes < 10 * RECORD_BYTES
        assert store.digests() == digests[:1]
        assert store.statistics().used_bytes == used_bytes
    async with opened(tmp_path) as store:
        assert store.digests() == digests[:1]
