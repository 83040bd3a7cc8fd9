import asyncio
from collections.abc import AsyncIterable, AsyncIterator

import pytest

from tvix.cas.digest import Digest, digest_of
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.resource_names import WriteName
from tvix.cas.uploads import MAX_SUSPENDED, Uploads
from tvix.errors import DigestMismatch, InvalidInput, Unavailable

DATA = bytes(range(256)) * 4096
DIGEST = digest_of(DATA)
NAME = WriteName("main", "0f7a4b1c-9c3e-4b60-8f6b-3c1de1f0a001", DIGEST, "")


class WatchedStore(MemoryBlobStore):
    """Counts writes that are under way, and those that were broken off."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0
        self.aborted = 0

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        self.open += 1
        try:
            await super().write(digest, chunks)
        except BaseException:
            self.aborted += 1
            raise
        finally:
            self.open -= 1


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
async def uploads(store: WatchedStore) -> AsyncIterator[Uploads]:
    made = Uploads(store)
    yield made
    await made.close()
    assert store.open == 0


async def test_pieces_become_a_blob(store: WatchedStore, uploads: Uploads) -> None:
    upload = uploads.begin(NAME, 0, owner := object())
    for start in range(0, len(DATA), 100_000):
        await upload.feed(owner, DATA[start : start + 100_000])
    assert uploads.received_bytes(NAME) == len(DATA)
    assert not upload.stored
    await upload.finish(owner)
    uploads.done(NAME, upload)
    assert store.blobs == {DIGEST: DATA}
    assert uploads.received_bytes(NAME) == 0


async def test_a_suspended_upload_goes_on(store: WatchedStore, uploads: Uploads) -> None:
    first, second = object(), object()
    upload = uploads.begin(NAME, 0, first)
    await upload.feed(first, DATA[:600_000])
    uploads.suspend(NAME, upload, first)
    assert repr(uploads) == "<Uploads 1 known, 1 suspended>"
    assert uploads.begin(NAME, 600_000, second) is upload
    assert repr(uploads) == "<Uploads 1 known, 0 suspended>"
    await upload.feed(second, DATA[600_000:])
    await upload.finish(second)
    assert store.blobs == {DIGEST: DATA}


async def test_whoever_resumes_takes_over(store: WatchedStore, uploads: Uploads) -> None:
    first, second = object(), object()
    upload = uploads.begin(NAME, 0, first)
    await upload.feed(first, DATA[:300_000])
    uploads.begin(NAME, 300_000, second)
    with pytest.raises(Unavailable, match="another call"):
        await upload.feed(first, b"x")
    uploads.suspend(NAME, upload, first)
    uploads.drop(NAME, upload, first)
    assert repr(uploads) == "<Uploads 1 known, 0 suspended>"
    await upload.feed(second, DATA[300_000:])
    await upload.finish(second)
    assert store.blobs == {DIGEST: DATA}


async def test_a_gap_is_refused(uploads: Uploads) -> None:
    with pytest.raises(InvalidInput, match="write_offset: 5, but 0 bytes"):
        uploads.begin(NAME, 5, object())
    upload = uploads.begin(NAME, 0, owner := object())
    await upload.feed(owner, b"1234")
    with pytest.raises(InvalidInput, match="write_offset: 5, but 4 bytes"):
        uploads.begin(NAME, 5, owner)


async def test_wrong_bytes_and_wrong_lengths_store_nothing(store: WatchedStore, uploads: Uploads) -> None:
    owner = object()
    upload = uploads.begin(NAME, 0, owner)
    await upload.feed(owner, bytes(len(DATA)))
    with pytest.raises(DigestMismatch):
        await upload.finish(owner)
    uploads.drop(NAME, upload, owner)
    upload = uploads.begin(NAME, 0, owner)
    with pytest.raises(InvalidInput, match="more than"):
        await upload.feed(owner, DATA + b"x")
    uploads.drop(NAME, upload, owner)
    upload = uploads.begin(NAME, 0, owner)
    await upload.feed(owner, DATA[:-1])
    with pytest.raises(InvalidInput, match="finish_write"):
        await upload.finish(owner)
    assert not store.blobs


async def test_a_dropped_upload_leaves_nothing(store: WatchedStore, uploads: Uploads) -> None:
    upload = uploads.begin(NAME, 0, owner := object())
    await upload.feed(owner, DATA[:600_000])
    await asyncio.sleep(0)
    assert store.open == 1
    uploads.drop(NAME, upload, owner)
    await uploads.close()
    assert (store.open, store.aborted) == (0, 1)
    assert not store.blobs


async def test_starting_over_drops_what_was_suspended(store: WatchedStore, uploads: Uploads) -> None:
    owner = object()
    upload = uploads.begin(NAME, 0, owner)
    await upload.feed(owner, DATA[:600_000])
    uploads.suspend(NAME, upload, owner)
    again = uploads.begin(NAME, 0, owner)
    assert again is not upload
    await again.feed(owner, DATA)
    await again.finish(owner)
    uploads.done(NAME, again)
    await uploads.close()
    assert store.blobs == {DIGEST: DATA}
    assert store.aborted == 1


async def test_not_too_many_are_kept(store: WatchedStore, uploads: Uploads) -> None:
    names = [NAME._replace(uuid=f"{index:08x}-0000-4000-8000-000000000000") for index in range(MAX_SUSPENDED + 1)]
    for name in names:
        upload = uploads.begin(name, 0, owner := object())
        await upload.feed(owner, b"12345")
        uploads.suspend(name, upload, owner)
    assert repr(uploads) == f"<Uploads {MAX_SUSPENDED} known, {MAX_SUSPENDED} suspended>"
    assert uploads.received_bytes(names[0]) == 0
    assert uploads.received_bytes(names[1]) == 5


async def test_suspended_uploads_expire(store: WatchedStore) -> None:
    uploads = Uploads(store, suspended_seconds=0.0)
    upload = uploads.begin(NAME, 0, owner := object())
    await upload.feed(owner, b"12345")
    uploads.suspend(NAME, upload, owner)
    await asyncio.sleep(0.001)
    assert repr(uploads) == "<Uploads 0 known, 0 suspended>"
    await uploads.close()


async def test_a_store_that_has_the_blob_ends_the_upload(uploads: Uploads) -> None:
    class Present(WatchedStore):
        async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
            return None

    present = Uploads(Present())
    upload = present.begin(NAME, 0, owner := object())
    for start in range(0, len(DATA) - 300_000, 300_000):
        await upload.feed(owner, DATA[start : start + 300_000])
        await asyncio.sleep(0)
    assert upload.stored
    assert upload.ended
    await present.close()
