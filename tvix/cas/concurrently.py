"""Several coroutines at once, failing as one would."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(calls: Sequence[Coroutine[Any, Any, T]], limit: int = 16) -> list[T]:
    """Run all, at most `limit` at a time; return their results in order.

    When one fails the others are cancelled, and its own exception is raised rather than a group.
    """
    if len(calls) == 1:
        return [await calls[0]]
    free = asyncio.Semaphore(limit)

    async def run(call: Coroutine[Any, Any, T]) -> T:
        async with free:
            return await call

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(call)) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    finally:
        for call in calls:
            call.close()  # has no effect unless it was cancelled before it began
    return [task.result() for task in tasks]
