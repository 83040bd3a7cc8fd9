"""The scheduler process: decides which worker runs what, and keeps the store within its bounds.

There is one. It serves gRPC on a unix socket in the state folder, to the fronts, which pass callers' Execute
on to it, and to the worker of this machine, which finds the data services here too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from remote_apis import admin_pb2
from tvix.cas.disk.store import DiskBlobStore
from tvix.cas.services import add_cas_services
from tvix.cas.sql import Retention
from tvix.executor.admission import Timeouts
from tvix.executor.grpc_admin import register_admin
from tvix.executor.grpc_execution import register_execution
from tvix.executor.grpc_operations import register_operations
from tvix.executor.grpc_worker import register_workers
from tvix.executor.metrics import SchedulerMetrics
from tvix.executor.operations_store import OperationsStore
from tvix.executor.platform_policy import Kind, PlatformPolicy, Rule
from tvix.executor.queue_model import QueueConfig
from tvix.executor.scheduler import Scheduler, SchedulerConfig
from tvix.http2.server import GrpcServer
from tvix.server.child import Child, run_child
from tvix.server.config import ExecutionSection
from tvix.server.housekeeping import Prune, keep_house
from tvix.server.metrics import CallMeter, action_cache_lookups, keep_metering
from tvix.server.stores import Stores, cas_services, open_stores

CUT_SECONDS = 1.0
"""How long calls may go on when the process is told to end; the fronts have ended theirs by then."""


def scheduler_config(execution: ExecutionSection) -> SchedulerConfig:
    """Return the scheduler's own settings."""
    return SchedulerConfig(
        queue=QueueConfig(max_attempts=execution.max_attempts),
        timeouts=Timeouts(execution.default_timeout_seconds, execution.max_timeout_seconds),
        retention_seconds=execution.result_retention_seconds,
    )


def platform_policy(execution: ExecutionSection) -> PlatformPolicy:
    """Return the built-in table with the configuration's rules on top."""
    return PlatformPolicy({name: Rule(Kind(kind)) for name, kind in execution.platform.items()})


@asynccontextmanager
async def running_scheduler(child: Child, stores: Stores) -> AsyncIterator[Scheduler]:
    """Start the scheduler with what was in flight when the last process ended; close it at the end."""
    execution = child.config.execution
    operations = OperationsStore(stores.database)
    await operations.open()
    try:
        scheduler = Scheduler(
            stores.blobs,
            stores.actions,
            operations,
            scheduler_config(execution),
            pins=stores.blobs,
            policy=platform_policy(execution),
            streams=stores.log_streams,
        )
        await scheduler.start()
        try:
            yield scheduler
        finally:
            await scheduler.close()
    finally:
        await operations.close()


def chores(stores: Stores) -> list[tuple[str, Prune]]:
    """Return what to prune now and then."""
    tables = [(name, partial(table.prune, Retention())) for name, table in stores.tables.items()]
    return [("logs", stores.log_streams.prune), *tables]


async def add_store_status(status: admin_pb2.Status, blobs: DiskBlobStore) -> None:
    """Add to a status what the scheduler does not know: the store, and look-ups made through the fronts."""
    disk = blobs.statistics()
    status.stores.add(
        name=str(blobs.config.path),
        blobs=disk.blobs,
        used_bytes=disk.used_bytes,
        max_bytes=disk.max_size_bytes or 0,
        free_disk_bytes=disk.free_bytes,
        evicted_blobs=disk.evictions,
    )
    lookups = await asyncio.to_thread(action_cache_lookups)
    status.counters.cache_hits, status.counters.cache_misses = lookups


async def main(child: Child) -> None:
    """Run the process."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(child.config))
        meter = CallMeter()
        server = GrpcServer(observe=meter.observe)
        stack.push_async_callback(add_cas_services(server, cas_services(child.config, stores)).close)
        scheduler = await stack.enter_async_context(running_scheduler(child, stores))
        if child.config.execution.enabled:
            register_execution(server, scheduler)
            register_operations(server, scheduler)
            register_workers(server, scheduler)
        register_admin(server, scheduler, lambda status: add_store_status(status, stores.blobs))
        server.add_unix_socket(str(child.config.state.scheduler_socket))
        await server.start()
        stack.push_async_callback(server.stop, CUT_SECONDS)
        child.ready()
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(stores.blobs.evict_loop()),
                tasks.create_task(keep_metering(meter, child.assignment.name)),
                tasks.create_task(SchedulerMetrics(scheduler).keep_updating()),
                tasks.create_task(keep_house(chores(stores))),
            ]
            await child.draining.wait()
            for task in background:
                task.cancel()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_child(main)
