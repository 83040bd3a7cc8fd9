"""Output of a running command, written to a log stream as it comes (ByteStream.Write).

Nothing is sent for a command that writes nothing. What comes within a tenth of a second goes in one
message. The log is a comfort: when it cannot be written, or not fast enough, the action goes on
without it, for the whole output is in its result in the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from remote_apis import bytestream_pb2
from tvix.executor.interfaces import Output

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.1
BATCH_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_WAITING_BYTES = 16 * 1024 * 1024
"""What may wait for a slow log service; with more the log ends early, with a note."""


FAREWELL_SECONDS = 10.0
"""How long the rest of a log may take once its command has ended."""

WriteCall = Callable[[AsyncIterator[bytestream_pb2.WriteRequest]], Awaitable[object]]
"""ByteStreamStub.Write."""


class LogWriter(Output):
    """Writes to one log stream."""

    def __init__(self, write: WriteCall, resource_name: str, tasks: asyncio.TaskGroup) -> None:
        self._write = write
        self._resource_name = resource_name
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._buffer = bytearray()
        self._offset = 0
        self._flush = asyncio.Event()
        self._closed = False
        self._end_time: float | None = None
        self._timeout: asyncio.Timeout | None = None

    def __repr__(self) -> str:
        return f"<LogWriter {self._resource_name} {self._offset} bytes>"

    def write(self, chunk: bytes) -> None:
        if self._closed:
            return
        self._buffer += chunk
        if len(self._buffer) > MAX_WAITING_BYTES:
            self._buffer += b"\n[tvix: the log could not keep up; the rest is in the result]\n"
            self.close()
        if self._task is None:
            self._task = self._tasks.create_task(self._run())
        if len(self._buffer) >= BATCH_BYTES:
            self._flush.set()

    def close(self) -> None:
        """Send what is left, and that it was all; does not wait for it."""
        if not self._closed:
            self._closed = True
            self._flush.set()
            self._end_time = asyncio.get_running_loop().time() + FAREWELL_SECONDS
            if self._timeout is not None:
                self._timeout.reschedule(self._end_time)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout_at(self._end_time) as self._timeout:
                await self._write(self._requests())
        except Exception as error:
            log.warning("log=%s cannot be written: %r", self._resource_name, error)
        finally:
            self._closed = True
            self._timeout = None
            self._buffer.clear()

    async def _requests(self) -> AsyncIterator[bytestream_pb2.WriteRequest]:
        finished = False
        while not finished:
            try:
                async with asyncio.timeout(BATCH_SECONDS):
                    await self._flush.wait()
            except TimeoutError:
                pass
            self._flush.clear()
            if self._closed:
                self._flush.set()
            data = bytes(self._buffer[:MAX_MESSAGE_BYTES])
            del self._buffer[:MAX_MESSAGE_BYTES]
            finished = self._closed and not self._buffer
            if data or finished:
                yield bytestream_pb2.WriteRequest(
                    resource_name=self._resource_name if not self._offset else "",
                    write_offset=self._offset,
                    data=data,
                    finish_write=finished,
                )
                self._offset += len(data)
