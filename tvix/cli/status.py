"""`tvix status`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from tvix.cli.remote import human_seconds, human_size, open_remote, server_options

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from remote_apis import admin_pb2


@click.command()
@server_options
@click.option("--watch", "-w", is_flag=True, help="Show it again every second until Ctrl-C.")
@click.option("--max-entries", default=20, show_default=True, help="At most so many lines in each table.")
def status(server: str, instance: str | None, watch: bool, max_entries: int) -> None:
    """Show what a server is doing: workers, queue, running actions, hit rates, disk.

    \b
    tvix status
    tvix status --watch --server grpc://build.example:8980
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    async def run() -> None:
        from remote_apis import admin_pb2, admin_pb2_grpc

        async with open_remote(server, instance) as remote:
            stub = admin_pb2_grpc.AdminStub(remote.connection.channel)
            while True:
                reply = await remote.ask(stub.GetStatus, admin_pb2.GetStatusRequest(max_entries=max_entries))
                if watch:
                    console.clear()
                for part in render(reply, time.time()):
                    console.print(part)
                if not watch:
                    return
                await asyncio.sleep(1)

    asyncio.run(run())


def render(reply: admin_pb2.Status, now_seconds: float) -> list[RenderableType]:
    """Return what to print, part by part."""
    up_seconds = now_seconds - reply.started.ToNanoseconds() / 1e9
    parts: list[RenderableType] = [
        f"tvix {reply.version}, up {human_seconds(max(0, up_seconds))}: {_load(reply)}",
        _counters(reply.counters),
        *(_store(store) for store in reply.stores),
    ]
    for table in (_workers(reply), _actions(reply), _queue(reply)):
        if table.row_count:
            parts += ["", table]
    return parts


def _load(reply: admin_pb2.Status) -> str:
    slots = sum(worker.slots for worker in reply.workers if worker.connected)
    busy = sum(worker.busy for worker in reply.workers if worker.connected)
    workers = sum(worker.connected for worker in reply.workers)
    return f"{busy} of {slots} slots busy on {workers} worker(s), {reply.queued} actions queued"


def _counters(counters: admin_pb2.Counters) -> str:
    looked_up = counters.cache_hits + counters.cache_misses
    rate = f"{100 * counters.cache_hits / looked_up:.0f} %" if looked_up else "-"
    return (
        f"action cache: {rate} hits of {looked_up} look-ups; actions: {counters.completed} completed, "
        f"{counters.failed} failed, {counters.cancelled} cancelled, {counters.merged} merged, {counters.retried} "
        "retried; "
        f"{counters.completed_per_second:.1f} per second over the last minute"
    )


def _store(store: admin_pb2.StoreStatus) -> str:
    limit = (
        f" of {human_size(store.max_bytes)} ({100 * store.used_bytes / store.max_bytes:.0f} %)"
        if store.max_bytes
        else ""
    )
    return (
        f"store {store.name}: {store.blobs} blobs, {human_size(store.used_bytes)}{limit}, "
        f"{human_size(store.free_disk_bytes)} free on disk, {store.evicted_blobs} evicted"
    )


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _workers(reply: admin_pb2.Status) -> Table:
    table = _table("Workers", "worker", "state", "busy", "finished", "platform")
    for worker in reply.workers:
        state = "draining" if worker.draining else "connected" if worker.connected else "away"
        if not worker.connected:
            state += f" for {human_seconds(worker.silent_seconds)}"
        table.add_row(worker.id, state, f"{worker.busy}/{worker.slots}", str(worker.finished), worker.platform)
    return table


def _actions(reply: admin_pb2.Status) -> Table:
    table = _table(f"Running ({reply.running})", "for", "what", "worker", "try", "action")
    for action in reply.actions:
        what = " ".join(filter(None, (action.mnemonic, action.target))) or "-"
        table.add_row(human_seconds(action.running_seconds), what, action.worker_id, str(action.attempt), action.action)
    return table


def _queue(reply: admin_pb2.Status) -> Table:
    table = _table(f"Queued ({reply.queued})", "count", "waiting", "needs", "workers that could", "invocation")
    for group in reply.queue:
        table.add_row(
            str(group.count),
            human_seconds(group.waiting_seconds),
            group.requirements or "any",
            str(group.eligible_workers),
            group.invocation,
        )
    return table
