"""Hands calls of whole services on to the scheduler process, as raw bytes.

Fronts know nothing of execution: messages are neither parsed nor made anew; metadata, deadlines,
cancellation and trailing details travel on. What this adds is patience: while the scheduler is being
started again, calls wait for it instead of failing, and an Execute stream that was cut is taken up again
by WaitExecution, so that clients (some give up at the first UNAVAILABLE) notice nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.longrunning import operations_pb2
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import Unavailable
from tvix.rpc import CHANNEL_OPTIONS, STATUS_DETAILS_KEY, abort

EXECUTION = "build.bazel.remote.execution.v2.Execution"
OPERATIONS = "google.longrunning.Operations"
WORKERS = "tvix.worker.v1.WorkerService"
ADMIN = "tvix.admin.v1.Admin"

EXECUTE = f"/{EXECUTION}/Execute"
WAIT_EXECUTION = f"/{EXECUTION}/WaitExecution"

PATIENCE_SECONDS = 30.0
"""How long a call waits for the scheduler to come back, unless the caller's own deadline is sooner."""
RETRY_SECONDS = 2.0
"""When callers whose call could not be handed on are told to come back."""
PAUSE_SECONDS = 0.05
"""Between two tries of one call."""

UPSTREAM_OPTIONS: list[tuple[str, Any]] = [
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]

Metadata = tuple[tuple[str, str | bytes], ...]


def forwarded(metadata: Any) -> Metadata:
    """Return what of a call's metadata may be sent on: not what gRPC itself says in every call."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if not key.startswith((":", "grpc-")) and key not in ("user-agent", "te", "content-type")
    )


def is_lost_connection(error: aio.AioRpcError) -> bool:
    """Whether the other side went away, as opposed to having answered with an error."""
    lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return lost and not any(key == STATUS_DETAILS_KEY for key, _ in error.trailing_metadata() or ())


def _timeout(context: Any) -> float | None:
    seconds = context.time_remaining()
    return seconds if seconds is not None and seconds < 1e8 else None


class Passthrough(grpc.GenericRpcHandler):
    """Handlers of every method of Execution, Operations, WorkerService and Admin."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channel: Any = aio.insecure_channel(target, options=UPSTREAM_OPTIONS)
        self._active = 0
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"<Passthrough to {self._target}, {self._active} streams>"

    @property
    def active_calls(self) -> int:
        """How many streams are being handed on now."""
        return self._active

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, None when its service is none of ours; called by gRPC."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = self._make_handler(method)
            if handler is not None and len(self._handlers) < 100:  # names come from callers
                self._handlers[method] = handler
        return handler

    def _make_handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        service = method[1:].rpartition("/")[0]
        if service == EXECUTION:
            return grpc.unary_stream_rpc_method_handler(_bound(self._execution, method))
        if service in (OPERATIONS, ADMIN):
            return grpc.unary_unary_rpc_method_handler(_bound(self._unary, method))
        if service == WORKERS:
            return grpc.stream_stream_rpc_method_handler(_bound(self._both_ways, method))
        return None

    async def close(self) -> None:
        """Disconnect; the server's calls are over by then."""
        await self._channel.close()

    async def _execution(self, method: str, request: bytes, context: Any) -> None:
        """Hand on Execute or WaitExecution; when the scheduler goes away, wait and take the stream up again."""
        first, operation_name = (method, request), ""
        patience = _Patience()
        while True:
            call = self._channel.unary_stream(method)(
                request, metadata=forwarded(context.invocation_metadata()), timeout=_timeout(context)
            )
            try:
                async with aclosing(self._replies(call)) as replies:
                    async for reply in replies:
                        operation_name = operation_name or operations_pb2.Operation.FromString(reply).name
                        patience.reset()
                        await context.write(reply)
                return
            except aio.AioRpcError as error:
                if is_lost_connection(error) and await self._back(patience):
                    if operation_name:
                        method = WAIT_EXECUTION
                        request = re_pb2.WaitExecutionRequest(name=operation_name).SerializeToString()
                elif error.code() is grpc.StatusCode.NOT_FOUND and (method, request) != first:
                    (method, request), operation_name = first, ""
                else:
                    await _fail(context, error)

    async def _unary(self, method: str, request: bytes, context: Any) -> bytes | None:
        patience = _Patience()
        while True:
            try:
                reply: bytes = await self._channel.unary_unary(method)(
                    request, metadata=forwarded(context.invocation_metadata()), timeout=_timeout(context)
                )
                return reply
            except aio.AioRpcError as error:
                if not (is_lost_connection(error) and await self._back(patience)):
                    await _fail(context, error)

    async def _both_ways(self, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
        call = self._channel.stream_stream(method)(metadata=forwarded(context.invocation_metadata()))
        sending = asyncio.create_task(_send_all(requests, call))
        try:
            async with aclosing(self._replies(call)) as replies:
                async for reply in replies:
                    await context.write(reply)
        except aio.AioRpcError as error:
            await _fail(context, error)
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def _replies(self, call: Any) -> AsyncGenerator[bytes, None]:
        self._active += 1
        try:
            async for reply in call:
                yield reply
        finally:
            self._active -= 1
            call.cancel()

    async def _back(self, patience: _Patience) -> bool:
        """Wait until the scheduler can be reached again; False when that takes too long."""
        await asyncio.sleep(PAUSE_SECONDS)
        remaining = patience.remaining()
        if remaining <= 0:
            return False
        try:
            await asyncio.wait_for(self._channel.channel_ready(), remaining)
        except TimeoutError:
            return False
        return True


async def _fail(context: Any, error: aio.AioRpcError) -> None:
    """End the caller's call as the scheduler's ended."""
    if is_lost_connection(error):
        await abort(context, Unavailable("the scheduler can't be reached", retry_seconds=RETRY_SECONDS))
    trailing = tuple((key, value) for key, value in error.trailing_metadata() or () if key == STATUS_DETAILS_KEY)
    await context.abort(error.code(), error.details() or "", trailing)


class _Patience:
    """How much longer one call waits for the scheduler; starts anew with every reply."""

    def __init__(self) -> None:
        self._since: float | None = None

    def reset(self) -> None:
        self._since = None

    def remaining(self) -> float:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return self._since + PATIENCE_SECONDS - now


def _bound(handle: Any, method: str) -> Any:
    async def handler(request: Any, context: Any) -> Any:
        return await handle(method, request, context)

    return handler


async def _send_all(requests: AsyncIterator[bytes], call: Any) -> None:
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (aio.AioRpcError, asyncio.InvalidStateError):
        return  # the call is over; what it replied says why
