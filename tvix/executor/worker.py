"""The worker: takes leases from a scheduler, runs their actions, reports (remote_apis/worker.proto).

Actions outlive the connection. When it breaks, they go on; on the next one Hello names them, and what
finished meanwhile is reported again until the scheduler acknowledges it. A lease that the scheduler no
longer knows is stopped.

It ends by `drain`: no new leases, the running ones are finished within `drain_seconds`; what is left
then, or at once after `kill`, is stopped and given back for another worker to try.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import random
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
from grpc import aio

import tvix
from remote_apis import bytestream_pb2_grpc, worker_pb2, worker_pb2_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_from_proto
from tvix.errors import Cancelled, CorruptData, Internal, TvixError, Unavailable
from tvix.executor.local import ActionRun
from tvix.executor.log_writer import LogWriter
from tvix.rpc import CHANNEL_OPTIONS, error_from_rpc, status_from_error

log = logging.getLogger(__name__)

RunAction = Callable[[ActionRun], Awaitable[re_pb2.ExecuteResponse]]
"""LocalExecutor.run."""

_WORKERS_FAULT = (Unavailable, Internal, CorruptData)
"""Errors after which another worker should try."""

_FATAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""What a scheduler answers to a worker that it will never take."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Who a worker is and how it behaves."""

    target: str
    """The scheduler: `unix:/path` or `host:port`."""
    slots: int
    """Actions run at a time."""
    worker_id: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    properties: tuple[tuple[str, str], ...] = ()
    """Platform properties offered; see `machine_properties`."""
    cpu_millis: int = 0
    memory_bytes: int = 0
    """Shared by all slots; 0 is unknown."""
    drain_seconds: float = 300.0
    reconnect_min_seconds: float = 0.1
    reconnect_max_seconds: float = 5.0
    farewell_seconds: float = 5.0
    """How long a killed worker still tries to give its leases back."""


def machine_properties(sandbox_name: str) -> tuple[tuple[str, str], ...]:
    """Return what every worker on this machine offers."""
    machine = platform.machine().lower()
    return (
        ("OSFamily", "linux"),
        ("ISA", {"x86_64": "x86-64", "amd64": "x86-64"}.get(machine, machine)),
        ("sandbox", sandbox_name),
    )


def machine_cpu_millis() -> int:
    """Return thousandths of a core that we may use."""
    return len(os.sched_getaffinity(0)) * 1000


def machine_memory_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class _Lease:
    """One action of ours, until its end is acknowledged."""

    task: asyncio.Task[None] | None = None
    finished: worker_pb2.Finished | None = None
    stopped_by: TvixError | None = None
    """Why it was stopped, when it was."""


class Worker:
    """One worker process's part in the protocol."""

    def __init__(self, config: WorkerConfig, run_action: RunAction) -> None:
        self._config = config
        self._run_action = run_action
        self._leases: dict[str, _Lease] = {}
        self._outbox: asyncio.Queue[worker_pb2.WorkerMessage] | None = None
        """What to send on the present connection; None while there is none."""
        self._draining = asyncio.Event()
        self._killed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        running = sum(lease.finished is None for lease in self._leases.values())
        state = "connected" if self._outbox is not None else "not connected"
        return f"<Worker {self._config.worker_id} {state}, {running} of {self._config.slots} running>"

    def drain(self) -> None:
        """Take no new leases; `run` returns when those held are finished."""
        self._draining.set()
        self._send(worker_pb2.WorkerMessage(draining=worker_pb2.Draining()))

    def kill(self) -> None:
        """Stop all leases now, and end."""
        self.drain()
        self._killed.set()

    async def run(self) -> None:
        """Work until drained. Raises when the scheduler refuses this worker for good."""
        try:
            async with (
                aio.insecure_channel(self._config.target, options=CHANNEL_OPTIONS) as channel,
                asyncio.TaskGroup() as tasks,
            ):
                connection = tasks.create_task(self._stay_connected(channel, tasks))
                await self._draining.wait()
                await self._wait_idle(self._config.drain_seconds)
                self._stop_all(Unavailable(f"worker {self._config.worker_id} is shutting down"))
                self._killed.clear()
                await self._wait_idle(self._config.farewell_seconds)
                connection.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _wait_idle(self, timeout_seconds: float) -> None:
        """Wait until no lease is held, `kill` or the end of the time."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, self._killed)]
        try:
            await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _stop_all(self, reason: TvixError) -> None:
        for lease_id in list(self._leases):
            self._stop(lease_id, reason)

    async def _stay_connected(self, channel: aio.Channel, tasks: asyncio.TaskGroup) -> None:
        delay = self._config.reconnect_min_seconds
        while True:
            try:
                if await self._connect_once(channel, tasks):
                    delay = self._config.reconnect_min_seconds
            except aio.AioRpcError as error:
                if error.code() in _FATAL:
                    raise error_from_rpc(error) from error
                log.warning(
                    "worker=%s scheduler=%s lost: %s", self._config.worker_id, self._config.target, error.details()
                )
            # Not all workers at once after a restart of the scheduler.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self._config.reconnect_max_seconds)

    async def _connect_once(self, channel: aio.Channel, tasks: asyncio.TaskGroup) -> bool:
        """Serve one connection until it ends; return whether the scheduler took us."""
        call = worker_pb2_grpc.WorkerServiceStub(channel).Connect()
        logs = bytestream_pb2_grpc.ByteStreamStub(channel)
        welcomed = False
        try:
            await call.write(worker_pb2.WorkerMessage(hello=self._hello()))
            first = await call.read()
            if first is aio.EOF or not isinstance(first, worker_pb2.SchedulerMessage):
                return False
            welcomed = True
            self._welcomed(first.welcome)
            async with _background(self._send_all(call), self._heartbeat(first.welcome.heartbeat_seconds)):
                while isinstance(message := await call.read(), worker_pb2.SchedulerMessage):
                    self._handle(message, logs, tasks)
        except asyncio.InvalidStateError as error:
            log.warning("worker=%s connection ended: %s", self._config.worker_id, error)
        finally:
            self._outbox = None
            call.cancel()
        return welcomed

    def _hello(self) -> worker_pb2.Hello:
        hello = worker_pb2.Hello(
            worker_id=self._config.worker_id,
            slots=self._config.slots,
            lease_ids=list(self._leases),
            version=tvix.__version__,
            cpu_millis=self._config.cpu_millis,
            memory_bytes=self._config.memory_bytes,
        )
        for name, value in sorted(self._config.properties):
            hello.platform.properties.add(name=name, value=value)
        return hello

    def _welcomed(self, welcome: worker_pb2.Welcome) -> None:
        self._outbox = asyncio.Queue()
        log.info("worker=%s connected to %s", self._config.worker_id, self._config.target)
        for lease_id in welcome.unknown_lease_ids:
            self._stop(lease_id, Cancelled("the scheduler no longer knows this lease"))
            self._forget(lease_id)
        for lease in self._leases.values():
            if lease.finished is not None:
                self._send(worker_pb2.WorkerMessage(finished=lease.finished))
        if self._draining.is_set():
            self._send(worker_pb2.WorkerMessage(draining=worker_pb2.Draining()))

    async def _send_all(
        self, call: aio.StreamStreamCall[worker_pb2.WorkerMessage, worker_pb2.SchedulerMessage]
    ) -> None:
        outbox = self._outbox
        assert outbox is not None
        # A broken stream is told by the reader; here it would be told twice.
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await outbox.get())

    async def _heartbeat(self, period_seconds: float) -> None:
        while True:
            await asyncio.sleep(period_seconds or 5.0)
            self._send(worker_pb2.WorkerMessage(heartbeat=worker_pb2.Heartbeat(lease_ids=list(self._leases))))

    def _send(self, message: worker_pb2.WorkerMessage) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(message)

    def _handle(
        self,
        message: worker_pb2.SchedulerMessage,
        logs: bytestream_pb2_grpc.ByteStreamAsyncStub,
        tasks: asyncio.TaskGroup,
    ) -> None:
        match message.WhichOneof("message"):
            case "assign":
                self._assigned(message.assign, logs, tasks)
            case "cancel":
                self._stop(message.cancel.lease_id, Cancelled("the action was cancelled"))
            case "acknowledge":
                self._forget(message.acknowledge.lease_id)
            case other:
                log.warning("worker=%s message=%s is not understood", self._config.worker_id, other)

    def _assigned(
        self, assign: worker_pb2.Assign, logs: bytestream_pb2_grpc.ByteStreamAsyncStub, tasks: asyncio.TaskGroup
    ) -> None:
        known = self._leases.get(assign.lease_id)
        if known is not None:
            if known.finished is not None:
                self._send(worker_pb2.WorkerMessage(finished=known.finished))
            return
        lease = self._leases[assign.lease_id] = _Lease()
        self._idle.clear()
        if self._draining.is_set():
            self._finish(assign.lease_id, lease, _failure(Unavailable("the worker is shutting down")), retry=True)
            return
        lease.task = tasks.create_task(self._run_lease(assign, lease, logs, tasks))
        lease.task.add_done_callback(lambda task: self._ended(assign.lease_id, lease))

    def _ended(self, lease_id: str, lease: _Lease) -> None:
        """Report a lease that was stopped, maybe before its task took the first step."""
        reason = lease.stopped_by
        if lease.finished is None and reason is not None:
            self._finish(lease_id, lease, _failure(reason), retry=isinstance(reason, _WORKERS_FAULT))

    async def _run_lease(
        self,
        assign: worker_pb2.Assign,
        lease: _Lease,
        logs: bytestream_pb2_grpc.ByteStreamAsyncStub,
        tasks: asyncio.TaskGroup,
    ) -> None:
        writers = [
            LogWriter(logs.Write, name, tasks) if name else None
            for name in (assign.stdout_write_name, assign.stderr_write_name)
        ]
        try:
            response = await self._run_action(self._action_run(assign, *writers))
            self._finish(assign.lease_id, lease, response, retry=False)
        except TvixError as error:
            self._finish(assign.lease_id, lease, _failure(error), retry=isinstance(error, _WORKERS_FAULT))
        except Exception as error:
            log.exception("lease=%s failed", assign.lease_id)
            self._finish(assign.lease_id, lease, _failure(error), retry=True)
        finally:
            for writer in writers:
                if writer is not None:
                    writer.close()

    def _action_run(self, assign: worker_pb2.Assign, stdout: LogWriter | None, stderr: LogWriter | None) -> ActionRun:
        lease_id = assign.lease_id

        def progress(metadata: re_pb2.ExecutedActionMetadata) -> None:
            self._send(worker_pb2.WorkerMessage(progress=worker_pb2.Progress(lease_id=lease_id, metadata=metadata)))

        return ActionRun(
            action_digest=digest_from_proto(assign.action_digest, assign.digest_function, field="action_digest"),
            action=assign.action or None,
            command=assign.command or None,
            timeout_seconds=assign.timeout_seconds or None,
            metadata=assign.metadata,
            stdout=stdout,
            stderr=stderr,
            progress=progress,
            directories_for_files=assign.request_metadata.tool_details.tool_name == "bazel",
        )

    def _finish(self, lease_id: str, lease: _Lease, response: re_pb2.ExecuteResponse, *, retry: bool) -> None:
        lease.finished = worker_pb2.Finished(lease_id=lease_id, response=response, retry=retry)
        if lease_id in self._leases:
            self._send(worker_pb2.WorkerMessage(finished=lease.finished))

    def _stop(self, lease_id: str, reason: TvixError) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None and lease.finished is None and lease.stopped_by is None:
            lease.stopped_by = reason
            if lease.task is not None:
                lease.task.cancel()

    def _forget(self, lease_id: str) -> None:
        self._leases.pop(lease_id, None)
        if not self._leases:
            self._idle.set()


def _failure(error: BaseException) -> re_pb2.ExecuteResponse:
    return re_pb2.ExecuteResponse(status=status_from_error(error))


@contextlib.asynccontextmanager
async def _background(*coroutines: Awaitable[None]) -> AsyncIterator[None]:
    """Run coroutines beside the block and stop them with it."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_worker(config: WorkerConfig, run_action: RunAction) -> None:
    """Run a worker until it is drained or this is cancelled."""
    await Worker(config, run_action).run()
