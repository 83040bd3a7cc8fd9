"""A server with raw-bytes methods, and typed ways to call them with grpcio's client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from tvix.http2.server import GrpcServer

UNARY = grpc.unary_unary_rpc_method_handler


class Methods(grpc.GenericRpcHandler):
    """Serves raw-bytes methods `/t.T/<name>`, by kind."""

    def __init__(self, **handlers: grpc.RpcMethodHandler) -> None:  # type: ignore[type-arg]
        self.handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self.handlers.get(handler_call_details.method.removeprefix("/t.T/"))


@asynccontextmanager
async def serving(**handlers: Any) -> AsyncIterator[tuple[GrpcServer, int]]:
    server = GrpcServer(max_message_bytes=8 * 1024 * 1024)
    server.add_generic_rpc_handlers((Methods(**handlers),))
    port = server.add_port("127.0.0.1", 0)
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(0)


def channel(port: int, *options: tuple[str, Any]) -> aio.Channel:
    return aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1), *options])


async def echo(request: bytes, context: Any) -> bytes:
    return request


def unary(client: aio.Channel, name: str) -> aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return client.unary_unary(f"/t.T/{name}", None, None)


def unary_stream(client: aio.Channel, name: str) -> aio.UnaryStreamMultiCallable[bytes, bytes]:
    return client.unary_stream(f"/t.T/{name}", None, None)


def stream_unary(client: aio.Channel, name: str) -> aio.StreamUnaryMultiCallable[bytes, bytes]:
    return client.stream_unary(f"/t.T/{name}", None, None)


def stream_stream(client: aio.Channel, name: str) -> aio.StreamStreamMultiCallable[bytes, bytes]:
    return client.stream_stream(f"/t.T/{name}", None, None)


async def failure(awaitable: Awaitable[Any]) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await awaitable
    return caught.value
