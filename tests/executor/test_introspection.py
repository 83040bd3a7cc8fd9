"""Snapshots. What of them goes over the wire: test_grpc_admin.py."""

from __future__ import annotations

from pathlib import Path

from tests.executor.world import last_of, running_world
from tvix.executor.introspection import take_snapshot


async def test_the_rate_is_of_the_last_minute(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        worker = await world.worker()
        await world.advance(10)
        for i in range(5):
            stream = world.execute(world.action(f"{i}"))
            await worker.run_one()
            await last_of(stream)
        assert take_snapshot(world.scheduler).completed_per_second == 0.5
        world.clock.now += 50
        assert take_snapshot(world.scheduler).completed_per_second == 5 / 60
        world.clock.now += 60
        assert take_snapshot(world.scheduler).completed_per_second == 0


async def test_an_action_being_stopped_is_counted_but_not_shown(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        worker = await world.worker()
        stream = world.execute(world.action())
        name = (await stream.read()).name
        await worker.assigned.get()
        await world.scheduler.cancel(name)
        snapshot = take_snapshot(world.scheduler)
        assert (snapshot.running, snapshot.actions, snapshot.workers[0].busy) == (1, [], 1)
