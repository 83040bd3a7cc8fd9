"""All at once, failing as one."""

import asyncio

import pytest

from tvix.cas.concurrently import all_of
from tvix.errors import Unavailable


async def test_results_stand_in_order_and_the_limit_holds() -> None:
    running = peak = 0

    async def work(number: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for _ in range(10 - number):
            await asyncio.sleep(0)
        running -= 1
        return number

    assert await all_of([work(number) for number in range(10)], limit=3) == list(range(10))
    assert peak == 3
    assert await all_of([]) == []
    assert await all_of([work(7)]) == [7]


@pytest.mark.parametrize("count", [1, 5])
async def test_the_first_failure_is_raised_as_itself_and_the_rest_is_cancelled(count: int) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        try:
            if number == 0:
                raise Unavailable("gone")
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(Unavailable, match="gone"):
        await all_of([work(number) for number in range(count)], limit=3)
    assert sorted(begun) == sorted(ended)
