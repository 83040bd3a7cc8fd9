"""The middle of the scheduler. Most of it is tested through the whole: test_scheduler.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.world import World, last_of, running_world
from tvix.executor.interfaces import Stage
from tvix.executor.queue_model import QueueConfig


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def test_progress_reaches_late_watchers(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    name = (await stream.read()).name
    assign = await worker.assigned.get()
    progress = re_pb2.ExecutedActionMetadata(worker="w1")
    progress.execution_start_timestamp.FromSeconds(5)
    await worker.say(progress={"lease_id": assign.lease_id, "metadata": progress})
    await world.settled()
    again: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    metadata = re_pb2.ExecuteOperationMetadata()
    (await again.read()).metadata.Unpack(metadata)
    assert metadata.partial_execution_metadata == progress


async def test_memory_of_finished_operations_is_bounded(tmp_path: Path) -> None:
    async with running_world(tmp_path, max_remembered=2) as world:
        worker = await world.worker()
        names: list[str] = []
        for i in range(5):
            stream = world.execute(world.action(f"{i}"))
            names.append((await stream.read()).name)
            await worker.run_one()
            await last_of(stream)
        assert len(world.scheduler.dispatcher.done) == 2
        found = await asyncio.gather(*(world.scheduler.get(name) for name in names))
        assert [operation.stage for operation in found] == [Stage.COMPLETED] * 5


async def test_due_things_are_done_by_themselves(tmp_path: Path) -> None:
    async with running_world(tmp_path, queue=QueueConfig(startup_grace_seconds=0.01)) as world:
        stream = world.execute(world.action())
        await stream.read()
        world.clock.now += 1
        assert (await last_of(stream)).status.code == 9
