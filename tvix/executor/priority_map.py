"""A priority queue whose entries are re-ranked and removed by key. Pure.

A binary heap with lazy deletion: `set` and `discard` leave stale heap entries behind, which `peek` throws
away when they surface; the heap is rebuilt when most of it is stale, so memory stays proportional to the
number of live keys. All operations are O(log n) amortized.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K")


class PriorityMap(Generic[K]):
    """Keys with ranks; the lowest rank first, ties by key. Keys must be hashable and comparable."""

    __slots__ = ("_heap", "_ranks")

    def __init__(self) -> None:
        self._ranks: dict[K, Any] = {}
        self._heap: list[tuple[Any, K]] = []

    def __repr__(self) -> str:
        return f"<PriorityMap {len(self._ranks)} keys>"

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: object) -> bool:
        return key in self._ranks

    def __iter__(self) -> Iterator[K]:
        return iter(self._ranks)

    def rank(self, key: K) -> Any:
        """Return the key's rank; KeyError when it is not there."""
        return self._ranks[key]

    def set(self, key: K, rank: Any) -> None:
        """Add the key, or change its rank."""
        if self._ranks.get(key) == rank:
            return
        self._ranks[key] = rank
        heapq.heappush(self._heap, (rank, key))
        if len(self._heap) > 2 * len(self._ranks) + 64:
            self._heap = [(rank, key) for key, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Remove the key if it is there."""
        self._ranks.pop(key, None)

    def peek(self) -> tuple[Any, K] | None:
        """Return the lowest (rank, key), or None when empty."""
        heap, ranks = self._heap, self._ranks
        while heap:
            rank, key = heap[0]
            if ranks.get(key) == rank and key in ranks:
                return rank, key
            heapq.heappop(heap)
        return None
