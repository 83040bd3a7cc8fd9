"""Execute and WaitExecution over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.executor.world import World, last_of, response_of, running_world, stage_of


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def test_an_action_runs_on_a_worker_and_its_result_is_cached(world: World) -> None:
    worker = await world.worker()
    digest = world.action("echo")
    stream = world.execute(digest)
    first = await stream.read()
    assert first.name
    assert stage_of(first) in ("QUEUED", "EXECUTING")
    assign = await worker.run_one()
    assert assign.attempt == 1
    assert assign.action_digest == digest
    response = await last_of(stream)
    assert response.result.stdout_raw == b"out"
    assert not response.cached_result
    assert response.result.execution_metadata.worker == "w1"
    assert await world.cache.get(world.key(digest)) == response.result
    again = await last_of(world.execute(digest))
    assert again.cached_result
    assert again.result == response.result


async def test_stages_go_from_queued_to_completed(world: World) -> None:
    stream = world.execute(world.action())
    stages = [stage_of(await stream.read())]
    worker = await world.worker()
    stages.append(stage_of(await stream.read()))
    await worker.run_one()
    last = await stream.read()
    assert [*stages, stage_of(last)] == ["QUEUED", "EXECUTING", "COMPLETED"]
    assert last.done
    assert response_of(last).status.code == 0
