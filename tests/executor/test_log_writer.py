"""Logs written while a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from remote_apis.bytestream_pb2 import WriteRequest
from tvix.executor import log_writer
from tvix.executor.log_writer import LogWriter


class Service:
    """Takes requests; stalls until `go` when told so."""

    def __init__(self, *, stalled: bool = False) -> None:
        self.requests: list[WriteRequest] = []
        self.go = asyncio.Event()
        if not stalled:
            self.go.set()

    async def write(self, requests: AsyncIterator[WriteRequest]) -> None:
        await self.go.wait()
        async for request in requests:
            self.requests.append(request)

    async def refuse(self, requests: AsyncIterator[WriteRequest]) -> None:
        raise OSError("no route")

    @property
    def data(self) -> bytes:
        return b"".join(request.data for request in self.requests)


async def test_no_output_no_call() -> None:
    service = Service()
    async with asyncio.TaskGroup() as tasks:
        LogWriter(service.write, "name", tasks).close()
    assert service.requests == []


async def test_what_comes_together_goes_in_one_message() -> None:
    service = Service()
    async with asyncio.TaskGroup() as tasks:
        writer = LogWriter(service.write, "name", tasks)
        writer.write(b"a")
        writer.write(b"b")
        writer.close()
        writer.write(b"too late")
    assert service.requests == [WriteRequest(resource_name="name", data=b"ab", finish_write=True)]


async def test_large_output_goes_in_pieces_with_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MAX_MESSAGE_BYTES", 4)
    service = Service()
    async with asyncio.TaskGroup() as tasks:
        writer = LogWriter(service.write, "name", tasks)
        writer.write(b"0123456789")
        writer.close()
    assert [(request.write_offset, request.data, request.finish_write) for request in service.requests] == [
        (0, b"0123", False),
        (4, b"4567", False),
        (8, b"89", True),
    ]


async def test_a_slow_service_ends_the_log_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MAX_WAITING_BYTES", 10)
    service = Service(stalled=True)
    async with asyncio.TaskGroup() as tasks:
        writer = LogWriter(service.write, "name", tasks)
        writer.write(b"0123456789")
        writer.write(b"x")
        writer.write(b"y")
        service.go.set()
        writer.close()
    assert service.data == b"0123456789x\n[tvix: the log could not keep up; the rest is in the result]\n"


async def test_a_service_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FAREWELL_SECONDS", 0.01)
    async with asyncio.TaskGroup() as tasks:
        writer = LogWriter(Service(stalled=True).write, "name", tasks)
        writer.write(b"x")
        await asyncio.sleep(0)
        writer.close()


async def test_failures_do_not_reach_the_command(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.TaskGroup() as tasks:
        writer = LogWriter(Service().refuse, "name", tasks)
        writer.write(b"x")
    assert "log=name cannot be written: OSError('no route')" in caplog.text
    writer.write(b"more")
    assert repr(writer) == "<LogWriter name 0 bytes>"
