"""Connections against bytes that no client should send."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http2.support import UNARY, channel, echo, serving, unary
from tvix.http2 import frames


async def read_until_closed(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if not data.startswith(frames.PREFACE):
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


BROKEN = {
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(32),
    "frame too long": frames.PREFACE + frames.head(2**24 - 1, frames.HEADERS, 4, 1),
    "DATA on an idle stream": frames.PREFACE + frames.head(1, frames.DATA, 0, 7) + b"x",
    "even stream": frames.PREFACE + frames.head(1, frames.HEADERS, 5, 2) + b"\x83",
    "bad HPACK": frames.PREFACE + frames.head(2, frames.HEADERS, 5, 1) + b"\xff\xff",
    "interrupted headers": frames.PREFACE
    + frames.head(1, frames.HEADERS, 0, 1)
    + b"\x83"
    + frames.ping(bytes(8), ack=False),
    "short ping": frames.PREFACE + frames.head(1, frames.PING, 0, 0) + b"x",
    "padding longer than frame": frames.PREFACE + frames.head(2, frames.HEADERS, 0xD, 1) + b"\x09x",
    "zero window increment": frames.PREFACE + frames.window_update(0, 0),
    "ping flood": frames.PREFACE + frames.ping(bytes(8), ack=False) * 10_500,
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_peer_is_shown_the_door_and_nobody_else_notices(name: str) -> None:
    async with serving(echo=UNARY(echo)) as (_, port), channel(port) as client:
        answer = await read_until_closed(port, BROKEN[name])
        assert bytes([frames.GOAWAY]) in answer
        assert await unary(client, "echo")(b"ok") == b"ok"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)), max_size=12)
)
def test_random_frames_never_harm_the_server(sequence: list[tuple[int, int, int, bytes]]) -> None:
    async def scenario() -> None:
        async with serving(echo=UNARY(echo)) as (_, port):
            data = frames.PREFACE + b"".join(
                frames.head(len(payload), kind, flags, stream) + payload for kind, flags, stream, payload in sequence
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
            async with channel(port) as client:
                assert await unary(client, "echo")(b"alive") == b"alive"

    asyncio.run(scenario())
