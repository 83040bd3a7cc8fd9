"""The priority queue with changeable ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvix.executor.priority_map import PriorityMap


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(0, 9)))))
def test_it_agrees_with_a_dict(steps: list[tuple[int, int | None]]) -> None:
    queue: PriorityMap[int] = PriorityMap()
    expected: dict[int, int] = {}
    for key, rank in steps:
        if rank is None:
            queue.discard(key)
            expected.pop(key, None)
        else:
            queue.set(key, rank)
            expected[key] = rank
        lowest = min(((rank, key) for key, rank in expected.items()), default=None)
        assert queue.peek() == lowest
        assert set(queue) == set(expected)


def test_memory_follows_the_live_keys() -> None:
    queue: PriorityMap[int] = PriorityMap()
    for rank in range(10_000):
        queue.set(rank % 3, rank)
    assert len(queue) == 3
    assert len(queue._heap) <= 2 * 3 + 64 + 1
