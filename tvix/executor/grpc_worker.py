"""The scheduler's side of the worker protocol (remote_apis/worker.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from remote_apis import worker_pb2, worker_pb2_grpc
from tvix.errors import InvalidInput, TvixError
from tvix.executor.scheduler import Scheduler
from tvix.rpc import abort


class _Session:
    """One worker's stream. `send` and `close` never block."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[worker_pb2.SchedulerMessage | TvixError | None] = asyncio.Queue()

    def send(self, message: worker_pb2.SchedulerMessage) -> None:
        self.outbox.put_nowait(message)

    def close(self, error: TvixError) -> None:
        self.outbox.put_nowait(error)


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Connects workers to the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def Connect(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[worker_pb2.WorkerMessage], context: Any
    ) -> None:
        session = _Session()
        reader = asyncio.create_task(self._read(request_iterator, session), name="worker stream")
        try:
            while (item := await session.outbox.get()) is not None:
                if isinstance(item, TvixError):
                    await abort(context, item)
                    return
                await context.write(item)
            # The worker has ended its side, or the connection broke.
            if (error := reader.exception() if reader.done() else None) is not None:
                await abort(context, error)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, messages: AsyncIterator[worker_pb2.WorkerMessage], session: _Session) -> None:
        worker_id = ""
        try:
            async for message in messages:
                if worker_id:
                    self._scheduler.heard(worker_id, session, message)
                elif message.WhichOneof("message") == "hello":
                    self._scheduler.connect_worker(message.hello, session)
                    worker_id = message.hello.worker_id
                else:
                    raise InvalidInput("the first message of a worker must be hello", field="hello")
        except TvixError as error:
            session.close(error)
        except aio.UsageError:
            # The call was torn down while we read.
            pass
        finally:
            if worker_id:
                self._scheduler.disconnect_worker(worker_id, session)
            session.outbox.put_nowait(None)


def register_workers(server: Any, scheduler: Scheduler) -> None:
    """Serve WorkerService on a grpc.aio server."""
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(scheduler), server)
