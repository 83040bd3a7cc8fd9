"""Writing: what the operating system refuses, and what ends up where."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.contracts.blob_store import chunked, random_bytes, text_bytes
from tvix.cas.digest import Digest, digest_of
from tvix.cas.disk import DiskBlobStore, DiskConfig
from tvix.cas.disk.config import Compression
from tvix.cas.disk.journal import RECORD_BYTES
from tvix.errors import DigestMismatch, ResourceExhausted, Unavailable

KIB = 1024


@asynccontextmanager
async def opened(path: Path, compression: Compression = "none") -> AsyncIterator[DiskBlobStore]:
    store = await DiskBlobStore.open(DiskConfig(path=path, compression=compression))
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """Let files grow to `size_bytes` only; the kernel then refuses in the midst of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(path: Path) -> list[Path]:
    return [file for name in ("blobs", "packs", "temp") for file in path.glob(f"{name}/**/*") if file.is_file()]


async def test_disk_full_in_a_large_blob(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        data = random_bytes(3000 * KIB)
        with full_disk(1000 * KIB), pytest.raises(ResourceExhausted, match=f"no space left for blobs in {tmp_path}"):
            await store.write(digest_of(data), chunked(data))
        assert [path.suffix for path in files(tmp_path)] == [".lock"]
        await store.write(digest_of(data), chunked(data))
        assert await store.get_many([digest_of(data)]) == [data]


async def test_disk_full_in_a_pack(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blobs = [random_bytes(10 * KIB, number) for number in range(10)]
        pairs = [(digest_of(data), data) for data in blobs]
        with full_disk(45 * KIB):
            outcomes = await store.put_many(pairs)
        assert [type(outcome) for outcome in outcomes] == [ResourceExhausted] * 10
        assert await store.find_missing([digest for digest, _ in pairs]) == {digest for digest, _ in pairs}
        assert await store.put_many(pairs) == [None] * 10
        assert await store.get_many([digest for digest, _ in pairs]) == blobs
        assert store.statistics().used_bytes == 100 * KIB


async def test_disk_full_in_the_journal(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        pairs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(10)]
        with full_disk(5 * RECORD_BYTES + 50):
            outcomes = await store.put_many(pairs)
        assert [type(outcome) for outcome in outcomes] == [ResourceExhausted] * 10
        assert await store.find_missing([digest for digest, _ in pairs]) == await other.find_missing(
            [digest for digest, _ in pairs]
        )
        assert await store.put_many(pairs) == [None] * 10
        for reader in (store, other):
            assert await reader.get_many([digest for digest, _ in pairs]) == [data for _, data in pairs]


async def test_disk_full_in_the_journal_after_a_large_blob_leaves_no_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        data = random_bytes(200 * KIB)
        store._opened.journal.append(bytes(RECORD_BYTES) * 3000)
        with full_disk(3000 * RECORD_BYTES), pytest.raises(ResourceExhausted):
            await store.write(digest_of(data), chunked(data))
        assert [path.suffix for path in files(tmp_path)] == [".lock"]


async def test_other_refusals_are_passing_faults(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        (tmp_path / "blobs").rmdir()
        (tmp_path / "blobs").touch()
        data = random_bytes(200 * KIB)
        with pytest.raises(Unavailable, match="Not a directory"):
            await store.write(digest_of(data), chunked(data))


async def test_overrun_stops_the_source_early(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            while True:
                taken += 64 * KIB
                yield bytes(64 * KIB)

        for size in (1000, 3000 * KIB):
            taken = 0
            with pytest.raises(DigestMismatch) as caught:
                await store.write(Digest("sha256", "0" * 64, size), endless())
            assert size < taken <= size + 64 * KIB
            assert caught.value.actual.size_bytes == taken


async def test_present_blob_is_not_drained(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for data in (b"small", random_bytes(200 * KIB)):
            await store.write(digest_of(data), chunked(data))

            async def never() -> AsyncIterator[bytes]:
                raise AssertionError("asked for data")
                yield b""

            await store.write(digest_of(data), never())


async def test_many_small_blobs_are_one_append_each_to_pack_and_journal(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        before = store.statistics().journal_bytes
        pairs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(1000)]
        assert await store.put_many([*pairs, pairs[0]]) == [None] * 1001
        assert store.statistics().journal_bytes == before + 1000 * RECORD_BYTES
        (pack,) = tmp_path.glob("packs/*")  # noqa: ASYNC240
        assert pack.read_bytes() == b"".join(data for _, data in pairs)


@pytest.mark.parametrize(
    ("data", "compressed", "reason"),
    [
        (text_bytes(100), False, "too small to bother"),
        (text_bytes(5000), True, "text"),
        (random_bytes(5000), False, "does not shrink"),
        (text_bytes(300 * KIB), True, "text in a file"),
        (random_bytes(300 * KIB), False, "does not shrink, in a file"),
    ],
)
async def test_compressed_only_where_it_pays(tmp_path: Path, data: bytes, compressed: bool, reason: str) -> None:
    async with opened(tmp_path, "zstd") as store:
        await store.write(digest_of(data), chunked(data))
        stored = sum(path.stat().st_size for path in files(tmp_path))
        assert (stored < len(data) / 2) == compressed, reason
        assert (stored == len(data)) == (not compressed), reason
        assert await store.get_many([digest_of(data)]) == [data]
