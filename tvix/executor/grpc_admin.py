"""tvix.admin.v1.Admin over the scheduler: what `tvix status` shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import tvix
from remote_apis import admin_pb2, admin_pb2_grpc
from tvix.errors import InvalidInput
from tvix.executor.introspection import take_snapshot
from tvix.executor.scheduler import Scheduler
from tvix.rpc import handled

DEFAULT_ENTRIES = 100
MAX_ENTRIES = 10_000

AddStores = Callable[[admin_pb2.Status], Awaitable[None]]
"""Adds to a status what the scheduler does not know: `stores`."""


class AdminService(admin_pb2_grpc.AdminServicer):
    """GetStatus and DrainWorker."""

    def __init__(self, scheduler: Scheduler, add_stores: AddStores | None = None) -> None:
        self._scheduler = scheduler
        self._add_stores = add_stores

    @handled
    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Any) -> admin_pb2.Status:
        if request.max_entries < 0:
            raise InvalidInput(f"max_entries: {request.max_entries} is negative", field="max_entries")
        status = status_to_proto(self._scheduler, min(request.max_entries or DEFAULT_ENTRIES, MAX_ENTRIES))
        if self._add_stores is not None:
            await self._add_stores(status)
        return status

    @handled
    async def DrainWorker(self, request: admin_pb2.DrainWorkerRequest, context: Any) -> admin_pb2.DrainWorkerResponse:
        self._scheduler.drain_worker(request.worker_id)
        return admin_pb2.DrainWorkerResponse()


def status_to_proto(scheduler: Scheduler, max_entries: int) -> admin_pb2.Status:
    """Return the scheduler's part of a status."""
    snapshot = take_snapshot(scheduler, max_entries)
    status = admin_pb2.Status(
        version=tvix.__version__,
        queued=snapshot.queued,
        running=snapshot.running,
        operations=snapshot.operations,
        queue=[admin_pb2.QueuedGroup(**asdict(group)) for group in snapshot.queue],
        actions=[admin_pb2.RunningAction(**asdict(action)) for action in snapshot.actions],
        workers=[admin_pb2.WorkerStatus(**asdict(worker)) for worker in snapshot.workers],
        counters=admin_pb2.Counters(
            **asdict(scheduler.dispatcher.counters), completed_per_second=snapshot.completed_per_second
        ),
    )
    status.started.FromNanoseconds(int(snapshot.started_at * 1e9))
    return status


def register_admin(server: Any, scheduler: Scheduler, add_stores: AddStores | None = None) -> None:
    """Serve Admin on a grpc.aio server."""
    admin_pb2_grpc.add_AdminServicer_to_server(AdminService(scheduler, add_stores), server)
