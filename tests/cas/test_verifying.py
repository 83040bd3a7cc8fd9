"""Verification over a store that keeps anything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from tests.cas.blobs import RawStore, chunks_of, read, write
from tests.contracts.blob_store import BlobStoreContract
from tvix.cas.digest import digest_of
from tvix.cas.interfaces import BlobStore
from tvix.cas.verifying import VerifyingBlobStore
from tvix.errors import CorruptData, DigestMismatch

DATA = b"x" * 5000


@pytest.mark.parametrize("sent", [DATA[:-1], DATA + b"y", b"y" * 5000, b""], ids=["short", "long", "other", "none"])
async def test_wrong_bytes_commit_nothing(sent: bytes) -> None:
    raw = RawStore()
    with pytest.raises(DigestMismatch) as caught:
        await VerifyingBlobStore(raw).write(digest_of(DATA), chunks_of(sent))
    assert caught.value.expected == digest_of(DATA)
    assert raw.blobs == {}


async def test_too_much_is_refused_before_it_is_all_read() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"y" * 1000

    with pytest.raises(DigestMismatch):
        await VerifyingBlobStore(RawStore()).write(digest_of(DATA), endless())
    assert sent == 6


async def test_a_corrupt_blob_is_never_read_to_its_end() -> None:
    raw = RawStore()
    raw.blobs[digest_of(DATA)] = DATA[:-1] + b"!"
    store = VerifyingBlobStore(raw)
    async with aclosing(store.read(digest_of(DATA))) as chunks:
        with pytest.raises(CorruptData, match=str(digest_of(DATA))):
            await anext(chunks)


@pytest.mark.parametrize("stored", [DATA[:100], DATA + b"more"])
async def test_a_blob_of_the_wrong_size_is_corrupt(stored: bytes) -> None:
    raw = RawStore()
    raw.blobs[digest_of(DATA)] = stored
    with pytest.raises(CorruptData):
        await read(VerifyingBlobStore(raw), digest_of(DATA))


async def test_ranges_are_not_checked() -> None:
    raw = RawStore()
    raw.blobs[digest_of(DATA)] = b"z" * 5000
    store = VerifyingBlobStore(raw)
    assert await read(store, digest_of(DATA), offset=4990) == b"z" * 10
    assert await read(store, digest_of(DATA), limit=3) == b"zzz"
    with pytest.raises(CorruptData):
        await read(store, digest_of(DATA), limit=5000)


async def test_batches_refuse_and_hide_each_wrong_blob_alone(caplog: pytest.LogCaptureFixture) -> None:
    raw = RawStore()
    store = VerifyingBlobStore(raw)
    good, bad = digest_of(b"good"), digest_of(b"bad")
    first, second, third = await store.put_many([(bad, b"worse"), (good, b"good"), (bad, b"bad")])
    assert isinstance(first, DigestMismatch)
    assert (second, third) == (None, None)
    raw.blobs[bad] = b"rotten"
    assert await store.get_many([good, bad, digest_of(b"absent"), digest_of(b"")]) == [b"good", None, None, b""]
    assert f"blob={bad}" in caplog.text


async def test_large_pieces_are_hashed_off_the_loop() -> None:
    store = VerifyingBlobStore(RawStore())
    data = bytes(1_000_000)
    digest = await write(store, data, size=500_000)
    assert await read(store, digest) == data
    assert await store.put_many([(digest, data)]) == [None]
    assert await store.get_many([digest]) == [data]
    await asyncio.sleep(0)


class TestVerifyingOverARawStore(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield VerifyingBlobStore(RawStore())
