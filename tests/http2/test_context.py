"""What handlers see of their calls, told by grpcio's client."""

from typing import Any

import grpc
from grpc import aio

from tests.http2.support import UNARY, channel, failure, serving, stream_stream, unary


async def test_a_status_may_be_set_without_raising() -> None:
    async def partial(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("set, not raised")
        context.set_trailing_metadata((("k", "v"),))
        return b""

    async with serving(partial=UNARY(partial)) as (_, port), channel(port) as client:
        error = await failure(unary(client, "partial")(b""))
        assert error.code() is grpc.StatusCode.OUT_OF_RANGE
        assert error.details() == "set, not raised"
        assert ("k", "v") in tuple(error.trailing_metadata())


async def test_time_remaining_counts_down_from_the_clients_deadline() -> None:
    async def remaining(request: bytes, context: Any) -> bytes:
        return str(context.time_remaining()).encode()

    async with serving(remaining=UNARY(remaining)) as (_, port), channel(port) as client:
        assert await unary(client, "remaining")(b"") == b"None"
        assert 8 < float(await unary(client, "remaining")(b"", timeout=10)) <= 11  # grpcio rounds up


async def test_read_and_write_are_an_alternative_to_iterators() -> None:
    async def manual(requests: Any, context: Any) -> None:
        await context.send_initial_metadata((("started", "yes"),))
        while (request := await context.read()) is not aio.EOF:
            await context.write(request)

    async with (
        serving(manual=grpc.stream_stream_rpc_method_handler(manual)) as (_, port),
        channel(port) as client,
    ):
        call = stream_stream(client, "manual")(iter([b"a", b"b"]))
        assert ("started", "yes") in tuple(await call.initial_metadata())
        assert [message async for message in call] == [b"a", b"b"]


async def test_done_callbacks_run() -> None:
    done: list[bool] = []

    async def watched(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda ended: done.append(ended is context))
        assert context.peer().startswith("127.0.0.1:")
        return b""

    async with serving(watched=UNARY(watched)) as (_, port), channel(port) as client:
        await unary(client, "watched")(b"")
    assert done == [True]
