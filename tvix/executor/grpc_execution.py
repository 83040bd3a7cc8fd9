"""build.bazel.remote.execution.v2.Execution over the scheduler.

Every call has an operation of its own, also when several share one run. Streams begin at once, repeat
themselves when nothing happens (proxies cut silent streams, clients give up on them), and end with the
operation. A client that goes away can come back with WaitExecution.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.longrunning import operations_pb2

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tvix.cas.digest import digest_from_proto
from tvix.errors import InvalidInput
from tvix.executor.grpc_operations import operation_to_proto
from tvix.executor.interfaces import Execution
from tvix.executor.operation import Operation
from tvix.executor.platform_policy import Property
from tvix.executor.scheduler import Scheduler
from tvix.request_metadata import request_metadata
from tvix.rpc import handled

UPDATE_SECONDS = 20.0
"""How often a stream repeats itself."""

OVERRIDE_HEADER = "x-buildbuddy-platform."
"""Followed by a property's name: sets it for this call (a convention of BuildBuddy's clients)."""


class ExecutionService(re_grpc.ExecutionServicer):
    """Execute and WaitExecution."""

    def __init__(self, scheduler: Scheduler, *, update_seconds: float = UPDATE_SECONDS) -> None:
        self._scheduler = scheduler
        self._update_seconds = update_seconds

    @handled
    async def Execute(self, request: re_pb2.ExecuteRequest, context: Any) -> AsyncIterator[operations_pb2.Operation]:
        if not request.HasField("action_digest"):
            raise InvalidInput("action_digest: is not set", field="action_digest")
        execution = Execution(
            digest_from_proto(request.action_digest, request.digest_function, field="action_digest"),
            request.instance_name,
            request.skip_cache_lookup,
            request.execution_policy.priority,
            request_metadata(context),
        )
        operation = await self._scheduler.begin(execution, _overrides(context))
        async with aclosing(self._stream(operation)) as messages:
            async for message in messages:
                yield message

    @handled
    async def WaitExecution(
        self, request: re_pb2.WaitExecutionRequest, context: Any
    ) -> AsyncIterator[operations_pb2.Operation]:
        if not request.name:
            raise InvalidInput("name: is empty; it must be an operation's", field="name")
        operation = await self._scheduler.get(request.name)
        async with aclosing(self._stream(operation)) as messages:
            async for message in messages:
                yield message

    async def _stream(self, operation: Operation) -> Any:
        async with aclosing(self._scheduler.watch(operation, self._update_seconds)) as states:
            async for state in states:
                yield operation_to_proto(state)


def _overrides(context: Any) -> tuple[Property, ...]:
    """Return the platform properties set by headers."""
    start = len(OVERRIDE_HEADER)
    return tuple(
        Property(key[start:], value)
        for key, value in context.invocation_metadata() or ()
        if key.startswith(OVERRIDE_HEADER) and isinstance(value, str)
    )


def register_execution(server: Any, scheduler: Scheduler, *, update_seconds: float = UPDATE_SECONDS) -> None:
    """Serve Execution on a grpc.aio server."""
    service = ExecutionService(scheduler, update_seconds=update_seconds)
    re_grpc.add_ExecutionServicer_to_server(service, server)
