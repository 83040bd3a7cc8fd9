"""A gRPC server for asyncio: grpc.aio's server interface over our own HTTP/2 connections.

Generated `add_…_to_server` functions, generic handlers and servicers written for grpc.aio work here
unchanged. What is left out: interceptors, synchronous handlers, response compression. Why it exists:
docs/decisions/0005-own-http2-server.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from tvix.http2.connection import Connection
from tvix.http2.context import CallContext, Requests
from tvix.http2.frames import ErrorCode
from tvix.http2.stream import BadMessage, Stream

log = logging.getLogger(__name__)

_OK = 0
_UNKNOWN = grpc.StatusCode.UNKNOWN.value[0]
_INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]

KEEPALIVE_SECONDS = 30.0
"""A connection with calls underway is pinged when nothing was heard for this long, and given up after
another such time."""

Observer = Callable[[str, int, float], None]
"""Told of every finished call: method path, status code, seconds."""


class _Details(NamedTuple):
    """grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: Any


class GrpcServer:
    """Serves gRPC on TCP and unix sockets within the running event loop."""

    def __init__(self, *, max_message_bytes: int = 64 * 1024 * 1024, observe: Observer | None = None) -> None:
        self.max_message_bytes = max_message_bytes
        self._observe = observe
        self._generic: list[grpc.GenericRpcHandler] = []
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}
        self._sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Event = asyncio.Event()
        self._stopped: asyncio.Event = asyncio.Event()
        self._keepalive: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<GrpcServer {len(self._connections)} connections, {len(self._tasks)} calls>"

    # Registration.

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers that are asked, in order, for a method's handler on its first call."""
        self._generic.extend(generic_rpc_handlers)
        self._methods.clear()

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Do nothing: generated code registers the same handlers as generic ones too."""

    def add_port(self, host: str, port: int, *, tls: ssl.SSLContext | None = None, share: bool = False) -> int:
        """Bind a TCP port (0: any free one) and return its number. `share` lets other processes bind it
        too (SO_REUSEPORT); the kernel then spreads connections among them. Raises OSError.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        self._sockets.append((listener, tls))
        return int(listener.getsockname()[1])

    def add_unix_socket(self, path: str) -> None:
        """Bind a unix socket, replacing a stale one at that path."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        self._sockets.append((listener, None))

    # Life.

    async def start(self) -> None:
        """Listen and serve."""
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            return Connection(self, loop)

        for listener, tls in self._sockets:
            if listener.family == socket.AF_UNIX:
                server = await loop.create_unix_server(protocol, sock=listener, backlog=1024)
            else:
                server = await loop.create_server(protocol, sock=listener, backlog=1024, ssl=tls)
            self._servers.append(server)
        self._keepalive = asyncio.create_task(self._watch_connections())

    async def stop(self, grace: float | None) -> None:
        """Stop listening, let calls underway end within `grace` seconds, then cut them off."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.drain()
        if grace and self._tasks:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        if self._keepalive is not None:
            self._keepalive.cancel()
            await asyncio.gather(self._keepalive, return_exceptions=True)
        await asyncio.sleep(0)  # lets transports flush
        for connection in list(self._connections):
            connection.abort()
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - grpc.aio's signature
        """Wait until stopped; return False when `timeout` seconds pass before."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    async def _watch_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEEPALIVE_SECONDS / 2)
            now = loop.time()
            for connection in list(self._connections):
                silent = now - connection.last_heard
                if connection.awaiting_pong and silent > 2 * KEEPALIVE_SECONDS:
                    connection.abort()
                elif connection.streams and silent > KEEPALIVE_SECONDS:
                    connection.send_ping()

    # What connections tell us.

    def opened(self, connection: Connection) -> None:
        """A connection is there."""
        self._connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)

    def _handler(self, stream: Stream) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = stream.head.path
        try:
            return self._methods[path]
        except KeyError:
            pass
        details = cast("grpc.HandlerCallDetails", _Details(path, stream.head.metadata))
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                self._methods[path] = handler
                return handler
        return None

    def begin(self, stream: Stream) -> None:
        """A call's headers are in: streaming requests start their handler now."""
        handler = self._handler(stream)
        if handler is None:
            stream.finish(_UNIMPLEMENTED, f"method {stream.head.path!r} is not served here")
        elif handler.request_streaming:
            self._start(stream, handler, None)

    def ready(self, stream: Stream) -> None:
        """All of a call's request is in: unary requests start their handler now."""
        handler = self._handler(stream)
        if handler is None or handler.request_streaming or stream.task is not None or stream.trailers is not None:
            return
        if len(stream.messages) != 1:
            stream.finish(_INVALID_ARGUMENT, f"{len(stream.messages)} request messages came where one is due")
            return
        self._start(stream, handler, stream.messages.popleft())

    def _start(self, stream: Stream, handler: grpc.RpcMethodHandler[Any, Any], message: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        if stream.head.timeout_seconds is not None:
            stream.timer = loop.call_later(stream.head.timeout_seconds, self._expire, stream)
        stream.task = task = loop.create_task(self._run(stream, handler, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _expire(self, stream: Stream) -> None:
        stream.finish(_DEADLINE_EXCEEDED, "the call's deadline has passed")
        if stream.task is not None:
            stream.task.cancel()
        if not stream.closed:  # bytes still wait for a client that is late anyway
            stream.connection.reset(stream, ErrorCode.CANCEL)

    # Running a call.

    async def _run(self, stream: Stream, handler: grpc.RpcMethodHandler[Any, Any], message: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        context = CallContext(stream, handler.response_serializer, handler.request_deserializer)
        code, details = _UNKNOWN, ""
        try:
            await self._respond(stream, handler, message, context)
            code, details = context.code, context.details_text
        except aio.AbortError:
            code, details = context.code, context.details_text
        except (DecodeError, BadMessage) as error:
            code, details = _INVALID_ARGUMENT, f"the request is not a valid message: {error}"
        except asyncio.CancelledError:
            code, details = _UNAVAILABLE, "the server is shutting down"
        except NotImplementedError as error:  # a method that the servicer leaves to its generated base
            code, details = _UNIMPLEMENTED, context.details_text or str(error)
        except Exception as error:
            log.exception("method=%s failed", stream.head.path)
            code, details = _UNKNOWN, f"{type(error).__name__}: {error}"
        stream.task = None
        stream.finish(code, details, context.trailing)
        context.run_callbacks()
        if self._observe is not None:
            self._observe(stream.head.path, code, loop.time() - started)

    async def _respond(
        self, stream: Stream, handler: grpc.RpcMethodHandler[Any, Any], message: bytes | None, context: CallContext
    ) -> None:
        request: Any
        if message is None:
            request = Requests(context)
            behaviour: Any = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            deserialize = handler.request_deserializer
            request = message if deserialize is None else deserialize(message)
            behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        outcome = behaviour(request, context)
        if not handler.response_streaming:
            response = await outcome if inspect.isawaitable(outcome) else outcome
            if context.code == _OK:
                serialize = handler.response_serializer
                stream.send_message(response if serialize is None else serialize(response))
        elif inspect.isawaitable(outcome):
            await outcome
        else:
            await _send_all(cast("AsyncIterator[Any]", outcome), context)


async def _send_all(responses: AsyncIterator[Any], context: CallContext) -> None:
    try:
        async for response in responses:
            await context.write(response)
    finally:
        close = getattr(responses, "aclose", None)
        if close is not None:
            await close()
