"""Blobs spread over several stores by their digest.

Rendezvous hashing: each shard draws a number for a blob and the highest has it, so that a shard more or
less moves only the blobs that it wins or loses. Drawn once for each of 4,096 classes of digests (the first
three hex digits) rather than for every blob, so that finding the shard is one look into a table. Weights
are relative shares. Shards are known by name: their order, and where they are, may change freely.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

from tvix.cas.concurrently import all_of
from tvix.cas.digest import Digest
from tvix.cas.interfaces import BlobStore
from tvix.errors import InvalidInput, TvixError

_CLASS_DIGITS = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a sharded store; `weight` is its share relative to the others'."""

    name: str
    store: BlobStore
    weight: float = 1.0


class ShardedBlobStore(BlobStore):
    """Keeps each blob in one of several stores."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Raises InvalidInput for no shards, names used twice and weights that are not above zero."""
        if not shards or len({shard.name for shard in shards}) != len(shards):
            raise InvalidInput(f"shards: need at least one, each of its own name: {[s.name for s in shards]}")
        for shard in shards:
            if not (shard.weight > 0 and math.isfinite(shard.weight)):
                raise InvalidInput(f"shards.{shard.name}.weight: {shard.weight} is not a number above 0")
        self._shards = tuple(shards)
        self._table = _shares(self._shards)

    def __repr__(self) -> str:
        return f"<ShardedBlobStore {len(self._shards)} shards>"

    def shard_of(self, digest: Digest) -> Shard:
        """Return the shard that has, or would have, the blob."""
        return self._shards[self._table[int(digest.hash[:_CLASS_DIGITS], 16)]]

    def _split(self, digests: Collection[Digest]) -> dict[int, list[Digest]]:
        parts: dict[int, list[Digest]] = {}
        table = self._table
        for digest in digests:
            parts.setdefault(table[int(digest.hash[:_CLASS_DIGITS], 16)], []).append(digest)
        return parts

    async def _each(self, calls: dict[int, Coroutine[Any, Any, T]]) -> list[T]:
        """Run one call per shard at the same time; the first that fails is what fails."""
        return await all_of([self._named(index, call) for index, call in calls.items()])

    async def _named(self, index: int, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await call
        except TvixError as error:
            error.add_note(f"shard {self._shards[index].name}")
            raise

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        calls = {index: self._shards[index].store.find_missing(part) for index, part in self._split(digests).items()}
        return set[Digest]().union(*await self._each(calls))

    def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        return self.shard_of(digest).store.read(digest, offset=offset, limit=limit)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        await self.shard_of(digest).store.write(digest, chunks)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        parts = self._split(dict.fromkeys(digests))
        calls = {index: self._shards[index].store.get_many(part) for index, part in parts.items()}
        found: dict[Digest, bytes | None] = {}
        for part, blobs in zip(parts.values(), await self._each(calls), strict=True):
            found.update(zip(part, blobs, strict=True))
        return [found[digest] for digest in digests]

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        parts: dict[int, list[int]] = {}
        for position, (digest, _) in enumerate(blobs):
            parts.setdefault(self._table[int(digest.hash[:_CLASS_DIGITS], 16)], []).append(position)
        calls = {
            index: self._shards[index].store.put_many([blobs[position] for position in positions])
            for index, positions in parts.items()
        }
        outcomes: list[TvixError | None] = [None] * len(blobs)
        for positions, part in zip(parts.values(), await self._each(calls), strict=True):
            for position, outcome in zip(positions, part, strict=True):
                outcomes[position] = outcome
        return outcomes

    async def close(self) -> None:
        await self._each({index: shard.store.close() for index, shard in enumerate(self._shards)})


def _shares(shards: Sequence[Shard]) -> list[int]:
    return [
        max(range(len(shards)), key=lambda index: _draw(shards[index], number)) for number in range(16**_CLASS_DIGITS)
    ]


def _draw(shard: Shard, number: int) -> float:
    # -weight / ln(uniform) has each shard win in proportion to its weight (weighted rendezvous hashing).
    drawn = blake2b(f"{number}/{shard.name}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(drawn, "big") + 0.5) / 2**64
    return -shard.weight / math.log(uniform)
