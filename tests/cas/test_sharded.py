"""Sharding: even, weighted, stable when shards come and go."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cas.blobs import CountingStore, read, write
from tests.contracts.blob_store import BlobStoreContract
from tvix.cas.digest import Digest, digest_of
from tvix.cas.interfaces import BlobStore
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.sharded import Shard, ShardedBlobStore
from tvix.errors import DigestMismatch, InvalidInput, TvixError, Unavailable

DIGESTS = [digest_of(b"%d" % number) for number in range(20_000)]


def sharded(**weights: float) -> ShardedBlobStore:
    return ShardedBlobStore([Shard(name, CountingStore(), weight) for name, weight in weights.items()])


def shares(store: ShardedBlobStore) -> dict[str, float]:
    names = [store.shard_of(digest).name for digest in DIGESTS]
    return {name: names.count(name) / len(names) for name in sorted(set(names))}


def test_shares_follow_the_weights() -> None:
    assert shares(sharded(a=1, b=1, c=2)) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5}, abs=0.03)


def test_order_does_not_matter_and_a_new_shard_only_takes() -> None:
    before, same, more = sharded(a=1, b=1), sharded(b=1, a=1), sharded(a=1, new=1, b=1)
    for digest in DIGESTS:
        was, now = before.shard_of(digest).name, more.shard_of(digest).name
        assert was == same.shard_of(digest).name
        assert now in (was, "new")
    assert shares(more)["new"] == pytest.approx(1 / 3, abs=0.04)


async def test_batches_are_split_and_put_together_in_order() -> None:
    store = sharded(a=1, b=1, c=1)
    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(100)]
    wrong = (digest_of(b"right"), b"wrong")
    outcomes = await store.put_many([*blobs[:50], wrong, *blobs[50:]])
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 50 + [DigestMismatch] + [type(None)] * 50
    digests = [digest for digest, _ in blobs]
    assert await store.get_many([*digests, wrong[0], digests[0]]) == [*[blob for _, blob in blobs], None, b"0"]
    assert await store.find_missing([*digests, wrong[0]]) == {wrong[0]}
    assert await store.find_missing([]) == set()
    assert await store.get_many([]) == []
    one = await write(store, b"a blob")
    assert await read(store, one, offset=2) == b"blob"
    kept: list[Digest] = [digest for shard in store._shards for digest in shard.store.blobs]  # type: ignore[attr-defined]
    assert len(kept) == 101


class BrokenStore(MemoryBlobStore):
    async def find_missing(self, digests: object) -> set[Digest]:
        raise Unavailable("the disk of b is gone")


async def test_a_fault_is_the_shards_own_error_with_its_name() -> None:
    store = ShardedBlobStore([Shard("a", MemoryBlobStore()), Shard("b", BrokenStore())])
    with pytest.raises(Unavailable) as caught:
        await store.find_missing(DIGESTS[:100])
    assert caught.value.__notes__ == ["shard b"]


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        ([], "at least one"),
        ([Shard("a", MemoryBlobStore()), Shard("a", MemoryBlobStore())], "its own name"),
        ([Shard("a", MemoryBlobStore(), 0)], r"shards.a.weight: 0"),
        ([Shard("a", MemoryBlobStore(), float("nan"))], r"shards.a.weight: nan"),
    ],
)
def test_bad_shards_are_refused(shards: list[Shard], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        ShardedBlobStore(shards)
    assert issubclass(InvalidInput, TvixError)


class TestSharded(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield ShardedBlobStore([Shard(name, MemoryBlobStore()) for name in ("one", "two", "three")])
