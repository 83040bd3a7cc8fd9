"""Calls handed on to another process: what travels, and what callers notice when that process ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from remote_apis import worker_pb2, worker_pb2_grpc
from tvix.cas.digest import digest_of
from tvix.errors import InvalidInput, MissingBlobs, NotFound
from tvix.http2.server import GrpcServer
from tvix.rpc import error_from_rpc, handled
from tvix.server import passthrough
from tvix.server.passthrough import Passthrough, forwarded

_Operations: Any = operations_pb2_grpc.OperationsServicer  # untyped package


class Scheduler(re_grpc.ExecutionServicer, worker_pb2_grpc.WorkerServiceServicer, _Operations):  # type: ignore[misc]
    """Answers as the scheduler does, under the test's control."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.waited: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.remaining: float | None = None
        self.may_finish = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.forgets = False

    @handled
    async def Execute(self, request: re_pb2.ExecuteRequest, context: Any) -> AsyncIterator[operations_pb2.Operation]:
        self.metadata = dict(context.invocation_metadata())
        self.remaining = context.time_remaining()
        self.executed.append(request.instance_name)
        if request.instance_name == "missing":
            raise MissingBlobs([digest_of(b"absent")])
        yield operations_pb2.Operation(name=f"operations/{len(self.executed)}")
        self.entered.set()
        try:
            await self.may_finish.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield operations_pb2.Operation(name=f"operations/{len(self.executed)}", done=True)

    @handled
    async def WaitExecution(
        self, request: re_pb2.WaitExecutionRequest, context: Any
    ) -> AsyncIterator[operations_pb2.Operation]:
        self.waited.append(request.name)
        if self.forgets:
            raise NotFound(f"no operation {request.name}")
        yield operations_pb2.Operation(name=request.name)
        self.entered.set()
        await self.may_finish.wait()
        yield operations_pb2.Operation(name=request.name, done=True)

    @handled
    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> operations_pb2.Operation:
        if not request.name:
            raise InvalidInput("name: is empty", field="name")
        return operations_pb2.Operation(name=request.name)

    async def Connect(
        self, request_iterator: AsyncIterator[worker_pb2.WorkerMessage], context: Any
    ) -> AsyncIterator[worker_pb2.SchedulerMessage]:
        async for message in request_iterator:
            yield worker_pb2.SchedulerMessage(assign=worker_pb2.Assign(lease_id=message.hello.worker_id))


class Setting:
    """A scheduler, a front before it, and a channel to the front."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "scheduler.sock"
        self.scheduler = Scheduler()
        self.upstream = GrpcServer()
        self.passthrough = Passthrough(f"unix:{self.socket}")
        self.front = GrpcServer()
        self.front.add_generic_rpc_handlers((self.passthrough,))
        self.channel = aio.insecure_channel(f"127.0.0.1:{self.front.add_port('127.0.0.1', 0)}")
        self.execution = re_grpc.ExecutionStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)

    async def start_upstream(self, scheduler: Scheduler) -> None:
        self.scheduler, self.upstream = scheduler, GrpcServer()
        server: Any = self.upstream
        re_grpc.add_ExecutionServicer_to_server(scheduler, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(scheduler, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(scheduler, server)
        self.upstream.add_unix_socket(str(self.socket))
        await self.upstream.start()

    def execute(self, instance_name: str = "", **options: Any) -> Any:
        return self.execution.Execute(re_pb2.ExecuteRequest(instance_name=instance_name), **options)


@asynccontextmanager
async def setting(folder: Path) -> AsyncIterator[Setting]:
    made = Setting(folder)
    await made.start_upstream(made.scheduler)
    await made.front.start()
    try:
        yield made
    finally:
        await made.channel.close()
        await made.front.stop(None)
        await made.passthrough.close()
        await made.upstream.stop(None)


async def test_streams_metadata_and_deadlines_travel(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        it.scheduler.may_finish.set()
        metadata = (("x-who", "me"), ("x-raw-bin", b"\x00\xff"))
        names = [reply.name async for reply in it.execute(metadata=metadata, timeout=30)]
        assert names == ["operations/1", "operations/1"]
        assert (it.scheduler.metadata["x-who"], it.scheduler.metadata["x-raw-bin"]) == ("me", b"\x00\xff")
        assert it.scheduler.remaining is not None
        assert 0 < it.scheduler.remaining <= 30


async def test_errors_travel_with_their_details(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        with pytest.raises(aio.AioRpcError) as raised:
            async for _ in it.execute("missing"):
                pass
        error = error_from_rpc(raised.value)
        assert isinstance(error, MissingBlobs)
        assert error.digests == (digest_of(b"absent"),)
        with pytest.raises(aio.AioRpcError) as raised:
            await it.operations.GetOperation(operations_pb2.GetOperationRequest())
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_method_that_the_scheduler_lacks_is_unimplemented(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        with pytest.raises(aio.AioRpcError) as raised:
            await it.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name="x"))
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_caller_that_goes_away_cancels_the_call(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        call = it.execute()
        await it.scheduler.entered.wait()
        call.cancel()
        async with asyncio.timeout(10):
            await it.scheduler.cancelled.wait()


async def test_both_directions_of_a_worker_stream(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        call: Any = worker_pb2_grpc.WorkerServiceStub(it.channel).Connect()
        for worker_id in ("a", "b"):
            await call.write(worker_pb2.WorkerMessage(hello=worker_pb2.Hello(worker_id=worker_id)))
            reply = await call.read()
            assert reply.assign.lease_id == worker_id
        await call.done_writing()
        assert await call.read() is aio.EOF


async def _interrupted(it: Setting, after: Callable[[Scheduler], None]) -> tuple[list[str], Scheduler]:
    """Execute; stop the scheduler while it runs; start another; return what the caller saw."""
    seen: list[str] = []

    async def caller() -> None:
        async for reply in it.execute("inst"):
            seen.append(f"{reply.name} {'done' if reply.done else 'runs'}")

    calling = asyncio.create_task(caller())
    await it.scheduler.entered.wait()
    await it.upstream.stop(None)
    successor = Scheduler()
    after(successor)
    await it.start_upstream(successor)
    async with asyncio.timeout(20):
        await successor.entered.wait()
        successor.may_finish.set()
        await calling
    return seen, successor


async def test_an_execute_stream_outlives_the_scheduler(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        seen, successor = await _interrupted(it, lambda scheduler: None)
        assert seen == ["operations/1 runs", "operations/1 runs", "operations/1 done"]
        assert (successor.waited, successor.executed) == (["operations/1"], [])


async def test_an_operation_that_is_forgotten_is_executed_again(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        _, successor = await _interrupted(it, lambda scheduler: setattr(scheduler, "forgets", True))
        assert (successor.waited, successor.executed) == (["operations/1"], ["inst"])


async def test_calls_wait_for_a_scheduler_that_is_not_there_yet(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        await it.upstream.stop(None)
        request = operations_pb2.GetOperationRequest(name="operations/7")
        asking = asyncio.ensure_future(it.operations.GetOperation(request))
        await asyncio.sleep(0)
        await it.start_upstream(Scheduler())
        async with asyncio.timeout(20):
            assert (await asking).name == "operations/7"


async def test_a_scheduler_that_stays_away_is_unavailable_with_a_time_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passthrough, "PATIENCE_SECONDS", 0.2)
    async with setting(tmp_path) as it:
        await it.upstream.stop(None)
        with pytest.raises(aio.AioRpcError) as raised:
            await it.operations.GetOperation(operations_pb2.GetOperationRequest(name="x"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the scheduler can't be reached" in (raised.value.details() or "")
        assert any(key == "grpc-status-details-bin" for key, _ in raised.value.trailing_metadata() or ())


def test_what_every_call_says_anyway_is_not_forwarded() -> None:
    metadata = ((":path", "/x"), ("grpc-timeout", "1S"), ("user-agent", "bazel"), ("te", "trailers"), ("x-a", "1"))
    assert forwarded(metadata) == (("x-a", "1"),)
