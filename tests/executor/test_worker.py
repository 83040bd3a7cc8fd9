"""The worker against a scripted scheduler, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio

from remote_apis import bytestream_pb2, bytestream_pb2_grpc, worker_pb2, worker_pb2_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_of, digest_to_proto
from tvix.errors import InvalidInput, MissingBlobs, TvixError, Unavailable
from tvix.executor.local import ActionRun
from tvix.executor.worker import Worker, WorkerConfig, machine_cpu_millis, machine_memory_bytes, machine_properties

DIGEST = digest_of(b"action")
DONE = re_pb2.ExecuteResponse(result=re_pb2.ActionResult(exit_code=5))
HELD_SECONDS = 20


class Connection:
    """The scheduler's end of one connection."""

    def __init__(self, requests: AsyncIterator[worker_pb2.WorkerMessage], context: Any) -> None:
        self._requests = requests
        self._context = context
        self.over = asyncio.Event()
        self.error: tuple[Any, str] | None = None

    async def receive(self, kind: str) -> Any:
        """Return the next message, which is of this kind, heartbeats passed over."""
        async with asyncio.timeout(HELD_SECONDS):
            while True:
                message = await anext(aiter(self._requests))
                found = message.WhichOneof("message")
                if found != "heartbeat" or kind == "heartbeat":
                    assert found == kind, message
                    return getattr(message, kind)

    async def send(self, **message: Any) -> None:
        await self._context.write(worker_pb2.SchedulerMessage(**message))

    async def welcome(self, *unknown: str, heartbeat_seconds: float = 60.0) -> worker_pb2.Hello:
        hello: worker_pb2.Hello = await self.receive("hello")
        await self.send(welcome=worker_pb2.Welcome(heartbeat_seconds=heartbeat_seconds, unknown_lease_ids=unknown))
        return hello

    async def assign(self, lease_id: str, **fields: Any) -> None:
        action_digest = digest_to_proto(DIGEST)
        await self.send(assign=worker_pb2.Assign(lease_id=lease_id, action_digest=action_digest, **fields))

    async def finished(self) -> worker_pb2.Finished:
        """Return the next Finished, having acknowledged it."""
        finished: worker_pb2.Finished = await self.receive("finished")
        await self.acknowledge(finished.lease_id)
        return finished

    async def acknowledge(self, lease_id: str) -> None:
        await self.send(acknowledge=worker_pb2.Acknowledge(lease_id=lease_id))


class Scheduler(worker_pb2_grpc.WorkerServiceServicer, bytestream_pb2_grpc.ByteStreamServicer):
    """Hands connections to the test."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Connection] = asyncio.Queue()
        self.writes: list[bytestream_pb2.WriteRequest] = []
        self.began = asyncio.Event()
        self.written = asyncio.Event()

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        connection = Connection(request_iterator, context)
        await self.connections.put(connection)
        await connection.over.wait()
        if connection.error is not None:
            await context.abort(*connection.error)

    async def Write(self, request_iterator: Any, context: Any) -> bytestream_pb2.WriteResponse:
        async for request in request_iterator:
            self.writes.append(request)
            self.began.set()
        self.written.set()
        return bytestream_pb2.WriteResponse()

    async def Read(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError

    async def QueryWriteStatus(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def connection(self) -> Connection:
        async with asyncio.timeout(HELD_SECONDS):
            return await self.connections.get()


class Actions:
    """Actions that run until the test says how they end."""

    def __init__(self) -> None:
        self.runs: asyncio.Queue[ActionRun] = asyncio.Queue()
        self.ends: asyncio.Queue[re_pb2.ExecuteResponse | Exception] = asyncio.Queue()
        self.cancelled = 0

    async def __call__(self, run: ActionRun) -> re_pb2.ExecuteResponse:
        self.runs.put_nowait(run)
        try:
            end = await self.ends.get()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(end, Exception):
            raise end
        return end


class Stage:
    """A worker and its scheduler."""

    def __init__(self, worker: Worker, scheduler: Scheduler, actions: Actions, running: asyncio.Task[None]) -> None:
        self.worker = worker
        self.scheduler = scheduler
        self.actions = actions
        self.running = running

    async def ended(self) -> None:
        async with asyncio.timeout(HELD_SECONDS):
            await self.running


Start = Callable[..., Any]


@asynccontextmanager
async def staged(**config: Any) -> AsyncIterator[Stage]:
    scheduler, actions = Scheduler(), Actions()
    server = aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(scheduler, server)
    bytestream_pb2_grpc.add_ByteStreamServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    defaults = {"slots": 2, "worker_id": "w", "reconnect_min_seconds": 0.001, "reconnect_max_seconds": 0.01}
    worker = Worker(WorkerConfig(f"127.0.0.1:{port}", **{**defaults, **config}), actions)
    running = asyncio.create_task(worker.run())
    try:
        yield Stage(worker, scheduler, actions, running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop(None)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as built:
        yield built


async def test_hello_says_who_we_are() -> None:
    properties = (("pool", "small"), ("OSFamily", "linux"))
    async with staged(properties=properties, cpu_millis=2000, memory_bytes=1 << 30) as stage:
        hello = await (await stage.scheduler.connection()).welcome()
        assert (hello.worker_id, hello.slots, hello.cpu_millis, hello.memory_bytes) == ("w", 2, 2000, 1 << 30)
        assert [(item.name, item.value) for item in hello.platform.properties] == sorted(properties)
        assert hello.version
        assert not hello.lease_ids


async def test_lease_from_assign_to_acknowledge(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    metadata = re_pb2.ExecutedActionMetadata()
    metadata.queued_timestamp.FromSeconds(7)
    await connection.assign("l1", action=b"A", command=b"C", timeout_seconds=3.5, metadata=metadata)
    run = await stage.actions.runs.get()
    assert (run.action_digest, run.action, run.command, run.timeout_seconds) == (DIGEST, b"A", b"C", 3.5)
    assert run.metadata.queued_timestamp.seconds == 7
    run.metadata.worker = "w"
    run.progress(run.metadata)
    progress = await connection.receive("progress")
    assert (progress.lease_id, progress.metadata.worker) == ("l1", "w")
    assert repr(stage.worker) == "<Worker w connected, 1 of 2 running>"
    stage.actions.ends.put_nowait(DONE)
    finished = await connection.finished()
    assert (finished.lease_id, finished.response, finished.retry) == ("l1", DONE, False)
    stage.worker.drain()
    await connection.receive("draining")
    await stage.ended()


async def test_unset_fields_of_assign_are_none(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    run = await stage.actions.runs.get()
    assert (run.action, run.command, run.timeout_seconds, run.stdout, run.stderr) == (None, None, None, None, None)


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [
        (Unavailable("sandbox broke"), 14, True),
        (ValueError("a bug"), 13, True),
        (InvalidInput("bad command"), 3, False),
        (MissingBlobs([DIGEST]), 9, False),
    ],
)
async def test_errors_become_statuses(stage: Stage, error: Exception, code: int, retry: bool) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    stage.actions.ends.put_nowait(error)
    finished = await connection.finished()
    assert (finished.response.status.code, finished.retry) == (code, retry)
    assert str(error) in finished.response.status.message


async def test_malformed_assign_is_answered(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.send(assign=worker_pb2.Assign(lease_id="l1"))
    assert (await connection.finished()).response.status.code == 3


@pytest.mark.parametrize(("tool", "tolerant"), [("bazel", True), ("buck2", False)])
async def test_bazel_may_get_directories_for_files(stage: Stage, tool: str, tolerant: bool) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    details = re_pb2.ToolDetails(tool_name=tool)
    await connection.assign("l1", request_metadata=re_pb2.RequestMetadata(tool_details=details))
    assert (await stage.actions.runs.get()).directories_for_files is tolerant
    stage.actions.ends.put_nowait(DONE)
    await connection.finished()


async def test_cancel_stops_and_is_answered(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    await connection.assign("l2")
    await stage.actions.runs.get()
    await connection.send(cancel=worker_pb2.Cancel(lease_id="l1"))
    finished = await connection.finished()
    assert (finished.lease_id, finished.response.status.code, finished.retry) == ("l1", 1, False)
    stage.actions.ends.put_nowait(DONE)
    assert (await connection.finished()).lease_id == "l2"


async def test_cancel_right_after_assign_and_of_the_unknown(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.send(cancel=worker_pb2.Cancel(lease_id="never"))
    await connection.assign("l1")
    await connection.send(cancel=worker_pb2.Cancel(lease_id="l1"))
    assert (await connection.finished()).response.status.code == 1


async def test_heartbeats_name_the_leases() -> None:
    async with staged() as stage:
        connection = await stage.scheduler.connection()
        await connection.welcome(heartbeat_seconds=0.01)
        assert list((await connection.receive("heartbeat")).lease_ids) == []
        await connection.assign("l1")
        while not (heartbeat := await connection.receive("heartbeat")).lease_ids:
            pass
        assert list(heartbeat.lease_ids) == ["l1"]


async def test_actions_outlive_the_connection(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    await connection.assign("l2")
    for _ in range(2):
        await stage.actions.runs.get()
    connection.over.set()
    again = await stage.scheduler.connection()
    stage.actions.ends.put_nowait(DONE)
    hello = await again.welcome()
    assert sorted(hello.lease_ids) == ["l1", "l2"]
    first = await again.receive("finished")
    again.over.set()
    third = await stage.scheduler.connection()
    hello = await third.welcome()
    assert sorted(hello.lease_ids) == ["l1", "l2"], "not acknowledged: still held"
    assert (await third.finished()) == first
    stage.actions.ends.put_nowait(DONE)
    assert {first.lease_id, (await third.finished()).lease_id} == {"l1", "l2"}
    assert stage.actions.cancelled == 0


async def test_leases_that_the_scheduler_forgot_are_stopped(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    await stage.actions.runs.get()
    connection.over.set()
    again = await stage.scheduler.connection()
    await again.welcome("l1")
    stage.worker.drain()
    await again.receive("draining")
    await stage.ended()
    assert stage.actions.cancelled == 1


async def test_assign_again_is_not_run_again(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    await stage.actions.runs.get()
    await connection.assign("l1")
    stage.actions.ends.put_nowait(DONE)
    await connection.receive("finished")
    await connection.assign("l1")
    assert (await connection.finished()).response == DONE
    assert stage.actions.runs.empty()


async def test_drain_finishes_what_runs_and_takes_no_more(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    await stage.actions.runs.get()
    stage.worker.drain()
    await connection.receive("draining")
    await connection.assign("l2")
    late = await connection.finished()
    assert (late.lease_id, late.retry, late.response.status.code) == ("l2", True, 14)
    stage.actions.ends.put_nowait(DONE)
    assert (await connection.finished()).response == DONE
    await stage.ended()


async def test_drain_is_bounded() -> None:
    async with staged(drain_seconds=0.01) as stage:
        connection = await stage.scheduler.connection()
        await connection.welcome()
        await connection.assign("l1")
        await stage.actions.runs.get()
        stage.worker.drain()
        await connection.receive("draining")
        finished = await connection.finished()
        assert (finished.retry, finished.response.status.code) == (True, 14)
        await stage.ended()


async def test_kill_gives_leases_back_at_once(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1")
    await stage.actions.runs.get()
    stage.worker.kill()
    await connection.receive("draining")
    assert (await connection.finished()).retry
    await stage.ended()
    assert stage.actions.cancelled == 1


async def test_drain_without_a_scheduler_ends() -> None:
    worker = Worker(WorkerConfig("127.0.0.1:1", slots=1), Actions())
    worker.drain()
    await worker.run()


async def test_refused_for_good_is_raised(stage: Stage) -> None:
    import grpc

    connection = await stage.scheduler.connection()
    connection.error = (grpc.StatusCode.UNAUTHENTICATED, "who are you?")
    connection.over.set()
    with pytest.raises(TvixError, match="who are you"):
        await stage.ended()


async def test_output_is_streamed_while_the_command_runs(stage: Stage) -> None:
    connection = await stage.scheduler.connection()
    await connection.welcome()
    await connection.assign("l1", stdout_write_name="logs/out", stderr_write_name="logs/err")
    run = await stage.actions.runs.get()
    assert run.stdout is not None
    run.stdout.write(b"one ")
    run.stdout.write(b"two")
    await stage.scheduler.began.wait()
    run.stdout.write(b" three")
    stage.actions.ends.put_nowait(DONE)
    await connection.finished()
    await stage.scheduler.written.wait()
    assert {write.resource_name for write in stage.scheduler.writes[:1]} == {"logs/out"}
    assert b"".join(write.data for write in stage.scheduler.writes) == b"one two three"
    assert [write.finish_write for write in stage.scheduler.writes][-1] is True
    offset = 0
    for write in stage.scheduler.writes:
        assert write.write_offset == offset
        offset += len(write.data)


def test_what_this_machine_offers() -> None:
    properties = dict(machine_properties("bubblewrap"))
    assert properties["OSFamily"] == "linux"
    assert properties["ISA"] in ("x86-64", "aarch64")
    assert properties["sandbox"] == "bubblewrap"
    assert machine_cpu_millis() >= 1000
    assert machine_memory_bytes() > 1 << 28
