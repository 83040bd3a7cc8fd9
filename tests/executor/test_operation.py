"""Waiting for an operation to change."""

from __future__ import annotations

import asyncio

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_of
from tvix.executor.interfaces import Stage
from tvix.executor.operation import Operation


def make_operation() -> Operation:
    return Operation("operations/1", "", digest_of(b"a"), 0.0)


async def test_all_waiters_wake_at_a_change() -> None:
    operation = make_operation()
    waiters = [asyncio.create_task(operation.wait_changed(0, 100)) for _ in range(3)]
    await asyncio.sleep(0)
    operation.changed()
    assert await asyncio.gather(*waiters) == [True] * 3


async def test_a_change_seen_late_is_not_waited_for() -> None:
    operation = make_operation()
    operation.changed()
    assert await operation.wait_changed(0, 100)


async def test_without_a_change_the_time_runs_out_and_nothing_is_left() -> None:
    operation = make_operation()
    assert not await operation.wait_changed(0, 0.001)
    assert not operation._waiting


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    operation = make_operation()
    waiter = asyncio.create_task(operation.wait_changed(0, 100))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert not operation._waiting


def test_it_is_done_when_it_has_a_response() -> None:
    operation = make_operation()
    assert not operation.done
    operation.stage, operation.response = Stage.COMPLETED, re_pb2.ExecuteResponse()
    assert operation.done
    assert repr(operation) == "<Operation operations/1 COMPLETED>"
