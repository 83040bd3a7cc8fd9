"""Reading small blobs in batches."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contracts.blob_store import random_bytes, text_bytes
from tvix.cas.digest import Digest, digest_of
from tvix.cas.disk import DiskBlobStore, DiskConfig, reading
from tvix.cas.disk.location import IDENTITY, PLACE_MASK, pack_location
from tvix.cas.disk.reading import _runs

KIB = 1024


@pytest.fixture(params=["none", "zstd"])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[DiskBlobStore]:
    store = await DiskBlobStore.open(DiskConfig(tmp_path, compression=request.param))
    yield store
    await store.close()


async def test_batch_in_any_order_with_gaps_and_all_kinds(store: DiskBlobStore) -> None:
    blobs = [random_bytes(size, size) if size % 2 else text_bytes(size) for size in range(1, 30_000, 777)]
    blobs += [text_bytes(200 * KIB), random_bytes(200 * KIB)]
    pairs = [(digest_of(data), data) for data in blobs]
    for start in range(0, len(pairs), 7):
        await store.put_many(pairs[start : start + 7])
    shuffler = random.Random(1)
    for count in (1, 5, 20, len(pairs)):
        asked = shuffler.choices(pairs, k=count)
        assert await store.get_many([digest for digest, _ in asked]) == [data for _, data in asked]


async def test_batch_too_large_for_the_event_loop(store: DiskBlobStore) -> None:
    pairs = [(digest_of(data), data) for data in (random_bytes(100 * KIB, number) for number in range(20))]
    await store.put_many(pairs)
    assert await store.get_many([digest for digest, _ in pairs]) == [data for _, data in pairs]


def test_neighbours_are_read_together() -> None:
    places = [(9, 0, 10), (9, 10, 10), (9, 20 + reading._MAX_GAP_BYTES, 5), (9, 100_000, 5), (10, 5, 5), (0, 3, 7)]
    digests = [Digest("sha256", f"{number}" * 64, place[2]) for number, place in enumerate(places)]
    blobs = {digest: pack_location(*place, IDENTITY) for digest, place in zip(digests, places, strict=True)}
    packed = sorted((blobs[digest] & PLACE_MASK, number) for number, digest in enumerate(digests))
    assert [[number for number, _ in run] for run in _runs(packed, digests, blobs)] == [[5], [0, 1, 2], [3], [4]]


async def test_pieces_are_of_a_mebibyte(tmp_path: Path) -> None:
    store = await DiskBlobStore.open(DiskConfig(tmp_path))
    data = random_bytes(5 * KIB * KIB + 1)
    await store.put_many([(digest_of(data), data)])
    assert [len(piece) async for piece in store.read(digest_of(data))] == [KIB * KIB] * 5 + [1]
    await store.close()
