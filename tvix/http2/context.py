"""What a handler sees of its call: the part of grpc.aio's ServicerContext that servicers use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc
from grpc import aio

from tvix.http2.headers import Metadata, encode_metadata
from tvix.http2.stream import Stream

Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]


class CallContext:
    """Drop-in for grpc.aio.ServicerContext; made for every call, so it stays small."""

    __slots__ = ("_callbacks", "_deserialize", "_serialize", "_stream", "code", "details_text", "trailing")

    def __init__(self, stream: Stream, serialize: Serializer | None, deserialize: Deserializer | None) -> None:
        self._stream = stream
        self._serialize = serialize
        self._deserialize = deserialize
        self._callbacks: list[Callable[[Any], None]] | None = None
        self.code = 0
        self.details_text = ""
        self.trailing: Metadata = ()

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with a status; raises AbortError, which handlers let pass."""
        self.set_code(code)
        self.details_text = details
        self.trailing += tuple(trailing_metadata)
        raise aio.AbortError("the call was aborted")

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """Set the status to close with."""
        self.code = code if isinstance(code, int) else code.value[0]

    def set_details(self, details: str) -> None:
        """Set the status message to close with."""
        self.details_text = details

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Set the metadata to close with."""
        self.trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        """Return the metadata to close with."""
        return self.trailing

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the response's headers now."""
        self._stream.start_response(encode_metadata(initial_metadata))

    def invocation_metadata(self) -> Metadata:
        """Return the client's metadata; values of `-bin` keys are bytes."""
        return self._stream.head.metadata

    def peer(self) -> str:
        """Return who calls, as host:port."""
        return self._stream.connection.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return None: identities are settled by the server's authenticator."""
        return None

    def peer_identity_key(self) -> str | None:
        """Return None: see peer_identities."""
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return nothing: see peer_identities."""
        return {}

    def time_remaining(self) -> float | None:
        """Return the seconds until the client's deadline, None without one."""
        timer = self._stream.timer
        return None if timer is None else max(0.0, timer.when() - asyncio.get_running_loop().time())

    def cancelled(self) -> bool:
        """Whether the client is gone."""
        return self._stream.closed

    def done(self) -> bool:
        """Whether the call is over."""
        return self._stream.closed

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back when the handler has ended."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def run_callbacks(self) -> None:
        """Tell whoever asked that the handler has ended."""
        for callback in self._callbacks or ():
            callback(self)

    def disable_next_message_compression(self) -> None:
        """Do nothing: responses are never compressed here."""

    def set_compression(self, compression: grpc.Compression) -> None:
        """Do nothing: responses are never compressed here."""

    async def write(self, message: Any) -> None:
        """Send one response message; waits while the client is slow."""
        stream = self._stream
        stream.send_message(message if self._serialize is None else self._serialize(message))
        if stream.pending_bytes or stream.connection.congested:
            await stream.drain()

    async def read(self) -> Any:
        """Return the next request message, or aio.EOF."""
        message = await self._stream.next_message()
        if message is None:
            return aio.EOF
        return message if self._deserialize is None else self._deserialize(message)


class Requests:
    """The request messages of a streaming call, as an async iterator."""

    __slots__ = ("_context",)

    def __init__(self, context: CallContext) -> None:
        self._context = context

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is aio.EOF:
            raise StopAsyncIteration
        return message
