"""Merging the calls that many tasks make at once into few large ones.

No timer and no task: up to `concurrency` calls are in flight; whoever comes later waits for one of them to
end, and then takes along everything that waits by then. So a lone call is never delayed, and the busier it
gets the larger the batches become.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Waiting(Generic[Item, Outcome]):
    """One caller. Queued, or in flight with a leader's batch, or done."""

    __slots__ = ("changed", "error", "items", "leads", "outcomes")

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.outcomes: Sequence[Outcome] | None = None
        self.error: Exception | None = None
        self.leads = False
        """Holds one of the slots, and has not used it yet."""
        self.changed = asyncio.Event()


class Coalescing(Generic[Item, Outcome]):
    """Calls `send` with the items of one or several callers; it returns an outcome for each, in order.

    What `send` raises is raised to all whose items it was given. A caller that is cancelled takes only its own
    items along: those of others are sent again, with the next call.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]],
        concurrency: int = 1,
        max_items: int = 10_000,
    ) -> None:
        """Callers are merged up to `max_items`, though one caller's items always go together."""
        self._send = send
        self._slots = concurrency
        self._max_items = max_items
        self._queue: list[_Waiting[Item, Outcome]] = []

    async def __call__(self, items: Sequence[Item]) -> Sequence[Outcome]:
        """Return the outcomes of the items, in order."""
        me = _Waiting[Item, Outcome](items)
        self._queue.append(me)
        self._wake()
        try:
            while me.outcomes is None and me.error is None:
                if me.leads:
                    await self._lead(me)
                else:
                    await me.changed.wait()
                    me.changed.clear()
        finally:
            # Cancelled, or served by another while a slot was given to it.
            self._queue = [other for other in self._queue if other is not me]
            if me.leads:
                self._slots += 1
                self._wake()
        if me.error is not None:
            raise me.error
        assert me.outcomes is not None
        return me.outcomes

    def _wake(self) -> None:
        """Give a free slot to the first in the queue."""
        for waiting in self._queue:
            if self._slots and not waiting.leads:
                self._slots -= 1
                waiting.leads = True
                waiting.changed.set()
                return

    async def _lead(self, me: _Waiting[Item, Outcome]) -> None:
        me.leads = False
        batch = self._take()
        try:
            if batch:
                await self._send_batch(batch)
        except BaseException:
            self._queue = [waiting for waiting in batch if waiting is not me] + self._queue
            raise
        finally:
            self._slots += 1
            self._wake()

    async def _send_batch(self, batch: list[_Waiting[Item, Outcome]]) -> None:
        try:
            outcomes = await self._send([item for waiting in batch for item in waiting.items])
        except Exception as error:
            for waiting in batch:
                waiting.error = error
                waiting.changed.set()
            return
        start = 0
        for waiting in batch:
            end = start + len(waiting.items)
            waiting.outcomes = outcomes[start:end]
            waiting.changed.set()
            start = end

    def _take(self) -> list[_Waiting[Item, Outcome]]:
        count = taken = 0
        for waiting in self._queue:
            if taken and count + len(waiting.items) > self._max_items:
                break
            count += len(waiting.items)
            taken += 1
        batch, self._queue = self._queue[:taken], self._queue[taken:]
        return batch
