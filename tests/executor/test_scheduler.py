"""The scheduler against workers: retries, cancelling, restarts, late checks, pins, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.world import World, last_of, response_of, running_world, stage_of, succeeded
from tvix.cas.digest import Digest, digest_from_proto, digest_of, digest_to_proto
from tvix.cas.interfaces import ActionKey, PinningStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.errors import FailedPrecondition, MissingBlobs
from tvix.executor.interfaces import Execution, Stage
from tvix.executor.queue_model import QueueConfig


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def test_execute_reports_stages_and_returns_the_response(world: World) -> None:
    stages: list[Stage] = []
    execution = Execution(digest_from_proto(world.action()))
    running = asyncio.create_task(world.scheduler.execute(execution, stages.append))
    worker = await world.worker()
    await worker.run_one()
    assert (await running).result.stdout_raw == b"out"
    assert stages[-1] is Stage.COMPLETED
    assert stages == sorted(set(stages))


async def test_an_end_that_comes_while_the_watcher_is_busy_is_seen(world: World) -> None:
    operation = await world.scheduler.begin(Execution(digest_from_proto(world.action())))
    seen: list[bool] = []
    async with aclosing(world.scheduler.watch(operation, 100)) as states:
        async for state in states:
            seen.append(state.done)
            if not state.done:
                await world.scheduler.cancel(operation.name)
    assert seen == [False, True]


async def test_cancelling_execute_stops_the_run(world: World) -> None:
    worker = await world.worker()
    execution = Execution(digest_from_proto(world.action()))
    running = asyncio.create_task(world.scheduler.execute(execution, lambda stage: None))
    assign = await worker.assigned.get()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await worker.cancelled.get() == assign.lease_id


async def test_a_client_that_leaves_before_it_has_a_name_leaves_nothing(tmp_path: Path) -> None:
    async with running_world(tmp_path, patience_seconds=100) as world:
        slow = SlowCache()
        world.scheduler._cache = slow
        stream = world.execute(world.action())
        while not world.scheduler.dispatcher.counters.submitted:
            await world.settled()
        stream.cancel()
        while not world.scheduler.dispatcher.counters.cancelled:
            await world.settled()
        slow.go_on.set()
        await world.settled()
        assert not world.scheduler.dispatcher.jobs
        assert not world.scheduler.dispatcher.operations


async def test_a_worker_that_gives_up_is_replaced_by_another(world: World) -> None:
    first = await world.worker("w1")
    stream = world.execute(world.action())
    assign = await first.assigned.get()
    second = await world.worker("w2")
    await first.finish(assign, re_pb2.ExecuteResponse(message="the sandbox does not start"), retry=True)
    assert (await first.acknowledged.get()) == assign.lease_id
    retried = await second.run_one()
    assert retried.attempt == 2
    assert (await last_of(stream)).result.execution_metadata.worker == "w2"


async def test_after_the_last_try_the_client_hears_how_often_and_where(tmp_path: Path) -> None:
    async with running_world(tmp_path, queue=QueueConfig(max_attempts=2)) as world:
        worker = await world.worker("w1")
        stream = world.execute(world.action())
        for _ in range(2):
            assign = await worker.assigned.get()
            await worker.finish(assign, re_pb2.ExecuteResponse(message="no room"), retry=True)
        response = await last_of(stream)
        assert response.status.code == 13
        assert "2 time(s)" in response.status.message
        assert "w1: no room" in response.status.message


async def test_a_worker_that_vanishes_is_replaced_and_the_client_sees_it_queued_again(world: World) -> None:
    first = await world.worker("w1")
    stream = world.execute(world.action())
    await first.assigned.get()
    assert stage_of(await stream.read()) in ("QUEUED", "EXECUTING")
    await first.disconnect()
    await world.settled()
    await world.advance(world.config.queue.lease_timeout_seconds + 1)
    second = await world.worker("w2")
    await second.run_one()
    stages = []
    while (operation := await stream.read()) is not aio.EOF:
        stages.append(stage_of(operation))
    assert stages[-1] == "COMPLETED"
    assert response_of_last(world).result.execution_metadata.worker == "w2"


def response_of_last(world: World) -> re_pb2.ExecuteResponse:
    operation = list(world.scheduler.dispatcher.done.values())[-1]
    assert operation.response is not None
    return operation.response


async def test_lost_workers_use_up_the_tries(tmp_path: Path) -> None:
    async with running_world(tmp_path, queue=QueueConfig(max_attempts=2)) as world:
        stream = world.execute(world.action())
        for name in ("w1", "w2"):
            worker = await world.worker(name)
            await worker.assigned.get()
            await worker.disconnect()
            await world.settled()
            await world.advance(world.config.queue.lease_timeout_seconds + 1)
        response = await last_of(stream)
        assert response.status.code == 14
        assert "w1: " in response.status.message
        assert "w2: " in response.status.message


async def test_a_broken_stream_costs_nothing_when_the_worker_comes_back(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    assign = await worker.assigned.get()
    await worker.disconnect()
    await world.settled()
    await world.advance(5)
    again = await world.worker("w1", assign.lease_id)
    assert again.welcome is not None
    assert list(again.welcome.unknown_lease_ids) == []
    await again.finish(assign, succeeded())
    assert await again.acknowledged.get() == assign.lease_id
    assert (await last_of(stream)).status.code == 0


async def test_a_finished_told_twice_is_acknowledged_twice(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    assign = await worker.run_one()
    await worker.finish(assign, succeeded(3))
    assert await worker.acknowledged.get() == assign.lease_id
    assert (await last_of(stream)).result.exit_code == 0


async def test_a_restarted_scheduler_knows_the_old_operations(world: World) -> None:
    digest = world.action("queued")
    stream = world.execute(digest)
    name = (await stream.read()).name
    await world.restart()
    again: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    first = await again.read()
    assert (first.name, stage_of(first)) == (name, "QUEUED")
    worker = await world.worker()
    assign = await worker.run_one()
    assert assign.action_digest == digest
    assert (await last_of(again)).result.stdout_raw == b"out"


async def test_a_run_goes_on_over_a_restart(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    name = (await stream.read()).name
    assign = await worker.assigned.get()
    await world.restart()
    again: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    assert stage_of(await again.read()) == "EXECUTING"
    back = await world.worker("w1", assign.lease_id)
    assert back.welcome is not None
    assert not back.welcome.unknown_lease_ids
    await back.finish(assign, succeeded())
    assert await back.acknowledged.get() == assign.lease_id
    response = await last_of(again)
    assert response.result.execution_metadata.worker == "w1"
    assert back.assigned.empty()


async def test_a_run_whose_worker_does_not_come_back_after_a_restart_is_tried_again(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    name = (await stream.read()).name
    await worker.assigned.get()
    await world.restart()
    other = await world.worker("w2")
    assert other.assigned.empty()
    for _ in range(3):
        await world.advance(world.config.queue.lease_timeout_seconds / 2)
        await other.say(heartbeat={})
        await world.settled()
    assert (await other.run_one()).attempt == 2
    again: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    assert (await last_of(again)).status.code == 0


async def test_finished_operations_survive_a_restart_for_the_retention_time(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    name = (await stream.read()).name
    await worker.run_one()
    await last_of(stream)
    await world.restart()
    again: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    operation = await again.read()
    assert response_of(operation).result.stdout_raw == b"out"
    world.clock.now += world.config.retention_seconds + 1
    await world.scheduler.clean_up()
    gone: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    with pytest.raises(aio.AioRpcError) as caught:
        await gone.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_nothing_is_left_of_a_finished_action(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    await worker.run_one()
    await last_of(stream)
    dispatcher = world.scheduler.dispatcher
    assert not dispatcher.jobs
    assert not dispatcher.operations
    assert not dispatcher.queue.tasks
    saved = await world.store.load()
    assert (saved.tasks, saved.leases, saved.operations) == ([], [], [])


class SlowBlobStore(MemoryBlobStore):
    """A store whose lookups wait until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await self.go_on.wait()
        return await super().find_missing(digests)


async def test_a_slow_check_of_the_inputs_does_not_hold_the_run_up_but_stops_it(tmp_path: Path) -> None:
    async with running_world(tmp_path, patience_seconds=0.001) as world:
        slow = SlowBlobStore()
        slow.blobs = world.blobs.blobs
        world.scheduler._trees._blobs = slow
        absent = digest_of(b"absent")
        root = re_pb2.Directory()
        root.files.add(name="f", digest=digest_to_proto(absent))

        def change(action: re_pb2.Action, command: re_pb2.Command) -> None:
            action.input_root_digest.CopyFrom(digest_to_proto(world.put(root.SerializeToString())))

        worker = await world.worker()
        stream = world.execute(world.action(change=change))
        assign = await worker.assigned.get()
        slow.go_on.set()
        response = await last_of(stream)
        assert response.status.code == 9
        assert absent.hash in response.status.message
        assert await worker.cancelled.get() == assign.lease_id


async def test_a_slow_cache_does_not_keep_the_client_waiting_for_its_first_message(tmp_path: Path) -> None:
    async with running_world(tmp_path, patience_seconds=0.001) as world:
        slow = SlowCache()
        world.scheduler._cache = slow
        stream = world.execute(world.action())
        assert stage_of(await stream.read()) == "CACHE_CHECK"
        slow.go_on.set()
        worker = await world.worker()
        await worker.run_one()
        assert (await last_of(stream)).status.code == 0


class SlowCache(MemoryRecordStore[ActionKey, re_pb2.ActionResult]):
    """An action cache that is slow to say that it is empty, or that it is broken."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.error = error

    async def get(self, key: ActionKey) -> re_pb2.ActionResult | None:
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return await super().get(key)


class RecordingPins(PinningStore):
    """Remembers what is pinned."""

    def __init__(self) -> None:
        self.pinned: dict[str, tuple[set[Digest], set[Digest], float]] = {}

    async def pin(self, owner: str, roots: Collection[Digest], trees: Collection[Digest], until: float) -> None:
        self.pinned[owner] = set(roots), set(trees), until

    async def unpin(self, owner: str) -> None:
        self.pinned.pop(owner, None)


async def test_inputs_are_pinned_from_submission_to_the_end(tmp_path: Path) -> None:
    pins = RecordingPins()
    async with running_world(tmp_path, extras={"pins": pins}) as world:
        digest = world.action()
        stream = world.execute(digest)
        await stream.read()
        ((roots, trees, until),) = pins.pinned.values()
        action = re_pb2.Action.FromString(world.blobs.blobs[digest_from_proto(digest)])
        assert roots == {digest_from_proto(digest), digest_from_proto(action.command_digest)}
        assert trees == {digest_from_proto(action.input_root_digest)}
        assert until == world.clock() + world.config.pin_seconds
        world.clock.now += 100
        await world.scheduler.clean_up()
        await world.settled()
        assert [until for _, _, until in pins.pinned.values()] == [world.clock() + world.config.pin_seconds]
        worker = await world.worker()
        await worker.run_one()
        await last_of(stream)
        await world.settled()
        assert not pins.pinned


class NamedStreams:
    """Log streams that are only names."""

    def __init__(self) -> None:
        self.parents: list[str] = []

    async def create(self, parent: str) -> tuple[str, str]:
        self.parents.append(parent)
        return f"logstreams/{len(self.parents)}", f"secret/{len(self.parents)}"


async def test_live_output_is_announced_to_clients_and_workers(tmp_path: Path) -> None:
    async with running_world(tmp_path, extras={"streams": NamedStreams()}) as world:
        stream = world.execute(world.action())
        metadata = re_pb2.ExecuteOperationMetadata()
        (await stream.read()).metadata.Unpack(metadata)
        assert (metadata.stdout_stream_name, metadata.stderr_stream_name) == ("logstreams/1", "logstreams/2")
        worker = await world.worker()
        assign = await worker.run_one()
        assert (assign.stdout_write_name, assign.stderr_write_name) == ("secret/1", "secret/2")
        await last_of(stream)


@pytest.mark.parametrize("error", [MissingBlobs([digest_of(b"x")]), FailedPrecondition("no")])
async def test_errors_after_the_first_message_end_the_operation(tmp_path: Path, error: Exception) -> None:
    async with running_world(tmp_path, patience_seconds=0.001) as world:
        slow = SlowCache(error)
        world.scheduler._cache = slow
        stream = world.execute(world.action())
        assert stage_of(await stream.read()) == "CACHE_CHECK"
        slow.go_on.set()
        response = await last_of(stream)
        assert (response.status.code, response.status.message) == (9, str(error))
