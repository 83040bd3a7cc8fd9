"""The scheduler's figures for Prometheus. Gauges and counters are brought up to date once a second; only the
two histograms are touched per action.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from prometheus_client import Counter, Gauge, Histogram

from tvix.executor.operation import Operation
from tvix.executor.scheduler import Scheduler

UPDATE_SECONDS = 1.0
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

QUEUED = Gauge("tvix_scheduler_queued_actions", "Actions waiting for a worker.", multiprocess_mode="mostrecent")
RUNNING = Gauge("tvix_scheduler_running_actions", "Actions on workers.", multiprocess_mode="mostrecent")
OPERATIONS = Gauge("tvix_scheduler_operations", "Operations not ended.", multiprocess_mode="mostrecent")
WORKERS = Gauge("tvix_scheduler_workers", "Workers by state.", ["state"], multiprocess_mode="mostrecent")
SLOTS = Gauge("tvix_scheduler_slots", "Slots of connected workers.", multiprocess_mode="mostrecent")
EVENTS = Counter("tvix_scheduler_events", "What became of operations.", ["event"])
TOTAL_SECONDS = Histogram(
    "tvix_execution_seconds", "From Execute to the end, by whether it was cached.", ["result"], buckets=_SECONDS
)
QUEUED_SECONDS = Histogram("tvix_execution_queued_seconds", "From submission to a worker.", buckets=_SECONDS)


class SchedulerMetrics:
    """Keeps the figures of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._counted: dict[str, int] = {}
        scheduler.dispatcher.on_completed.append(_observe)

    def __repr__(self) -> str:
        return f"<SchedulerMetrics of {self._scheduler!r}>"

    def update(self) -> None:
        """Bring gauges and counters up to date."""
        dispatcher = self._scheduler.dispatcher
        QUEUED.set(len(dispatcher.queue.ready))
        RUNNING.set(len(dispatcher.queue.leases))
        OPERATIONS.set(len(dispatcher.operations))
        workers = dispatcher.queue.workers.values()
        connected = [worker for worker in workers if worker.connected]
        WORKERS.labels("connected").set(len(connected))
        WORKERS.labels("draining").set(sum(worker.draining for worker in connected))
        WORKERS.labels("away").set(len(workers) - len(connected))
        SLOTS.set(sum(worker.slots for worker in connected))
        for event, count in asdict(dispatcher.counters).items():
            EVENTS.labels(event).inc(count - self._counted.get(event, 0))
            self._counted[event] = count

    async def keep_updating(self) -> None:
        """Update every second until cancelled."""
        while True:
            self.update()
            await asyncio.sleep(UPDATE_SECONDS)


def _observe(operation: Operation) -> None:
    response = operation.response
    if response is None or operation.done_at is None:
        return
    result = "failed" if response.status.code else "cached" if response.cached_result else "run"
    TOTAL_SECONDS.labels(result).observe(operation.done_at - operation.created_at)
    metadata = response.result.execution_metadata
    if result == "run" and metadata.HasField("queued_timestamp") and metadata.HasField("worker_start_timestamp"):
        waited_ns = metadata.worker_start_timestamp.ToNanoseconds() - metadata.queued_timestamp.ToNanoseconds()
        QUEUED_SECONDS.observe(max(0, waited_ns) / 1e9)
