"""The server against grpcio's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.http2.support import (
    UNARY,
    Methods,
    channel,
    echo,
    failure,
    serving,
    stream_stream,
    stream_unary,
    unary,
    unary_stream,
)
from tvix.http2 import frames
from tvix.http2.server import GrpcServer


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_536, 5_000_000])
async def test_unary_messages_of_all_sizes_come_back(size: int) -> None:
    async with serving(echo=UNARY(echo)) as (_, port), channel(port) as client:
        assert await unary(client, "echo")(b"x" * size) == b"x" * size


async def test_many_calls_at_once_on_one_connection() -> None:
    async with serving(echo=UNARY(echo)) as (_, port), channel(port) as client:
        call = unary(client, "echo")
        replies = await asyncio.gather(*(call(str(number).encode()) for number in range(500)))
        assert replies == [str(number).encode() for number in range(500)]


async def test_streams_both_ways_keep_order() -> None:
    async def double(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
            yield request

    async with (
        serving(double=grpc.stream_stream_rpc_method_handler(double)) as (_, port),
        channel(port) as client,
    ):
        call = stream_stream(client, "double")()
        for number in range(3):
            await call.write(bytes([number]))
            assert [await call.read(), await call.read()] == [bytes([number])] * 2
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_large_uploads_and_downloads_pass_flow_control() -> None:
    piece = bytes(range(256)) * 4096

    async def count(requests: Any, context: Any) -> bytes:
        total = 0
        async for request in requests:
            assert request == piece
            total += len(request)
        return str(total).encode()

    async def pour(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(24):
            yield piece

    async with (
        serving(
            count=grpc.stream_unary_rpc_method_handler(count),
            pour=grpc.unary_stream_rpc_method_handler(pour),
        ) as (_, port),
        channel(port) as client,
    ):
        assert await stream_unary(client, "count")(iter([piece] * 24)) == str(24 * len(piece)).encode()
        assert [message async for message in unary_stream(client, "pour")(b"")] == [piece] * 24


async def test_a_slow_reader_holds_the_handler_back() -> None:
    sent = 0
    blocked = asyncio.Event()

    async def pour(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        for number in range(400):
            if number == 399:
                blocked.set()
            sent += 1
            yield b"x" * 1_000_000

    async with serving(pour=grpc.unary_stream_rpc_method_handler(pour)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        block = b"\x83\x86" + b"\x04\x09/t.T/pour" + b"\x0f\x10\x10application/grpc"
        writer.write(
            frames.PREFACE
            + frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31 - 1})
            + frames.window_update(0, 2**30)
            + frames.head(len(block), frames.HEADERS, frames.END_HEADERS, 1)
            + block
            + frames.head(5, frames.DATA, frames.END_STREAM, 1)
            + bytes(5)
        )
        await writer.drain()
        await reader.readexactly(1_000_000)
        for _ in range(50):
            await asyncio.sleep(0)
        assert 1 <= sent < 60, "the handler ran ahead of a client that reads nothing"
        writer.close()


async def test_status_and_metadata_reach_the_client() -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        assert ("x-in", "1") in tuple(context.invocation_metadata())
        assert ("y-bin", b"\x00\xff") in tuple(context.invocation_metadata())
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such ünit", (("why-bin", b"\x01\x02"),))
        return b""

    async with serving(refuse=UNARY(refuse)) as (_, port), channel(port) as client:
        call = unary(client, "refuse")(b"", metadata=(("x-in", "1"), ("y-bin", b"\x00\xff")))
        error = await failure(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "no such ünit"
        assert dict(error.trailing_metadata())["why-bin"] == b"\x01\x02"


async def test_trailers_longer_than_a_frame_arrive() -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.ABORTED, "", (("long", "v" * 40_000),))
        return b""

    async with serving(refuse=UNARY(refuse)) as (_, port), channel(port, ("grpc.max_metadata_size", 100_000)) as client:
        error = await failure(unary(client, "refuse")(b""))
        assert dict(error.trailing_metadata())["long"] == "v" * 40_000


async def test_unknown_method_exception_and_bad_message() -> None:
    async def broken(request: bytes, context: Any) -> bytes:
        raise RuntimeError("inside")

    async with serving(broken=UNARY(broken)) as (_, port), channel(port) as client:
        error = await failure(unary(client, "nothing")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        error = await failure(unary(client, "broken")(b""))
        assert error.code() is grpc.StatusCode.UNKNOWN
        assert error.details() == "RuntimeError: inside"


async def test_a_message_over_the_limit_is_refused_and_the_connection_lives() -> None:
    async with serving(echo=UNARY(echo)) as (_, port), channel(port) as client:
        error = await failure(unary(client, "echo")(bytes(9 * 1024 * 1024)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "exceeds the limit of 8388608" in (error.details() or "")
        assert await unary(client, "echo")(b"still here") == b"still here"


async def test_deadlines_and_cancellation_stop_the_handler() -> None:
    entered: asyncio.Queue[None] = asyncio.Queue()
    stopped: asyncio.Queue[str] = asyncio.Queue()

    async def hang(request: bytes, context: Any) -> bytes:
        entered.put_nowait(None)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.put_nowait(request.decode())
        return b""

    async with serving(hang=UNARY(hang)) as (_, port), channel(port) as client:
        error = await failure(unary(client, "hang")(b"late", timeout=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await stopped.get() == "late"
        await entered.get()
        call = unary(client, "hang")(b"unwanted")
        waiting = asyncio.ensure_future(call)
        await entered.get()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await stopped.get() == "unwanted"


async def test_compressed_requests_are_understood() -> None:
    async with (
        serving(echo=UNARY(echo)) as (_, port),
        aio.insecure_channel(f"127.0.0.1:{port}", compression=grpc.Compression.Gzip) as client,
    ):
        assert await unary(client, "echo")(b"z" * 100_000) == b"z" * 100_000


async def test_an_early_answer_ends_a_call_that_still_sends() -> None:
    async def impatient(requests: Any, context: Any) -> bytes:
        async for request in requests:
            return bytes(request)
        return b"none"

    async with (
        serving(impatient=grpc.stream_unary_rpc_method_handler(impatient)) as (_, port),
        channel(port) as client,
    ):
        call = stream_unary(client, "impatient")(b"%d" % number for number in range(1_000_000))
        assert await call == b"0"


async def test_unix_sockets_serve(tmp_path: Path) -> None:
    server = GrpcServer()
    server.add_generic_rpc_handlers((Methods(echo=UNARY(echo)),))
    server.add_unix_socket(str(tmp_path / "s"))
    await server.start()
    async with aio.insecure_channel(f"unix:{tmp_path / 's'}") as client:
        assert await unary(client, "echo")(b"hi") == b"hi"
    await server.stop(0)


async def test_stop_lets_calls_underway_end() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        entered.set()
        await leave.wait()
        return b"done"

    async with serving(wait=UNARY(wait)) as (server, port), channel(port) as client:
        call = unary(client, "wait")(b"")
        pending = asyncio.ensure_future(call)
        await entered.wait()
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0)
        leave.set()
        assert await pending == b"done"
        await stopping
