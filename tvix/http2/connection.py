"""One HTTP/2 connection of a gRPC server: frames in, streams kept, frames out (RFC 9113).

Only what a gRPC server needs: no push, no priorities, no upgrade from HTTP/1. Everything written within
one turn of the event loop leaves in one system call. Calls are handed to `Calls` as they begin; the
connection knows nothing of methods.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

from tvix.http2 import frames
from tvix.http2.frames import ConnectionFault, ErrorCode
from tvix.http2.headers import (
    MAX_HEADER_LIST_BYTES,
    HeaderDecoder,
    RequestHead,
    plain_response,
)
from tvix.http2.stream import RECEIVE_WINDOW_BYTES, BadMessage, MessageTooLarge, Stream

log = logging.getLogger(__name__)

CONNECTION_WINDOW_BYTES = 32 * 1024 * 1024
"""How much all calls of a connection together may have underway towards us."""
MAX_FRAME_BYTES = 1024 * 1024
MAX_STREAMS = 1024
WRITE_HIGH_BYTES = 1024 * 1024
"""What may wait in the transport before handlers are held."""
_MAX_HEADER_BLOCK = MAX_HEADER_LIST_BYTES
_MAX_CONTROL_FRAMES = 10_000
"""Resets, pings and settings a client may send for every call it lets finish: a flood closes the door."""

RESOURCE_EXHAUSTED = 8
INVALID_ARGUMENT = 3
INTERNAL = 13

_OUR_SETTINGS = frames.settings(
    {
        frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: RECEIVE_WINDOW_BYTES,
        frames.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
        frames.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
    }
) + frames.window_update(0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)


class Calls(Protocol):
    """What a connection tells its server."""

    max_message_bytes: int

    def opened(self, connection: Connection) -> None:
        """A connection is there."""

    def lost(self, connection: Connection) -> None:
        """A connection is gone; its streams are abandoned."""

    def begin(self, stream: Stream) -> None:
        """A call's headers are in."""

    def ready(self, stream: Stream) -> None:
        """All of a call's request is in."""


class Connection(asyncio.Protocol):
    """The protocol object of one TCP (or unix, or TLS) connection."""

    def __init__(self, calls: Calls, loop: asyncio.AbstractEventLoop) -> None:
        self.calls = calls
        self.max_message_bytes = calls.max_message_bytes
        self.streams: dict[int, Stream] = {}
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self.peer = "unknown"
        self.draining = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._decoder = HeaderDecoder()
        self._buffer = b""
        self._preface_seen = False
        self._data_stream: Stream | None = None
        self._data_left = 0
        self._data_ends = False
        self._headers: tuple[int, int, list[bytes]] | None = None
        self._last_stream_id = 0
        self._receive_window = CONNECTION_WINDOW_BYTES
        self._unsent_credit = 0
        self._peer_window = frames.DEFAULT_WINDOW_BYTES
        self._peer_frame_bytes = frames.DEFAULT_FRAME_BYTES
        self._out: list[bytes | memoryview] = []
        self._flushing = False
        self._paused = False
        self._blocked: dict[Stream, None] = {}
        self._control_frames = 0
        self.awaiting_pong = False
        self.last_heard = loop.time()

    def __repr__(self) -> str:
        return f"<Connection {self.peer} {len(self.streams)} streams>"

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        address = transport.get_extra_info("peername")
        self.peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix:"
        self.send(_OUR_SETTINGS)
        self.calls.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for stream in list(self.streams.values()):
            stream.abandon()
        self.streams.clear()
        self._blocked.clear()
        self._out.clear()
        self.calls.lost(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump_blocked()
        for stream in list(self.streams.values()):
            stream.may_write()

    def data_received(self, data: bytes) -> None:
        self.last_heard = self._loop.time()
        self.awaiting_pong = False
        try:
            self._parse(self._buffer + data if self._buffer else data)
        except ConnectionFault as fault:
            self._give_up(fault.code, str(fault))

    def eof_received(self) -> bool:
        return False

    def _give_up(self, code: ErrorCode, reason: str) -> None:
        log.debug("peer=%s closed: %s %s", self.peer, code.name, reason)
        self.send(frames.goaway(self._last_stream_id, code, reason))
        self._flush()
        if self._transport is not None:
            self._transport.close()

    # Writing.

    def send(self, data: bytes | memoryview) -> None:
        """Queue bytes of whole frames; they leave at the end of this turn of the loop."""
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out = self._out
        if not out:
            return
        self._out = []
        if self._transport is not None and not self._transport.is_closing():
            if len(out) == 1:
                self._transport.write(out[0])
            else:
                self._transport.writelines(out)

    def header_frames(self, stream_id: int, block: bytes) -> bytes:
        """Return HEADERS (and CONTINUATION) that end a stream."""
        limit = self._peer_frame_bytes
        if len(block) <= limit:
            flags = frames.END_HEADERS | frames.END_STREAM
            return frames.head(len(block), frames.HEADERS, flags, stream_id) + block
        parts = [block[start : start + limit] for start in range(0, len(block), limit)]
        out = [frames.head(len(parts[0]), frames.HEADERS, frames.END_STREAM, stream_id) + parts[0]]
        for part in parts[1:]:
            flags = frames.END_HEADERS if part is parts[-1] else 0
            out.append(frames.head(len(part), frames.CONTINUATION, flags, stream_id) + part)
        return b"".join(out)

    @property
    def congested(self) -> bool:
        """Whether handlers of this connection should wait before they send more."""
        return self._paused

    def pump(self, stream: Stream) -> None:
        """Send what windows and the transport let through of a stream's pending bytes."""
        unflushed = 0
        while stream.pending_bytes and not self._paused:
            size = min(stream.pending_bytes, self._peer_frame_bytes, self.send_window, stream.send_window)
            if size <= 0:
                break
            self.send_window -= size
            stream.send_window -= size
            self._out.append(frames.head(size, frames.DATA, 0, stream.id))
            self._out.extend(stream.take_pending(size))
            unflushed += size
            if unflushed >= WRITE_HIGH_BYTES // 2:  # lets the transport say that it has enough
                self._flush()
                unflushed = 0
        if self._out and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if stream.pending_bytes:
            self._blocked[stream] = None
            return
        self._blocked.pop(stream, None)
        if stream.trailers is not None:
            self.end(stream)
        else:
            stream.may_write()

    def _pump_blocked(self) -> None:
        for stream in list(self._blocked):
            if self._paused or self.send_window <= 0:
                return
            # Those served go to the end of the line, so that every stream gets its turn.
            del self._blocked[stream]
            self.pump(stream)
            stream.may_write()

    def end(self, stream: Stream) -> None:
        """Send a stream's trailers and forget it; a client still sending is told to stop."""
        if stream.closed:
            return
        assert stream.trailers is not None
        self.send(stream.trailers)
        if not stream.remote_ended:
            self.send(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        stream.closed = True
        if stream.timer is not None:
            stream.timer.cancel()
        stream.release_receive_credit()
        self._control_frames = 0
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream, None)
        if self.draining and not self.streams:
            self.close()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream without trailers."""
        self.send(frames.rst_stream(stream.id, code))
        stream.abandon()
        self._forget(stream)

    def credit(self, count: int) -> None:
        """Let the client send `count` more bytes on the connection."""
        self._unsent_credit += count
        if self._unsent_credit >= CONNECTION_WINDOW_BYTES // 4:
            self._receive_window += self._unsent_credit
            self.send(frames.window_update(0, self._unsent_credit))
            self._unsent_credit = 0

    def drain(self) -> None:
        """Take no new streams; close when the last one ends."""
        self.draining = True
        self.send(frames.goaway(self._last_stream_id, ErrorCode.NO_ERROR, "the server is shutting down"))
        if not self.streams:
            self.close()

    def close(self) -> None:
        """Send what is queued and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is queued."""
        if self._transport is not None:
            self._transport.abort()

    def send_ping(self) -> None:
        """Ask for a sign of life; any byte received clears `awaiting_pong`."""
        self.awaiting_pong = True
        self.send(frames.ping(b"keepaliv", ack=False))

    # Reading.

    def _parse(self, data: bytes) -> None:
        at, size = 0, len(data)
        if not self._preface_seen:
            if size < len(frames.PREFACE):
                if not frames.PREFACE.startswith(data):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
                self._buffer = data
                return
            if not data.startswith(frames.PREFACE):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
            self._preface_seen = True
            at = len(frames.PREFACE)
        while at < size:
            if self._data_left:
                taken = min(self._data_left, size - at)
                self._data_left -= taken
                self._data(data[at : at + taken])
                at += taken
                continue
            if size - at < frames.HEAD_BYTES:
                break
            length = int.from_bytes(data[at : at + 3], "big")
            kind, flags = data[at + 3], data[at + 4]
            stream_id = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
            if length > MAX_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            body = at + frames.HEAD_BYTES
            if kind == frames.DATA and not flags & frames.PADDED:
                self._begin_data(stream_id, flags, length)
                at = body
                continue
            if size - body < length:
                break
            self._frame(kind, flags, stream_id, data[body : body + length])
            at = body + length
        self._buffer = data[at:] if at < size else b""

    def _begin_data(self, stream_id: int, flags: int, length: int) -> None:
        """A DATA frame's head: its payload is fed piece by piece as it arrives."""
        if self._headers is not None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if not stream_id or stream_id > self._last_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA on idle stream {stream_id}")
        self._receive_window -= length
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.receive_window -= length
            if stream.receive_window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window")
        self._data_stream, self._data_left, self._data_ends = stream, length, bool(flags & frames.END_STREAM)
        if not length:
            self._data(b"")

    def _data(self, payload: bytes) -> None:
        stream = self._data_stream
        if stream is None or stream.closed:
            self.credit(len(payload))
            return
        try:
            if payload:
                stream.feed(payload)
            if self._data_ends and not self._data_left:
                self._request_complete(stream)
        except MessageTooLarge as error:
            limit = self.max_message_bytes
            self._refuse(stream, RESOURCE_EXHAUSTED, f"a message of {error.length} bytes exceeds the limit of {limit}")
        except BadMessage as error:
            self._refuse(stream, INVALID_ARGUMENT, str(error))

    def _request_complete(self, stream: Stream) -> None:
        stream.end_receiving()
        self.calls.ready(stream)

    def _refuse(self, stream: Stream, code: int, message: str) -> None:
        if stream.task is not None:
            stream.task.cancel()
        stream.finish(code, message)

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._headers is not None and kind != frames.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        elif kind == frames.DATA:
            content = frames.without_padding(flags, payload)
            self._begin_data(stream_id, flags, len(content))
            self._data_left = 0
            padding = len(payload) - len(content)
            self._receive_window -= padding
            self.credit(padding)
            if stream_id in self.streams:
                self.send(frames.window_update(stream_id, padding))
            if content:
                self._data(content)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == frames.PING:
            self._on_ping(flags, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "clients do not push")
        # GOAWAY, PRIORITY and what is unknown ask nothing of a server.

    def _count_control(self) -> None:
        self._control_frames += 1
        if self._control_frames > _MAX_CONTROL_FRAMES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = frames.without_padding(flags, payload)
            payload = payload[5:] if flags & frames.HAS_PRIORITY else payload
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream id {stream_id} is not a client's")
        if flags & frames.END_HEADERS:
            self._begin_stream(stream_id, flags, payload)
        else:
            self._headers = (stream_id, flags, [payload])

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._headers is None or self._headers[0] != stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, first_flags, parts = self._headers
        parts.append(payload)
        self._count_control()
        if sum(map(len, parts)) > _MAX_HEADER_BLOCK:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header block is too long")
        if flags & frames.END_HEADERS:
            self._headers = None
            self._begin_stream(stream_id, first_flags, b"".join(parts))

    def _begin_stream(self, stream_id: int, flags: int, block: bytes) -> None:
        head = self._decoder.decode(block)
        existing = self.streams.get(stream_id)
        if existing is not None:  # trailers of the request: gRPC clients send none that matter
            if flags & frames.END_STREAM:
                self._data_stream, self._data_left, self._data_ends = existing, 0, True
                self._data(b"")
            return
        if stream_id <= self._last_stream_id:
            return  # a stream we have answered and forgotten
        self._last_stream_id = stream_id
        if self.draining or len(self.streams) >= MAX_STREAMS:
            self._count_control()
            self.send(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return
        if not self._is_grpc(stream_id, head):
            return
        stream = Stream(self, stream_id, head, self._peer_window)
        self.streams[stream_id] = stream
        self.calls.begin(stream)
        if flags & frames.END_STREAM and not stream.closed:
            self._request_complete(stream)

    def _is_grpc(self, stream_id: int, head: RequestHead) -> bool:
        if head.method == "POST" and head.content_type.startswith("application/grpc"):
            return True
        self._count_control()
        status = 405 if head.method != "POST" else 415
        block = plain_response(status, "text/plain")
        flags = frames.END_HEADERS | frames.END_STREAM
        self.send(frames.head(len(block), frames.HEADERS, flags, stream_id) + block)
        return False

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is 4 bytes")
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not stream_id:
            self.send_window += increment
            if not increment or self.send_window > frames.MAX_WINDOW_BYTES:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"window increment {increment}")
            self._pump_blocked()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        stream.send_window += increment
        if not increment or stream.send_window > frames.MAX_WINDOW_BYTES:
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.pending_bytes:
            self.pump(stream)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is 4 bytes")
        if not stream_id or stream_id > self._last_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on idle stream {stream_id}")
        self._count_control()
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.abandon()
            self._forget(stream)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        if stream_id or len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is malformed")
        self._count_control()
        for start in range(0, len(payload), 6):
            name = int.from_bytes(payload[start : start + 2], "big")
            value = int.from_bytes(payload[start + 2 : start + 6], "big")
            self._apply_setting(name, value)
        self.send(frames.SETTINGS_ACK)
        # Only now: clients hold us to their old windows until they have read the acknowledgement.
        for stream in list(self._blocked):
            self.pump(stream)

    def _apply_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW_BYTES:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"initial window {value}")
            change = value - self._peer_window
            self._peer_window = value
            for stream in self.streams.values():
                stream.send_window += change
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_BYTES <= value <= 2**24 - 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"max frame size {value}")
            self._peer_frame_bytes = value

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is 8 bytes")
        if not flags & frames.ACK:
            self._count_control()
            self.send(frames.ping(payload, ack=True))
