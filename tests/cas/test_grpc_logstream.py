from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_logstream_pb2 as log_pb2
from remote_apis import remote_logstream_pb2_grpc as log_grpc
from tests.cas.grpc_server import Served, serve
from tvix.cas.logstream import LogStreams

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(log_streams=LogStreams(tmp_path)) as running:
        yield running


async def create(served: Served, parent: str = "main") -> log_pb2.LogStream:
    stub: Any = log_grpc.LogStreamServiceStub(served.channel)
    reply: log_pb2.LogStream = await stub.CreateLogStream(log_pb2.CreateLogStreamRequest(parent=parent))
    return reply


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def message(name: str, offset: int, data: bytes, *, finish: bool = False) -> bs_pb2.WriteRequest:
    return bs_pb2.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=finish)


async def read(served: Served, name: str, **fields: Any) -> bytes:
    call = served.bytestream.Read(bs_pb2.ReadRequest(resource_name=name, **fields))
    return b"".join([response.data async for response in call])


async def test_a_reader_sees_the_log_grow(served: Served) -> None:
    stream = await create(served)
    call = served.bytestream.Write()
    await call.write(message(stream.write_resource_name, 0, b"first\n"))
    reader = aiter(served.bytestream.Read(bs_pb2.ReadRequest(resource_name=stream.name)))
    assert (await anext(reader)).data == b"first\n"
    await call.write(message("", 6, b"second\n"))
    assert (await anext(reader)).data == b"second\n"
    await call.write(message("", 13, b"", finish=True))
    await call.done_writing()
    assert (await call).committed_size == 13
    assert [response.data async for response in reader] == []
    assert await read(served, stream.name, read_offset=6, read_limit=3) == b"sec"


async def test_an_interrupted_writer_goes_on(served: Served) -> None:
    stream = await create(served)
    name = stream.write_resource_name
    reply = await served.bytestream.Write(iter([message(name, 0, b"half")]))
    assert reply.committed_size == 4
    status = await served.bytestream.QueryWriteStatus(bs_pb2.QueryWriteStatusRequest(resource_name=name))
    assert (status.committed_size, status.complete) == (4, False)
    reply = await served.bytestream.Write(iter([message(name, 4, b" rest", finish=True)]))
    assert reply.committed_size == 9
    assert await read(served, stream.name) == b"half rest"


async def test_errors(served: Served) -> None:
    stream = await create(served)
    assert await code_of(create(served, "")) == INVALID
    assert await code_of(create(served, "a//b")) == INVALID
    assert await code_of(read(served, stream.write_resource_name)) == INVALID
    assert await code_of(served.bytestream.Write(iter([message(stream.name, 0, b"x")]))) == INVALID
    other = f"{stream.name}/0123456789abcdef"
    assert await code_of(served.bytestream.Write(iter([message(other, 0, b"x")]))) == grpc.StatusCode.PERMISSION_DENIED
    assert await code_of(read(served, "main/logstreams/unknown")) == grpc.StatusCode.NOT_FOUND
    after_finish = [message(stream.write_resource_name, 0, b"x", finish=True), message("", 1, b"y")]
    assert await code_of(served.bytestream.Write(iter(after_finish))) == INVALID
