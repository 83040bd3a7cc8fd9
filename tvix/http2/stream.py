"""One gRPC call on an HTTP/2 connection: its messages in and out, under flow control.

The connection feeds bytes and window updates; the handler takes whole messages and sends whole
messages. Bytes are buffered only as far as windows and `RECEIVE_HIGH_BYTES` allow: a slow handler
stops its client, a slow client stops its handler.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import TYPE_CHECKING

from tvix.http2 import frames
from tvix.http2.headers import RESPONSE_START, RequestHead, encode_trailers

if TYPE_CHECKING:
    from tvix.http2.connection import Connection

PREFIX_BYTES = 5
RECEIVE_WINDOW_BYTES = 4 * 1024 * 1024
"""How far a client may run ahead in one call."""
RECEIVE_HIGH_BYTES = 1024 * 1024
"""Whole messages waiting beyond this hold back the client's credit."""
SEND_HIGH_BYTES = 256 * 1024
"""A handler waits while more than this of its call is unsent."""
_SMALL_BYTES = 16 * 1024


class MessageTooLarge(Exception):
    """A message is longer than the server takes; carries its announced length."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length


class BadMessage(Exception):
    """A message cannot be decompressed."""


def decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """Return a compressed message's bytes; MessageTooLarge beyond `limit`, BadMessage if it cannot be."""
    if encoding not in ("gzip", "deflate"):
        raise BadMessage(f"a compressed message came with grpc-encoding {encoding!r}; gzip and deflate are known")
    inflater = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        out = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise BadMessage(f"{encoding}: {error}") from error
    if len(out) > limit:
        raise MessageTooLarge(len(out))
    if not inflater.eof:
        raise BadMessage(f"{encoding}: the compressed message is cut off")
    return out


class Stream:
    """The two directions of one call."""

    __slots__ = (
        "_have",
        "_held_credit",
        "_pending",
        "_pieces",
        "_queued_bytes",
        "_reader",
        "_started",
        "_unsent_credit",
        "_want",
        "_writer",
        "closed",
        "connection",
        "head",
        "id",
        "messages",
        "pending_bytes",
        "receive_window",
        "remote_ended",
        "send_window",
        "task",
        "timer",
        "trailers",
    )

    def __init__(self, connection: Connection, stream_id: int, head: RequestHead, send_window: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.head = head
        self.messages: deque[bytes] = deque()
        self.remote_ended = False
        self.closed = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.send_window = send_window
        self.receive_window = RECEIVE_WINDOW_BYTES
        self.trailers: bytes | None = None
        self.pending_bytes = 0
        self._pending: deque[memoryview | bytes] = deque()
        self._pieces: list[bytes] = []
        self._have = 0
        self._want = 0
        self._queued_bytes = 0
        self._held_credit = 0
        self._unsent_credit = 0
        self._started = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # Receiving.

    def feed(self, data: bytes) -> None:
        """Take bytes of DATA frames, without padding; whole messages become readable."""
        received = len(data)
        if self._pieces:
            self._pieces.append(data)
            self._have += received
            if self._have < self._want:
                self._credit(received)
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        at, size = 0, len(data)
        want = PREFIX_BYTES
        while size - at >= PREFIX_BYTES:
            length = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if length > self.connection.max_message_bytes:
                raise MessageTooLarge(length)
            want = PREFIX_BYTES + length
            if size - at < want:
                break
            self._take_in(data[at], data[at + PREFIX_BYTES : at + want])
            at += want
            want = PREFIX_BYTES
        if at < size:
            self._pieces.append(data[at:] if at else data)
            self._have, self._want = size - at, want
        self._credit(received)

    def _take_in(self, flag: int, message: bytes) -> None:
        if flag:
            if flag != 1:
                raise BadMessage(f"message flag {flag} is unknown")
            message = decompress(message, self.head.encoding, self.connection.max_message_bytes)
        self.messages.append(message)
        self._queued_bytes += len(message)
        self._wake_reader()

    def end_receiving(self) -> None:
        """The client sends no more."""
        self.remote_ended = True
        if self._pieces:
            raise BadMessage("the stream ends in the middle of a message")
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _credit(self, count: int) -> None:
        if self._queued_bytes > RECEIVE_HIGH_BYTES:
            self._held_credit += count
            return
        count += self._held_credit
        self._held_credit = 0
        self.connection.credit(count)
        if not self.remote_ended:
            self._unsent_credit += count
            if self._unsent_credit >= RECEIVE_WINDOW_BYTES // 4:
                self.receive_window += self._unsent_credit
                self.connection.send(frames.window_update(self.id, self._unsent_credit))
                self._unsent_credit = 0

    async def next_message(self) -> bytes | None:
        """Return the next message, or None when the client has sent its last."""
        while not self.messages:
            if self.remote_ended or self.closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self.messages.popleft()
        self._queued_bytes -= len(message)
        if self._held_credit:
            self._credit(0)
        return message

    # Sending.

    def start_response(self, metadata: bytes = b"") -> None:
        """Send the response's headers once; messages and trailers do it on their own."""
        if not self._started:
            self._started = True
            block = RESPONSE_START + metadata
            self.connection.send(frames.head(len(block), frames.HEADERS, frames.END_HEADERS, self.id) + block)

    def send_message(self, payload: bytes) -> None:
        """Queue one message; follow with `drain` unless it is the only one."""
        if self.closed:
            return
        if not self._started:
            self.start_response()
        size = len(payload) + PREFIX_BYTES
        prefix = b"\x00" + len(payload).to_bytes(4, "big")
        connection = self.connection
        if (
            size <= _SMALL_BYTES
            and not self.pending_bytes
            and size <= self.send_window
            and size <= connection.send_window
        ):
            self.send_window -= size
            connection.send_window -= size
            connection.send(frames.head(size, frames.DATA, 0, self.id) + prefix + payload)
            return
        self._pending.append(prefix)
        if payload:
            self._pending.append(memoryview(payload))
        self.pending_bytes += size
        connection.pump(self)

    def take_pending(self, count: int) -> list[memoryview | bytes]:
        """Remove and return `count` unsent bytes (there are as many), in pieces."""
        out: list[memoryview | bytes] = []
        self.pending_bytes -= count
        pending = self._pending
        while count:
            piece = pending[0]
            if len(piece) <= count:
                out.append(pending.popleft())
                count -= len(piece)
            else:
                view = memoryview(piece)
                out.append(view[:count])
                pending[0] = view[count:]
                count = 0
        return out

    def may_write(self) -> None:
        """Wake the handler if it waits and there is room again."""
        if self._writer is not None and not self._writer.done() and self.pending_bytes <= SEND_HIGH_BYTES:
            self._writer.set_result(None)

    async def drain(self) -> None:
        """Wait until most of what was sent has left this process."""
        while not self.closed and (self.pending_bytes > SEND_HIGH_BYTES or self.connection.congested):
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def finish(self, code: int, message: str = "", metadata: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        """Close the call with a status, after whatever is unsent."""
        if self.closed or self.trailers is not None:
            return
        block = encode_trailers(code, message, metadata)
        if not self._started:
            self._started = True
            block = RESPONSE_START + block
        self.trailers = self.connection.header_frames(self.id, block)
        if not self.pending_bytes:
            self.connection.end(self)

    def abandon(self) -> None:
        """The call is over without a word more: forget what is unsent, stop the handler."""
        self.closed = True
        self._pending.clear()
        self.pending_bytes = 0
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()
        self._wake_reader()
        self.may_write()
        self.release_receive_credit()

    def release_receive_credit(self) -> None:
        """Give the connection back the credit of messages nobody will read."""
        self.connection.credit(self._held_credit)
        self._held_credit = 0
        self.messages.clear()
        self._pieces.clear()
