"""What every BlobStore keeps to, decorator or leaf (see tvix/cas/interfaces.py).

Subclass it and say how to make an empty store; pytest collects the checks from there:

    class TestMemoryBlobStore(BlobStoreContract):
        @asynccontextmanager
        async def make(self, tmp_path):
            yield MemoryBlobStore()

A store that serves fewer digest functions, or smaller blobs, says so in the class attributes.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import cache
from pathlib import Path

import pytest

from tvix.cas.digest import EMPTY, FUNCTIONS, Digest, DigestFunction, digest_of
from tvix.cas.interfaces import BlobStore, read_whole
from tvix.errors import BlobNotFound, DigestMismatch, OutOfRange

KIB = 1024
SMALL = b"a small blob"
ABSENT = digest_of(b"never written")


async def chunked(data: bytes, chunk_bytes: int = 64 * KIB) -> AsyncIterator[bytes]:
    """Yield data in pieces."""
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


async def failing_after(data: bytes) -> AsyncIterator[bytes]:
    """Yield all of the data, then fail: still nothing may be stored."""
    async for chunk in chunked(data):
        yield chunk
    raise ConnectionResetError("the client went away")


async def parts(store: BlobStore, digest: Digest, offset: int = 0, limit: int | None = None) -> bytes:
    """Read a range."""
    async with aclosing(store.read(digest, offset=offset, limit=limit)) as chunks:
        return b"".join([chunk async for chunk in chunks])


@cache
def random_bytes(count: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress."""
    return random.Random(seed).randbytes(count)


@cache
def text_bytes(count: int) -> bytes:
    """Return bytes that compress."""
    return (b"".join(b"line %d of a text that repeats itself\n" % number for number in range(count // 36 + 1)))[:count]


class BlobStoreContract(ABC):
    """The checks. `make` must give an empty store each time."""

    functions: Iterable[DigestFunction] = tuple(FUNCTIONS)
    """Digest functions that the store serves."""
    large_bytes = 3 * KIB * KIB + 17
    """A size that takes several pieces."""

    @abstractmethod
    def make(self, tmp_path: Path) -> AbstractAsyncContextManager[BlobStore]:
        """Return a context that opens an empty store and closes it."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncGenerator[BlobStore, None]:
        async with self.make(tmp_path) as store:
            yield store

    async def assert_absent(self, store: BlobStore, digest: Digest) -> None:
        assert await store.find_missing([digest]) == {digest}
        assert await store.get_many([digest]) == [None]
        with pytest.raises(BlobNotFound):
            await read_whole(store, digest)

    async def assert_present(self, store: BlobStore, digest: Digest, data: bytes) -> None:
        assert await store.find_missing([digest]) == set()
        assert await read_whole(store, digest) == data

    async def test_empty_blob_is_present_under_every_function(self, store: BlobStore) -> None:
        for function in self.functions:
            empty = EMPTY[function]
            assert await store.find_missing([empty]) == set()
            assert await read_whole(store, empty) == b""
            assert await parts(store, empty, 0, 5) == b""
            assert await store.get_many([empty]) == [b""]
            with pytest.raises(OutOfRange):
                await parts(store, empty, 1)

    async def test_writing_the_empty_blob_succeeds(self, store: BlobStore) -> None:
        await store.write(EMPTY["sha256"], chunked(b""))
        assert await store.put_many([(EMPTY["sha256"], b"")]) == [None]

    async def test_another_hash_with_size_zero_is_absent(self, store: BlobStore) -> None:
        await self.assert_absent(store, Digest("sha256", ABSENT.hash, 0))

    async def test_unknown_digest_is_absent(self, store: BlobStore) -> None:
        await self.assert_absent(store, ABSENT)

    async def test_not_found_carries_the_digest(self, store: BlobStore) -> None:
        with pytest.raises(BlobNotFound) as caught:
            await read_whole(store, ABSENT)
        assert caught.value.digest == ABSENT

    async def test_written_blob_is_read_back_under_every_function(self, store: BlobStore) -> None:
        for function in self.functions:
            digest = digest_of(SMALL, function)
            await store.write(digest, chunked(SMALL, 5))
            await self.assert_present(store, digest, SMALL)
            assert await store.get_many([digest]) == [SMALL]

    async def test_put_blob_is_read_back_under_every_function(self, store: BlobStore) -> None:
        for function in self.functions:
            digest = digest_of(SMALL, function)
            assert await store.put_many([(digest, SMALL)]) == [None]
            await self.assert_present(store, digest, SMALL)

    async def test_same_hash_with_another_size_is_absent(self, store: BlobStore) -> None:
        digest = digest_of(SMALL)
        await store.write(digest, chunked(SMALL))
        for size_bytes in (len(SMALL) - 1, len(SMALL) + 1):
            await self.assert_absent(store, digest._replace(size_bytes=size_bytes))

    async def test_same_hash_under_another_function_is_absent(self, store: BlobStore) -> None:
        if "sha256" in self.functions and "blake3" in self.functions:
            digest = digest_of(SMALL, "sha256")
            await store.write(digest, chunked(SMALL))
            await self.assert_absent(store, digest._replace(function="blake3"))

    async def test_wrong_bytes_are_refused_with_the_actual_digest(self, store: BlobStore) -> None:
        for data in (SMALL, random_bytes(self.large_bytes)):
            digest, wrong = digest_of(data), b"X" + data[1:]
            with pytest.raises(DigestMismatch) as caught:
                await store.write(digest, chunked(wrong))
            assert caught.value.expected == digest
            assert caught.value.actual == digest_of(wrong)
            await self.assert_absent(store, digest)

    @pytest.mark.parametrize("sent", [b"", SMALL[:-1], SMALL + b"!"], ids=["nothing", "short", "long"])
    async def test_small_write_with_wrong_size_commits_nothing(self, store: BlobStore, sent: bytes) -> None:
        digest = digest_of(SMALL)
        with pytest.raises(DigestMismatch):
            await store.write(digest, chunked(sent))
        await self.assert_absent(store, digest)

    @pytest.mark.parametrize("difference", [-1, 1, 5 * KIB * KIB], ids=["short", "long", "much too long"])
    async def test_large_write_with_wrong_size_commits_nothing(self, store: BlobStore, difference: int) -> None:
        data = random_bytes(self.large_bytes)
        digest = digest_of(data)
        with pytest.raises(DigestMismatch):
            await store.write(digest, chunked((data * 4)[: len(data) + difference]))
        await self.assert_absent(store, digest)

    @pytest.mark.parametrize("kind", ["random", "text"])
    async def test_large_blob_and_its_ranges(self, store: BlobStore, kind: str) -> None:
        size = self.large_bytes
        data = random_bytes(size) if kind == "random" else text_bytes(size)
        digest = digest_of(data)
        await store.write(digest, chunked(data, 100_000))
        await self.assert_present(store, digest, data)
        assert await store.get_many([digest]) == [data]
        mib = KIB * KIB
        for offset in (0, 1, 100, mib - 1, mib, mib + 1, size // 2, size - 1, size):
            for limit in (None, 0, 1, 1000, mib, mib + 1, size, size + 5):
                end = None if limit is None else offset + limit
                assert await parts(store, digest, offset, limit) == data[offset:end], (offset, limit)

    async def test_ranges_of_a_small_blob(self, store: BlobStore) -> None:
        data = text_bytes(5000)
        digest = digest_of(data)
        await store.write(digest, chunked(data))
        for offset in (0, 1, 4999, 5000):
            for limit in (None, 0, 1, 4999, 5000, 6000):
                end = None if limit is None else offset + limit
                assert await parts(store, digest, offset, limit) == data[offset:end], (offset, limit)

    @pytest.mark.parametrize("size", [12, 3 * KIB * KIB], ids=["small", "large"])
    async def test_offset_outside_the_blob_is_out_of_range(self, store: BlobStore, size: int) -> None:
        data = random_bytes(size)
        digest = digest_of(data)
        await store.write(digest, chunked(data))
        for offset in (-1, size + 1):
            with pytest.raises(OutOfRange):
                await parts(store, digest, offset)

    async def test_absent_blob_is_not_found_whatever_the_offset(self, store: BlobStore) -> None:
        for offset in (0, 5, ABSENT.size_bytes + 1):
            with pytest.raises(BlobNotFound):
                await parts(store, ABSENT, offset)

    async def test_read_may_end_early(self, store: BlobStore) -> None:
        data = random_bytes(self.large_bytes)
        digest = digest_of(data)
        await store.write(digest, chunked(data))
        for _ in range(3):
            async with aclosing(store.read(digest)) as chunks:
                first = await anext(chunks)
                assert data.startswith(first)
        await self.assert_present(store, digest, data)

    async def test_cancel_in_mid_read(self, store: BlobStore) -> None:
        data = random_bytes(self.large_bytes)
        digest = digest_of(data)
        await store.write(digest, chunked(data))
        begun = asyncio.Event()

        async def reader() -> None:
            async with aclosing(store.read(digest)) as chunks:
                async for _ in chunks:
                    begun.set()
                    await asyncio.Event().wait()

        task = asyncio.create_task(reader())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.assert_present(store, digest, data)

    @pytest.mark.parametrize("size", [12, 3 * KIB * KIB], ids=["small", "large"])
    async def test_failing_source_leaves_nothing_and_its_error_passes(self, store: BlobStore, size: int) -> None:
        data = random_bytes(size)
        digest = digest_of(data)
        with pytest.raises(ConnectionResetError, match="the client went away"):
            await store.write(digest, failing_after(data))
        await self.assert_absent(store, digest)
        await store.write(digest, chunked(data))
        await self.assert_present(store, digest, data)

    @pytest.mark.parametrize("size", [12, 3 * KIB * KIB], ids=["small", "large"])
    async def test_cancel_in_mid_write_leaves_nothing(self, store: BlobStore, size: int) -> None:
        data = random_bytes(size)
        digest = digest_of(data)
        all_sent = asyncio.Event()

        async def hanging() -> AsyncIterator[bytes]:
            async for chunk in chunked(data):
                yield chunk
            all_sent.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.write(digest, hanging()))
        await all_sent.wait()
        await self.assert_absent(store, digest)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.assert_absent(store, digest)

    @pytest.mark.parametrize("size", [12, 3 * KIB * KIB], ids=["small", "large"])
    async def test_writing_a_present_blob_succeeds(self, store: BlobStore, size: int) -> None:
        data = random_bytes(size)
        digest = digest_of(data)
        for _ in range(2):
            await store.write(digest, chunked(data))
        assert await store.put_many([(digest, data)]) == [None]
        await self.assert_present(store, digest, data)

    @pytest.mark.parametrize("size", [12, 3 * KIB * KIB], ids=["small", "large"])
    async def test_two_writers_at_once(self, store: BlobStore, size: int) -> None:
        data = random_bytes(size)
        digest = digest_of(data)
        both = asyncio.Barrier(2)

        async def meeting() -> AsyncIterator[bytes]:
            yield data[: size // 2]
            await both.wait()
            yield data[size // 2 :]

        await asyncio.gather(*(store.write(digest, meeting()) for _ in range(2)))
        await self.assert_present(store, digest, data)

    async def test_a_failing_writer_does_not_harm_another(self, store: BlobStore) -> None:
        data = random_bytes(self.large_bytes)
        digest = digest_of(data)
        outcomes = await asyncio.gather(
            store.write(digest, chunked(data)),
            store.write(digest, failing_after(data[:100_000])),
            return_exceptions=True,
        )
        assert outcomes[0] is None
        await self.assert_present(store, digest, data)

    async def test_chunks_of_any_size(self, store: BlobStore) -> None:
        data = random_bytes(400 * KIB)
        for number, chunk_bytes in enumerate((1000, 128 * KIB, len(data))):
            variant = bytes([number]) + data

            async def source(variant: bytes = variant, chunk_bytes: int = chunk_bytes) -> AsyncIterator[bytes]:
                yield b""
                async for chunk in chunked(variant, chunk_bytes):
                    yield chunk
                yield b""

            await store.write(digest_of(variant), source())
            await self.assert_present(store, digest_of(variant), variant)

    async def test_find_missing_is_exact(self, store: BlobStore) -> None:
        present = [b"blob %d" % number for number in range(50)]
        absent = [digest_of(b"absent %d" % number) for number in range(50)]
        await store.put_many([(digest_of(data), data) for data in present])
        asked = [digest_of(data) for data in present] + absent + absent[:5] + [EMPTY["sha256"]]
        assert await store.find_missing(asked) == set(absent)
        assert await store.find_missing(set(asked)) == set(absent)
        assert await store.find_missing([]) == set()

    async def test_get_many_keeps_order_and_duplicates(self, store: BlobStore) -> None:
        one, two = digest_of(b"one"), digest_of(b"two")
        await store.put_many([(one, b"one"), (two, b"two")])
        asked = [two, ABSENT, one, two, EMPTY["sha256"], two]
        assert await store.get_many(asked) == [b"two", None, b"one", b"two", b"", b"two"]
        assert await store.get_many([]) == []

    async def test_put_many_judges_each_blob_for_itself(self, store: BlobStore) -> None:
        one, two, three = digest_of(b"one"), digest_of(b"two"), digest_of(b"three")
        outcomes = await store.put_many([(one, b"one"), (two, b"TWO"), (three, b"three"), (one, b"one")])
        assert [outcomes[0], outcomes[2], outcomes[3]] == [None, None, None]
        assert isinstance(outcomes[1], DigestMismatch)
        assert (outcomes[1].expected, outcomes[1].actual) == (two, digest_of(b"TWO"))
        assert await store.get_many([one, two, three]) == [b"one", None, b"three"]
        assert await store.put_many([]) == []

    async def test_put_many_with_wrong_size_stores_nothing(self, store: BlobStore) -> None:
        short = Digest("sha256", digest_of(b"data").hash, 3)
        (outcome,) = await store.put_many([(short, b"data")])
        assert isinstance(outcome, DigestMismatch)
        await self.assert_absent(store, short)

    async def test_put_many_of_blobs_of_all_sizes(self, store: BlobStore) -> None:
        blobs = [random_bytes(size, size) for size in (1, 1000, 100_000, 200_000, 1_500_000)]
        digests = [digest_of(data) for data in blobs]
        assert await store.put_many(list(zip(digests, blobs, strict=True))) == [None] * 5
        assert await store.get_many(digests) == blobs

    async def test_many_at_once(self, store: BlobStore) -> None:
        blobs = [random_bytes(size, size) for size in (10, 5000, 300_000) for _ in range(1)] + [SMALL] * 5
        await asyncio.gather(*(store.write(digest_of(data), chunked(data)) for data in blobs))
        read = await asyncio.gather(*(read_whole(store, digest_of(data)) for data in blobs))
        assert read == blobs
