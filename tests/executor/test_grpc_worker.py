"""The worker protocol over a real socket: what goes wrong with streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import aio

from remote_apis import worker_pb2, worker_pb2_grpc
from tests.executor.world import World, last_of, running_world, succeeded


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def refusal(world: World, message: worker_pb2.WorkerMessage) -> aio.AioRpcError:
    call = worker_pb2_grpc.WorkerServiceStub(world.channel).Connect()
    await call.write(message)
    with pytest.raises(aio.AioRpcError) as caught:
        await call.read()
    return caught.value


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (worker_pb2.WorkerMessage(heartbeat=worker_pb2.Heartbeat()), "hello"),
        (worker_pb2.WorkerMessage(hello=worker_pb2.Hello(slots=1)), "worker_id"),
        (worker_pb2.WorkerMessage(hello=worker_pb2.Hello(worker_id="w", slots=0)), "slots: 0"),
    ],
)
async def test_a_wrong_first_message_is_invalid(world: World, message: worker_pb2.WorkerMessage, named: str) -> None:
    error = await refusal(world, message)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in (error.details() or "")


async def test_the_welcome_tells_times_and_leases_to_stop(world: World) -> None:
    worker = await world.worker("w1", "old lease")
    assert worker.welcome is not None
    assert worker.welcome.heartbeat_seconds == world.config.queue.heartbeat_seconds
    assert worker.welcome.lease_timeout_seconds == world.config.queue.lease_timeout_seconds
    assert list(worker.welcome.unknown_lease_ids) == ["old lease"]


async def test_a_second_stream_of_a_worker_replaces_the_first(world: World) -> None:
    first = await world.worker("w1")
    second = await world.worker("w1")
    assert first._reader is not None
    await first._reader
    stream = world.execute(world.action())
    await second.run_one()
    assert (await last_of(stream)).status.code == 0


async def test_a_draining_worker_finishes_what_it_has_and_gets_no_more(world: World) -> None:
    worker = await world.worker("w1", slots=2)
    first, second = world.execute(world.action("a")), world.execute(world.action("b"))
    assigns = [await worker.assigned.get(), await worker.assigned.get()]
    await worker.say(draining={})
    await world.settled()
    third = world.execute(world.action("c"))
    await third.read()
    for assign in assigns:
        await worker.finish(assign, succeeded())
    await last_of(first)
    await last_of(second)
    assert worker.assigned.empty()
    other = await world.worker("w2")
    await other.run_one()
    assert (await last_of(third)).status.code == 0


async def test_a_silent_worker_is_cut_off_and_told_when_to_come_back(world: World) -> None:
    worker = await world.worker("w1")
    await world.advance(world.config.queue.lease_timeout_seconds + 1)
    assert worker._reader is not None
    await worker._reader
    assert await worker._call.code() is grpc.StatusCode.UNAVAILABLE
    assert "silent" in await worker._call.details()


async def test_the_outbox_of_a_worker_that_leaves_is_dropped(world: World) -> None:
    worker = await world.worker("w1")
    await worker.disconnect()
    await world.settled()
    stream = world.execute(world.action())
    await stream.read()
    back = await world.worker("w1")
    assert (await back.run_one()).attempt == 1
    assert (await last_of(stream)).status.code == 0
