"""A scheduler on a real socket, with workers that do what a test tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from remote_apis import worker_pb2, worker_pb2_grpc
from tvix.cas.digest import Digest, digest_from_proto, digest_of, digest_to_proto
from tvix.cas.interfaces import ActionKey
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.sql import open_database
from tvix.executor.grpc_admin import register_admin
from tvix.executor.grpc_execution import register_execution
from tvix.executor.grpc_operations import register_operations
from tvix.executor.grpc_worker import register_workers
from tvix.executor.operations_store import OperationsStore
from tvix.executor.scheduler import Scheduler, SchedulerConfig

Message = worker_pb2.WorkerMessage


class FakeWorker:
    """A worker at the end of a real stream. `assigned` and `cancelled` are what it was told."""

    def __init__(self, channel: aio.Channel, worker_id: str, slots: int = 1) -> None:
        self.id = worker_id
        self.slots = slots
        self.platform: dict[str, str] = {"OSFamily": "linux", "ISA": "x86-64"}
        self.assigned: asyncio.Queue[worker_pb2.Assign] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.acknowledged: asyncio.Queue[str] = asyncio.Queue()
        self.welcome: worker_pb2.Welcome | None = None
        self._channel = channel
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None

    async def connect(self, *lease_ids: str) -> worker_pb2.Welcome:
        self._call = worker_pb2_grpc.WorkerServiceStub(self._channel).Connect()
        platform = re_pb2.Platform()
        for name, value in self.platform.items():
            platform.properties.add(name=name, value=value)
        hello = worker_pb2.Hello(worker_id=self.id, slots=self.slots, platform=platform, lease_ids=lease_ids)
        await self.say(hello=hello)
        self.welcome = (await self._call.read()).welcome
        self._reader = asyncio.create_task(self._read())
        return self.welcome

    async def say(self, **message: Any) -> None:
        await self._call.write(Message(**message))

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not aio.EOF:
                kind = message.WhichOneof("message")
                if kind == "assign":
                    self.assigned.put_nowait(message.assign)
                elif kind == "cancel":
                    self.cancelled.put_nowait(message.cancel.lease_id)
                elif kind == "acknowledge":
                    self.acknowledged.put_nowait(message.acknowledge.lease_id)
        except aio.AioRpcError:
            pass

    async def finish(self, assign: worker_pb2.Assign, response: re_pb2.ExecuteResponse, **fields: Any) -> None:
        finished = worker_pb2.Finished(lease_id=assign.lease_id, response=response, **fields)
        await self.say(finished=finished)

    async def run_one(self, response: re_pb2.ExecuteResponse | None = None) -> worker_pb2.Assign:
        """Take one assignment and finish it."""
        assign = await self.assigned.get()
        await self.finish(assign, response or succeeded())
        await self.acknowledged.get()
        return assign

    async def disconnect(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)


def succeeded(exit_code: int = 0, stdout: bytes = b"out") -> re_pb2.ExecuteResponse:
    """Return the response of a command that ran."""
    return re_pb2.ExecuteResponse(result=re_pb2.ActionResult(exit_code=exit_code, stdout_raw=stdout))


class ManualClock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A scheduler, its stores, and a client of it."""

    folder: Path
    config: SchedulerConfig
    clock: ManualClock
    blobs: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    cache: MemoryRecordStore[ActionKey, re_pb2.ActionResult] = field(default_factory=MemoryRecordStore)
    extras: dict[str, Any] = field(default_factory=dict)
    workers: list[FakeWorker] = field(default_factory=list)
    update_seconds: float = 5

    async def start(self) -> None:
        self.database = await open_database(self.folder / "records.sqlite")
        self.store = OperationsStore(self.database)
        await self.store.open()
        self.scheduler = Scheduler(self.blobs, self.cache, self.store, self.config, clock=self.clock, **self.extras)
        await self.scheduler.start()
        self.server = aio.server()
        register_execution(self.server, self.scheduler, update_seconds=self.update_seconds)
        register_operations(self.server, self.scheduler)
        register_workers(self.server, self.scheduler)
        register_admin(self.server, self.scheduler)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = aio.insecure_channel(f"127.0.0.1:{port}")
        self.execution = re_grpc.ExecutionStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)

    async def stop(self) -> None:
        for worker in self.workers:
            await worker.disconnect()
        await self.channel.close()
        await self.scheduler.close()
        await self.server.stop(None)
        await self.store.close()
        await self.database.close()

    async def restart(self) -> None:
        await self.stop()
        self.workers.clear()
        await self.start()

    async def worker(self, worker_id: str = "w1", *lease_ids: str, slots: int = 1, **platform: str) -> FakeWorker:
        worker = FakeWorker(self.channel, worker_id, slots)
        worker.platform.update(platform)
        self.workers.append(worker)
        await worker.connect(*lease_ids)
        return worker

    def put(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self.blobs.blobs[digest] = data
        return digest

    def action(
        self, *arguments: str, change: Callable[[re_pb2.Action, re_pb2.Command], None] | None = None, **platform: str
    ) -> re_pb2.Digest:
        """Store an action with an empty input root; return its digest."""
        command = re_pb2.Command(arguments=arguments or ("true",))
        action = re_pb2.Action(input_root_digest=digest_to_proto(self.put(b"")))
        for name, value in platform.items():
            action.platform.properties.add(name=name, value=value)
        if change is not None:
            change(action, command)
        if not action.HasField("command_digest"):
            action.command_digest.CopyFrom(digest_to_proto(self.put(command.SerializeToString())))
        return digest_to_proto(self.put(action.SerializeToString()))

    def execute(self, digest: re_pb2.Digest, *, metadata: Any = None, **fields: Any) -> Any:
        """Call Execute; returns the stream."""
        return self.execution.Execute(re_pb2.ExecuteRequest(action_digest=digest, **fields), metadata=metadata)

    def key(self, digest: re_pb2.Digest, instance_name: str = "") -> ActionKey:
        return ActionKey(instance_name, digest_from_proto(digest))

    async def advance(self, seconds: float) -> None:
        """Turn the clock and let the scheduler act."""
        self.clock.now += seconds
        self.scheduler.tick()
        await asyncio.sleep(0)

    async def settled(self) -> None:
        """Return when the scheduler has read what workers have said before: a round trip on the same socket."""
        with pytest.raises(aio.AioRpcError):
            await self.operations.GetOperation(operations_pb2.GetOperationRequest(name="none"))


def stage_of(operation: operations_pb2.Operation) -> str:
    """Return the stage's name."""
    metadata = re_pb2.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return re_pb2.ExecutionStage.Value.Name(metadata.stage)


def response_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteResponse:
    """Return the response of a finished operation."""
    assert operation.done, operation
    assert not operation.HasField("error")
    response = re_pb2.ExecuteResponse()
    assert operation.response.Unpack(response)
    return response


async def last_of(stream: Any) -> re_pb2.ExecuteResponse:
    """Read a stream to its end; return the response."""
    last = None
    while (operation := await stream.read()) is not aio.EOF:
        last = operation
    assert last is not None
    return response_of(last)


@asynccontextmanager
async def running_world(
    folder: Path, *, update_seconds: float = 5, extras: dict[str, Any] | None = None, **config: Any
) -> AsyncIterator[World]:
    """Give a started world, and stop it."""
    world = World(folder, SchedulerConfig(**config), ManualClock(), extras=extras or {}, update_seconds=update_seconds)
    await world.start()
    try:
        yield world
    finally:
        await world.stop()
