"""A front process: all gRPC services and HTTP, on ports shared with the other fronts.

The data services work on the stores right here; Execution, Operations, WorkerService and Admin are passed on to
the scheduler process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack

from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from tvix.cas.services import add_cas_services
from tvix.http2.server import GrpcServer
from tvix.server import passthrough
from tvix.server.child import Child, run_child
from tvix.server.hash_lookup import HashLookup
from tvix.server.http import HttpServer
from tvix.server.http_cache import HttpCache
from tvix.server.metrics import CallMeter, keep_metering
from tvix.server.passthrough import Passthrough
from tvix.server.stores import Stores, cas_services, open_stores

DATA_SERVICES = (
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "build.bazel.remote.execution.v2.ActionCache",
    "google.bytestream.ByteStream",
    "build.bazel.remote.logstream.v1.LogStreamService",
    "build.bazel.remote.asset.v1.Fetch",
    "build.bazel.remote.asset.v1.Push",
)
EXECUTION_SERVICES = (passthrough.EXECUTION, passthrough.OPERATIONS)


class Front:
    """Everything that one front process serves."""

    def __init__(self, child: Child, stores: Stores) -> None:
        self._child = child
        self._meter = CallMeter()
        self._health = HealthServicer()
        self._server = GrpcServer(observe=self._meter.observe)
        self._passthrough = Passthrough(child.config.state.scheduler_target)
        execution = child.config.execution.enabled
        self._work = add_cas_services(self._server, cas_services(child.config, stores))
        self._server.add_generic_rpc_handlers((self._passthrough,))
        self._names = [*DATA_SERVICES, *(EXECUTION_SERVICES if execution else ())]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        described = [*self._names, "grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(described), self._server)
        cache = HttpCache(stores.blobs, stores.actions, HashLookup(stores.blobs).find)
        self._http = HttpServer(cache, is_serving=lambda: not child.draining.is_set())

    async def serve(self) -> None:
        """Serve until told to stop, then drain."""
        assignment = self._child.assignment
        for name in self._names:
            await self._health.set(name, HealthCheckResponse.SERVING)
        self._server.add_port(assignment.config.server.grpc.host, assignment.grpc_port, share=True)
        await self._server.start()
        await self._http.start(socket.socket(fileno=assignment.http_fd))
        async with asyncio.TaskGroup() as tasks:
            metering = tasks.create_task(keep_metering(self._meter, assignment.name))
            self._child.ready()
            await self._child.draining.wait()
            await self._drain()
            metering.cancel()

    async def _drain(self) -> None:
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(self._child.config.server.drain_seconds))
        hurried = asyncio.ensure_future(self._child.hurried.wait())
        await asyncio.wait([stopping, hurried], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await self._server.stop(None)
        hurried.cancel()
        await asyncio.gather(stopping, hurried, return_exceptions=True)
        await self._http.stop()
        await self._work.close()
        await self._passthrough.close()


async def main(child: Child) -> None:
    """Run the process."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(child.config))
        await Front(child, stores).serve()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_child(main)
