"""The two storage shapes: blobs named by content, and small records that point into them.

Every store, decorator and client in this package is one of these two. Decorators take the inner
store first and forward every method explicitly. The contracts stated here are run against all
implementations by tests/contracts/.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Sequence
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest
from tvix.errors import TvixError

CHUNK_BYTES = 1024 * 1024
"""Size of the pieces in which blobs travel: per-message overhead dominates below, memory above."""


class BlobStore(ABC):
    """Immutable bytes named by (function, hash, size).

    The empty blob is present in every store under every function, whether written or not. All
    methods may be called concurrently, also for the same digest.
    """

    @abstractmethod
    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that the store lacks, exactly.

        Counts as a use of those that are present: they are the last to be evicted from then on.
        """

    @abstractmethod
    def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the blob's bytes from `offset` on, at most `limit` of them, in pieces of any size.

        Raises BlobNotFound before the first piece, OutOfRange if offset > size or negative. A read
        once begun ends whole even if the blob is evicted meanwhile. Use under `aclosing`.
        """

    @abstractmethod
    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        """Store the concatenation of `chunks`. A clean end commits; an exception raised by `chunks`
        (or cancellation) aborts and leaves nothing behind.

        The blob is durable and visible to everyone when this returns. Writing a present blob is a
        success and may return without draining `chunks`. Raises DigestMismatch when the bytes are not
        what the digest says, ResourceExhausted when there is no room.
        """

    @abstractmethod
    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """Return the whole contents of small blobs, in order; None for an absent one."""

    @abstractmethod
    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        """Store small blobs, each for itself; return for each, in order, None or why it was refused."""

    async def close(self) -> None:
        """Release files, connections and tasks. The store is not used afterwards."""
        return None


async def read_whole(blobs: BlobStore, digest: Digest) -> bytes:
    """Return one blob's bytes; BlobNotFound if absent. For blobs known to be small."""
    async with aclosing(blobs.read(digest)) as chunks:
        return b"".join([chunk async for chunk in chunks])


class PinningStore(ABC):
    """A store that can be told not to evict what somebody is working with."""

    @abstractmethod
    async def pin(self, owner: str, roots: Collection[Digest], trees: Collection[Digest], until: float) -> None:
        """Keep `roots`, and every blob reachable from the root Directories `trees`, until the time
        `until` (seconds since the epoch). Replaces what `owner` pinned before; renew to keep longer.
        """

    @abstractmethod
    async def unpin(self, owner: str) -> None:
        """Drop the owner's pins, at once; unknown owners are fine."""


K = TypeVar("K")
V = TypeVar("V")


class RecordStore(ABC, Generic[K, V]):
    """Small mutable records by key. A put is atomic and durable; the last one wins."""

    @abstractmethod
    async def get(self, key: K) -> V | None:
        """Return the record, or None when there is none."""

    @abstractmethod
    async def put(self, key: K, value: V) -> None:
        """Store or replace the record."""

    @abstractmethod
    async def delete(self, key: K) -> None:
        """Remove the record if it is there."""

    async def close(self) -> None:
        """Release connections. The store is not used afterwards."""
        return None


class ActionKey(NamedTuple):
    """Names an action result: the action cache is scoped by instance, the CAS is not."""

    instance_name: str
    action_digest: Digest


ActionCache = RecordStore[ActionKey, re_pb2.ActionResult]
"""Results of actions. Values are the wire messages themselves, so that unknown fields survive; they
are shared with caches, so nobody changes one after `put` or `get`."""
