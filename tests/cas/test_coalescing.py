"""Merged calls: all served, in order, few, and each caller's fate its own."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.cas.coalescing import Coalescing


class Backend:
    """Squares numbers, when told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.calls: list[list[int]] = []
        self.error: Exception | None = None
        self.running = self.peak = 0

    async def send(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        return [item * item for item in items]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_call_goes_at_once() -> None:
    backend = Backend()
    backend.go.set()
    assert await Coalescing(backend.send)([3, 4]) == [9, 16]
    assert backend.calls == [[3, 4]]


async def test_those_who_come_later_go_together() -> None:
    backend = Backend()
    call = Coalescing(backend.send, concurrency=2)
    tasks = [asyncio.ensure_future(call([index, index + 100])) for index in range(10)]
    await turns()
    assert backend.calls == [[0, 100], [1, 101]]
    backend.go.set()
    assert await asyncio.gather(*tasks) == [[index**2, (index + 100) ** 2] for index in range(10)]
    assert len(backend.calls) == 3
    assert backend.peak == 2


async def test_batches_are_bounded_but_never_cut_a_caller() -> None:
    backend = Backend()
    call = Coalescing(backend.send, max_items=5)
    tasks = [asyncio.ensure_future(call(range(size))) for size in (1, 2, 2, 2, 9, 1)]
    await turns()
    backend.go.set()
    await asyncio.gather(*tasks)
    assert [len(sent) for sent in backend.calls] == [1, 4, 2, 9, 1]


async def test_an_error_is_everybodys_in_the_batch_and_nobodys_after() -> None:
    backend = Backend()
    call = Coalescing(backend.send)
    tasks = [asyncio.ensure_future(call([index])) for index in range(3)]
    await turns()
    backend.error = ValueError("no")
    backend.go.set()
    assert [type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)] == [ValueError] * 3
    backend.error = None
    assert await call([5]) == [25]


@pytest.mark.parametrize("victim", range(4))
async def test_a_cancelled_caller_harms_no_other(victim: int) -> None:
    backend = Backend()
    call = Coalescing(backend.send)
    tasks = [asyncio.ensure_future(call([index])) for index in range(4)]
    await turns()
    tasks[victim].cancel()
    await turns()
    backend.go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[victim], asyncio.CancelledError)
    assert [outcome for index, outcome in enumerate(outcomes) if index != victim] == [
        [index * index] for index in range(4) if index != victim
    ]
    if victim:
        assert all(victim not in sent for sent in backend.calls), "nobody waits for it any more"


async def test_a_leader_cancelled_in_flight_leaves_its_followers_to_the_next() -> None:
    backend = Backend()
    call = Coalescing(backend.send)
    first = asyncio.ensure_future(call([1]))
    await turns()
    followers = [asyncio.ensure_future(call([index])) for index in (2, 3, 4)]
    await turns()
    first.cancel()
    await turns()
    assert backend.calls == [[1], [2, 3, 4]]
    followers[0].cancel()
    await turns()
    assert backend.calls[2:] == [[3, 4]]
    backend.go.set()
    assert await asyncio.gather(*followers[1:]) == [[9], [16]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=30), st.integers(1, 3))
def test_whoever_is_not_cancelled_is_served(actions: list[tuple[int, int]], concurrency: int) -> None:
    async def run() -> None:
        running = 0

        async def send(items: Sequence[int]) -> list[int]:
            nonlocal running
            running += 1
            assert running <= concurrency
            try:
                await turns(3)
            finally:
                running -= 1
            return [item * 2 for item in items]

        call = Coalescing(send, concurrency, max_items=6)
        tasks: list[asyncio.Future[Sequence[int]]] = []
        for kind, number in actions:
            if kind == 0 and tasks:
                tasks[number % len(tasks)].cancel()
            elif kind == 1:
                await turns(number)
            else:
                tasks.append(asyncio.ensure_future(call(list(range(number)))))
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for task, outcome in zip(tasks, outcomes, strict=True):
            if not task.cancelled():
                assert outcome == [item * 2 for item in range(len(outcome))]  # type: ignore[arg-type]
        assert call._slots == concurrency
        assert call._queue == []

    asyncio.run(run())
