"""The scheduler's Prometheus figures."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import REGISTRY

from tests.executor.world import last_of, running_world
from tvix.executor.metrics import SchedulerMetrics


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_figures_follow_the_scheduler(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        metrics = SchedulerMetrics(world.scheduler)
        submitted = value("tvix_scheduler_events_total", event="submitted")
        ran = value("tvix_execution_seconds_count", result="run")
        cached = value("tvix_execution_seconds_count", result="cached")
        digest = world.action()
        stream = world.execute(digest)
        await stream.read()
        metrics.update()
        assert value("tvix_scheduler_queued_actions") == 1
        worker = await world.worker(slots=3)
        await worker.run_one()
        await last_of(stream)
        await last_of(world.execute(digest))
        metrics.update()
        assert value("tvix_scheduler_queued_actions") == 0
        assert value("tvix_scheduler_slots") == 3
        assert value("tvix_scheduler_workers", state="connected") == 1
        assert value("tvix_scheduler_events_total", event="submitted") == submitted + 2
        assert value("tvix_execution_seconds_count", result="run") == ran + 1
        assert value("tvix_execution_seconds_count", result="cached") == cached + 1
