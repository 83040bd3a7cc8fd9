"""Compression at rest: smaller inside, the same outside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cas.blobs import RawStore, read, write
from tests.contracts.blob_store import BlobStoreContract
from tvix.cas.compressed import CompressedBlobStore
from tvix.cas.digest import EMPTY, digest_of
from tvix.cas.interfaces import BlobStore
from tvix.cas.verifying import VerifyingBlobStore
from tvix.errors import CorruptData, OutOfRange

DATA = b"".join(b"line %d\n" % number for number in range(300_000))


async def test_blobs_are_smaller_inside_and_themselves_outside() -> None:
    raw = RawStore()
    store = CompressedBlobStore(raw)
    digest = await write(store, DATA, size=100_000)
    assert len(raw.blobs[digest]) < len(DATA) // 3
    assert await read(store, digest) == DATA
    assert await store.put_many([(digest_of(b"small"), b"small")]) == [None]
    assert await store.get_many([digest_of(b"small"), digest, digest_of(b"absent")]) == [b"small", DATA, None]


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 1), (0, 0), (7, 2_000_000), (1_500_000, 10), (len(DATA) - 5, 100), (len(DATA), None)]
)
async def test_ranges_are_of_the_uncompressed_blob(offset: int, limit: int | None) -> None:
    store = CompressedBlobStore(RawStore())
    digest = await write(store, DATA, size=100_000)
    end = None if limit is None else offset + limit
    assert await read(store, digest, offset=offset, limit=limit) == DATA[offset:end]


async def test_offsets_outside_are_refused() -> None:
    store = CompressedBlobStore(RawStore())
    digest = await write(store, b"data")
    for offset in (-1, 5):
        with pytest.raises(OutOfRange):
            await read(store, digest, offset=offset)


@pytest.mark.parametrize("damage", ["cut", "garbage", "longer", "nothing"])
async def test_damaged_frames_are_corrupt(damage: str) -> None:
    raw = RawStore()
    store = CompressedBlobStore(raw)
    digest = await write(store, DATA, size=100_000)
    frame = raw.blobs[digest]
    raw.blobs[digest] = {"cut": frame[:-9], "garbage": b"garbage", "longer": frame + frame, "nothing": b""}[damage]
    with pytest.raises(CorruptData, match=str(digest)):
        await read(store, digest)
    with pytest.raises(CorruptData, match=str(digest)):
        await store.get_many([digest])


async def test_the_empty_blob_takes_no_room() -> None:
    raw = RawStore()
    store = CompressedBlobStore(raw)
    await write(store, b"")
    assert await store.put_many([(EMPTY["blake3"], b""), (digest_of(b"a"), b"a")]) == [None, None]
    assert list(raw.blobs) == [digest_of(b"a")]
    assert await read(store, EMPTY["sha256"]) == b""


class TestVerifyingOverCompressed(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield VerifyingBlobStore(CompressedBlobStore(RawStore()))
