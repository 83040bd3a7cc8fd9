"""DiskBlobStore: the contract in all forms at rest, several processes, deaths, meddling by hand."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import zstandard

from tests.cas.disk.writer_process import blob
from tests.contracts.blob_store import BlobStoreContract, chunked, random_bytes, text_bytes
from tvix.cas.digest import EMPTY, Digest, digest_of
from tvix.cas.disk import DiskBlobStore, DiskConfig, ZstdSource
from tvix.cas.interfaces import BlobStore, read_whole
from tvix.errors import BlobNotFound, OutOfRange

MIB = 1024 * 1024
SMALL, LARGE = b"small blob", random_bytes(3 * MIB + 5)


@asynccontextmanager
async def opened(path: Path, **settings: object) -> AsyncIterator[DiskBlobStore]:
    store = await DiskBlobStore.open(DiskConfig(path=path, **settings))  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


def blob_files(path: Path) -> list[Path]:
    return list(path.glob("blobs/*/*/*"))


def pack_files(path: Path) -> list[Path]:
    return list(path.glob("packs/*"))


class DiskContract(BlobStoreContract):
    """The contract, and that no temporary file is left."""

    settings: ClassVar[dict[str, object]]

    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncGenerator[BlobStore, None]:
        async with opened(tmp_path / "cas", **self.settings) as store:
            yield store
            assert [path.suffix for path in (tmp_path / "cas" / "temp").iterdir()] == [".lock"]
        assert list((tmp_path / "cas" / "temp").iterdir()) == []


class TestPlain(DiskContract):
    settings: ClassVar[dict[str, object]] = {}


class TestCompressed(DiskContract):
    settings: ClassVar[dict[str, object]] = {"compression": "zstd"}


class TestFlushedAlways(DiskContract):
    settings: ClassVar[dict[str, object]] = {"fsync": "always"}


class TestAllInPacks(DiskContract):
    settings: ClassVar[dict[str, object]] = {"small_blob_bytes": 64 * MIB, "compression": "zstd"}


class TestAllInFiles(DiskContract):
    settings: ClassVar[dict[str, object]] = {"small_blob_bytes": 0}


class TestWithoutPageCacheReads(DiskContract):
    """Where the file system cannot say what is cached, all reads go through threads."""

    settings: ClassVar[dict[str, object]] = {"compression": "zstd"}

    @pytest.fixture(autouse=True)
    def _nothing_is_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tvix.cas.disk.reading.read_cached", lambda fd, size_bytes, offset: None)


async def write(store: DiskBlobStore, data: bytes) -> Digest:
    digest = digest_of(data)
    await store.write(digest, chunked(data))
    return digest


async def test_blobs_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digests = [await write(store, data) for data in (SMALL, LARGE)]
    async with opened(tmp_path) as store:
        assert await store.get_many(digests) == [SMALL, LARGE]
        assert store.digests() == digests


async def test_two_stores_see_each_other_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        for number in range(20):
            writer, reader = (one, two) if number % 2 else (two, one)
            for data in (b"%d" % number, b"%d" % number + LARGE):
                digest = await write(writer, data)
                assert await reader.find_missing([digest]) == set()
                assert await read_whole(reader, digest) == data
        assert one.digests() == two.digests()
        assert one.statistics().used_bytes == two.statistics().used_bytes


async def test_same_blob_written_by_two_stores_at_once_is_kept_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await asyncio.gather(*(write(store, LARGE) for store in (one, two, one, two)))
        assert len(blob_files(tmp_path)) == 1
        assert await read_whole(one, digest_of(LARGE)) == await read_whole(two, digest_of(LARGE)) == LARGE


async def test_deleted_blob_is_gone_for_all_and_can_be_written_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        digests = [await write(one, data) for data in (SMALL, LARGE)]
        assert await two.delete([*digests, digest_of(b"absent")]) == 2
        assert await one.find_missing(digests) == set(digests)
        assert await one.get_many(digests) == [None, None]
        for digest in digests:
            with pytest.raises(BlobNotFound):
                await read_whole(one, digest)
        assert blob_files(tmp_path) == []
        for data in (SMALL, LARGE):
            assert await read_whole(two, await write(one, data)) == data


async def test_read_once_begun_ends_whole_though_the_blob_is_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await write(store, LARGE)
        async with aclosing(store.read(digest)) as chunks:
            first = await anext(chunks)
            await store.delete([digest])
            assert first + b"".join([chunk async for chunk in chunks]) == LARGE


async def kill_writers(path: Path, fsync: str, seed: int, acknowledged_count: int) -> list[int]:
    """Kill a writing process after so many acknowledgements; return which it gave."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cas.disk.writer_process", str(path), fsync, str(seed)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    acknowledged = [int(await process.stdout.readline()) for _ in range(acknowledged_count)]
    process.kill()
    acknowledged += [int(line) for line in (await process.stdout.read()).split(b"\n") if line]
    await process.wait()
    return acknowledged


@pytest.mark.parametrize("fsync", ["never", "interval"])
async def test_kill_in_mid_write_loses_nothing_acknowledged_and_leaves_nothing_else(tmp_path: Path, fsync: str) -> None:
    written: list[bytes] = []
    async with opened(tmp_path) as witness:
        for seed in range(3):
            written += [blob(seed, number) for number in await kill_writers(tmp_path, fsync, seed, 30 + seed)]
        assert await witness.get_many([digest_of(data) for data in written]) == written
    async with opened(tmp_path) as store:
        assert await store.get_many([digest_of(data) for data in written]) == written
        for digest in store.digests():
            assert digest_of(await read_whole(store, digest)) == digest
        assert [path.suffix for path in (tmp_path / "temp").iterdir()] == [".lock"]
        in_files = [path.name.split("-")[0] for path in blob_files(tmp_path)]
        assert set(in_files) <= {digest.hash for digest in store.digests()}
        assert len(in_files) == len(set(in_files))


async def test_file_deleted_by_hand_is_a_missing_blob(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        digests = [await write(store, data) for data in (LARGE, LARGE[1:])]
        for path in blob_files(tmp_path):
            path.unlink()
        with pytest.raises(BlobNotFound):
            await read_whole(store, digests[0])
        assert await store.get_many(digests) == [None, None]
        assert await other.find_missing(digests) == set(digests)
        assert await read_whole(other, await write(store, LARGE)) == LARGE


async def test_pack_deleted_by_hand_is_missing_blobs(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await store.put_many([(digest_of(data), data) for data in (b"one", b"two")])
        for path in pack_files(tmp_path):
            path.unlink()
        with pytest.raises(BlobNotFound):
            await read_whole(other, digest_of(b"one"))
        assert await store.find_missing([digest_of(b"two")]) == {digest_of(b"two")}
        assert await other.get_many([await write(store, b"two")]) == [b"two"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_truncated_files_are_missing_blobs(tmp_path: Path, compression: str) -> None:
    async with opened(tmp_path, compression=compression) as store:
        small, large = text_bytes(5000), text_bytes(3 * MIB)
        digests = [await write(store, data) for data in (small, large)]
        for path in [*pack_files(tmp_path), *blob_files(tmp_path)]:
            os.truncate(path, path.stat().st_size - 1)
        for digest in digests:
            with pytest.raises(BlobNotFound):
                await read_whole(store, digest)
        assert await store.get_many(digests) == [None, None]
        assert await store.find_missing(digests) == set(digests)


async def test_damaged_zstd_in_a_pack_is_a_missing_blob(tmp_path: Path) -> None:
    async with opened(tmp_path, compression="zstd") as store:
        data = text_bytes(5000)
        digest, other = await write(store, data), await write(store, b"other")
        (pack,) = pack_files(tmp_path)
        with pack.open("r+b") as file:
            file.write(b"damage")
        assert await store.get_many([other, digest]) == [b"other", None]
        assert await store.find_missing([digest, other]) == {digest}


async def test_whole_folder_emptied_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "cas"
    async with opened(path) as store:
        digests = [await write(store, data) for data in (SMALL, LARGE)]
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        digests.append(await write(store, LARGE[1:]))
        assert await store.find_missing(digests) == set(digests[:2])
        assert await read_whole(store, digests[2]) == LARGE[1:]
        digests.append(await write(store, b"another small one"))
        assert await read_whole(store, digests[3]) == b"another small one"


async def zstd_content(source: ZstdSource, digest: Digest, offset: int = 0) -> bytes | None:
    """Return what a decoder makes of the frames sent; None where none are."""
    frames = await source.read_zstd(digest, offset=offset)
    if frames is None:
        return None
    content = b""
    async with aclosing(frames) as pieces:
        async for piece in pieces:
            content += zstandard.ZstdDecompressor().decompressobj().decompress(piece)
    return content


async def test_frames_are_sent_as_stored(tmp_path: Path) -> None:
    async with opened(tmp_path, compression="zstd") as store:
        assert isinstance(store, ZstdSource)
        small, large = text_bytes(5000), text_bytes(3 * MIB + 5)
        small_digest, large_digest, random_digest = [await write(store, data) for data in (small, large, LARGE)]
        assert await zstd_content(store, small_digest) == small
        assert await zstd_content(store, small_digest, 1) is None
        for offset in (0, 1, MIB - 1, MIB, 2 * MIB + 7, len(large) - 1, len(large)):
            assert await zstd_content(store, large_digest, offset) == large[offset:]
        assert await zstd_content(store, random_digest) is None
        assert await zstd_content(store, EMPTY["sha256"]) is None
        with pytest.raises(BlobNotFound):
            await store.read_zstd(digest_of(b"absent"))
        with pytest.raises(OutOfRange):
            await store.read_zstd(large_digest, offset=len(large) + 1)


async def test_compressed_files_are_smaller_and_any_zstd_reads_them(tmp_path: Path) -> None:
    async with opened(tmp_path, compression="zstd") as store:
        data = text_bytes(3 * MIB)
        await write(store, data)
        (path,) = blob_files(tmp_path)
        stored = path.read_bytes()
        assert len(stored) < len(data) / 3
        with zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True) as reader:
            assert reader.read(len(data) + 1) == data
        assert store.statistics().used_bytes < len(data) / 3 + 4096


async def test_statistics_and_repr(tmp_path: Path) -> None:
    async with opened(tmp_path / "cas", max_size_bytes=64 * MIB) as store:
        await write(store, SMALL)
        await write(store, LARGE)
        figures = store.statistics()
        assert (figures.blobs, figures.blob_bytes) == (2, len(SMALL) + len(LARGE))
        assert figures.used_bytes == len(SMALL) + 3 * MIB + 4096
        assert (figures.reserved_bytes, figures.max_size_bytes, figures.packs) == (0, 64 * MIB, 1)
        assert repr(store) == f"<DiskBlobStore {tmp_path / 'cas'} 2 blobs>"


async def test_second_close_does_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.close()


async def test_follower_is_told_of_each_new_blob_whoever_wrote_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        told: list[Digest] = []
        store.follow(told.append)
        digests = [await write(other, SMALL), await write(store, LARGE), await write(other, SMALL)]
        store.catch_up()
        assert told == digests[:2]
        await other.delete(digests[:1])
        await write(other, SMALL)
        store.catch_up()
        assert told == [*digests[:2], digests[0]]
