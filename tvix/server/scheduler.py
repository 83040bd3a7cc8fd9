"""The scheduler process: decides which worker runs what, and keeps the store within its bounds.

There is one. It serves gRPC on a unix socket in the state folder, to the fronts, which pass callers' Execute
on to it, and to the worker of this machine, which finds the data services here too.
"""

from __future__ import annotations

import asyncio
import contextlib

from tvix.cas.capabilities import CapabilitiesConfig
from tvix.cas.services import CasServices, add_cas_services
from tvix.http2.server import GrpcServer
from tvix.server.child import Child, run_child
from tvix.server.metrics import CallMeter
from tvix.server.stores import Stores, open_stores


async def serve(child: Child, stores: Stores) -> None:
    """Serve until told to stop."""
    meter = CallMeter()
    server = GrpcServer(observe=meter.observe)
    uploads = add_cas_services(
        server,
        CasServices(
            stores.blobs,
            stores.actions,
            CapabilitiesConfig(execution=child.config.execution.enabled),
            chunk_lists=stores.chunk_lists,
        ),
    )
    server.add_unix_socket(str(child.config.state.scheduler_socket))
    await server.start()
    child.ready()
    async with asyncio.TaskGroup() as tasks:
        evicting = tasks.create_task(stores.blobs.evict_loop())
        await child.draining.wait()
        await server.stop(1.0)
        await uploads.close()
        evicting.cancel()


async def main(child: Child) -> None:
    """Run the process."""
    async with open_stores(child.config) as stores:
        await serve(child, stores)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_child(main)
