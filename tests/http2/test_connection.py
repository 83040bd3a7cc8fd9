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


def call_frames(path: str) -> bytes:
    """A call without metadata and with an empty message, as frames on stream 1."""
    block = b"\x83\x86" + b"\x04" + bytes([len(path)]) + path.encode() + b"\x0f\x10\x10application/grpc"
    headers = frames.head(len(block), frames.HEADERS, frames.END_HEADERS, 1) + block
    return headers + frames.head(5, frames.DATA, frames.END_STREAM, 1) + bytes(5)


async def read_frames(reader: asyncio.StreamReader, count: int) -> list[tuple[int, int]]:
    """Read frames; return their types and lengths."""
    found = []
    for _ in range(count):
        head = await asyncio.wait_for(reader.readexactly(frames.HEAD_BYTES), 5)
        length = int.from_bytes(head[:3], "big")
        await reader.readexactly(length)
        found.append((head[3], length))
    return found


async def test_a_larger_window_is_used_only_after_it_was_acknowledged() -> None:
    async def large(request: bytes, context: object) -> bytes:
        return b"x" * 200

    async with serving(large=UNARY(large)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        small = frames.settings({frames.INITIAL_WINDOW_SIZE: 100})
        writer.write(frames.PREFACE + small + call_frames("/t.T/large"))
        first = await read_frames(reader, 5)
        assert [kind for kind, _ in first] == [
            frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS, frames.HEADERS, frames.DATA,
        ]  # fmt: skip
        assert first[-1][1] == 100
        writer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 1000}))
        assert await read_frames(reader, 3) == [(frames.SETTINGS, 0), (frames.DATA, 105), (frames.HEADERS, 15)]
        writer.close()


async def test_windows_that_shrink_hold_data_back_until_there_is_credit() -> None:
    async def large(request: bytes, context: object) -> bytes:
        return b"x" * 200

    async with serving(large=UNARY(large)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 100}) + call_frames("/t.T/large"))
        await read_frames(reader, 5)
        writer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}) + frames.window_update(1, 150))
        assert await read_frames(reader, 2) == [(frames.SETTINGS, 0), (frames.DATA, 50)]
        writer.write(frames.window_update(1, 1000))
        assert (await read_frames(reader, 1))[0] == (frames.DATA, 55)
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
