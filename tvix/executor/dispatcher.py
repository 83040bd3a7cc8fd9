"""The middle of the scheduler: it owns the queue, the jobs, the operations and the workers' streams.

After each change of the queue `pump` acts on its events; one timer wakes the queue when something becomes
due. Everything an operation goes through after it was admitted passes here, in one place each: it is attached,
its stage changes, it ends. What clients ask for is scheduler.py; what is done with results is recorder.py.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tvix.cas.interfaces import PinningStore
from tvix.errors import Cancelled, FailedPrecondition, InvalidInput, TvixError, Unavailable
from tvix.executor.build_queue import BuildQueue
from tvix.executor.interfaces import Stage
from tvix.executor.job import Job, assign_message, lease_row, operation_row, task_row
from tvix.executor.operation import Operation
from tvix.executor.operations_store import LEASES, OPERATIONS, TASKS, WORKERS, Delete, OperationsStore, Put
from tvix.executor.platform_policy import PlatformPolicy, Property, platform_to_properties
from tvix.executor.queue_model import (
    Abandoned,
    Assigned,
    Dropped,
    Event,
    Lost,
    QueueConfig,
    Refused,
    Requeued,
    State,
    StopLease,
    Task,
    Worker,
    WorkerDropped,
)
from tvix.executor.results import status_response
from tvix.rpc import status_from_error

log = logging.getLogger(__name__)

STALL_SECONDS = 2.0
"""A timer this late means that we stood still."""

Finish = Callable[[Job, str, worker_pb2.Finished], Coroutine[Any, Any, None]]


class WorkerSession(Protocol):
    """A worker's open stream."""

    def send(self, message: worker_pb2.SchedulerMessage) -> None:
        """Queue a message for the worker."""

    def close(self, error: TvixError) -> None:
        """End the stream."""


@dataclass(frozen=True, slots=True)
class DispatcherConfig:
    """Settings; times in seconds."""

    queue: QueueConfig = field(default_factory=QueueConfig)
    max_remembered: int = 1000
    """Finished operations kept in memory; the others are read from the database."""
    pin_seconds: float = 600.0


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    submitted: int = 0
    merged: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0


class Dispatcher:
    """Gives jobs to workers, and tells operations what becomes of them."""

    def __init__(
        self,
        config: DispatcherConfig,
        store: OperationsStore,
        policy: PlatformPolicy,
        pins: PinningStore | None,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.clock = clock
        self.policy = policy
        self.queue = BuildQueue(config.queue, clock(), lambda: uuid.uuid4().hex)
        self.jobs: dict[str, Job] = {}
        """By task id."""
        self.operations: dict[str, Operation] = {}
        """Those that have not ended, by name."""
        self.done: OrderedDict[str, Operation] = OrderedDict()
        """The last ones that have, oldest first."""
        self.counters = Counters()
        self.done_times: deque[float] = deque(maxlen=6000)
        """When the last operations ended, for rates."""
        self.worker_hellos: dict[str, worker_pb2.Hello] = {}
        self.on_completed: list[Callable[[Operation], None]] = []
        """Called with each operation that ends."""
        self.closed = False
        self._store = store
        self._pins = pins
        self._sessions: dict[str, WorkerSession] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        """By the clock, and when that is by the loop's."""
        self._timer_at: float | None = None

    def __repr__(self) -> str:
        return f"<Dispatcher {self.queue!r}>"

    async def close(self) -> None:
        """Close workers' streams and stop all tasks; what is in flight stays saved."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for session in list(self._sessions.values()):
            session.close(Unavailable("the scheduler is shutting down", retry_seconds=1))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something that may outlive the call that asked for it; awaited by `close`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, TvixError):
            log.error("task=%s failed", task.get_name(), exc_info=error)

    # -- jobs and operations ---------------------------------------------------------------------------------

    async def submit(self, job: Job, operation: Operation) -> None:
        """Queue a new job for an operation; returns when a restart would find both."""
        self.jobs[job.task.id] = job
        self.attach(job, operation, Stage.QUEUED)
        self.pin(job)
        self.queue.submit(job.task, operation.name, self.clock())
        saved = self._store.write(Put(TASKS, task_row(job)), Put(OPERATIONS, operation_row(operation)))
        self.pump()
        await saved

    async def join(self, task: Task, operation: Operation, priority: int) -> None:
        """Let one more operation wait for a task in flight; returns when a restart would find it."""
        self.counters.merged += 1
        self.attach(self.jobs[task.id], operation, Stage.QUEUED if task.state is State.QUEUED else Stage.EXECUTING)
        self.queue.join(task, operation.name, priority, self.clock())
        self.pump()
        await self._store.write(Put(OPERATIONS, operation_row(operation)))

    def attach(self, job: Job, operation: Operation, stage: Stage) -> None:
        """Make the operation one of the job's."""
        self.operations[operation.name] = operation
        operation.task_id = job.task.id
        operation.stage = stage
        operation.metadata = job.progress or job.queued_metadata()
        operation.stdout_stream_name = job.streams.stdout_name
        operation.stderr_stream_name = job.streams.stderr_name
        job.operations[operation.name] = operation
        operation.changed()

    def pin(self, job: Job) -> None:
        """Keep a job's inputs from eviction for a while."""
        if self._pins is not None:
            roots = (job.digest, job.checked.command_digest)
            until = self.clock() + self.config.pin_seconds
            self.spawn(self._pins.pin(job.task.id, roots, (job.checked.input_root,), until), "pin")

    def end_job(self, job: Job, response: re_pb2.ExecuteResponse) -> asyncio.Future[None]:
        """Tell all operations of a job the end; the returned future ends when that is saved."""
        for operation in list(job.operations.values()):
            self.end_operation(operation, response)
        return self._forget(job)

    def _forget(self, job: Job) -> asyncio.Future[None]:
        self.jobs.pop(job.task.id, None)
        if job.input_check is not None:
            job.input_check.cancel()
        if self._pins is not None:
            self.spawn(self._pins.unpin(job.task.id), "unpin")
        return self._store.write(Delete(TASKS, job.task.id), Delete(LEASES, job.task.id))

    def end_operation(self, operation: Operation, response: re_pb2.ExecuteResponse) -> None:
        """Complete one operation; its job goes on for others. Ending twice does nothing."""
        if operation.done:
            return
        operation.stage, operation.response, operation.done_at = Stage.COMPLETED, response, self.clock()
        self.done_times.append(operation.done_at)
        if response.status.code:
            self.counters.failed += 1
        else:
            self.counters.completed += 1
        job = self.jobs.get(operation.task_id)
        if job is not None:
            job.operations.pop(operation.name, None)
        if operation.task_id:
            self._store.write(Put(OPERATIONS, operation_row(operation)))
        if operation.announced:
            self.remember(operation)
        operation.changed()
        for listener in self.on_completed:
            listener(operation)

    def remember(self, operation: Operation) -> None:
        """Keep an operation that has ended, for those who ask late."""
        self.operations.pop(operation.name, None)
        self.done[operation.name] = operation
        while len(self.done) > self.config.max_remembered:
            self.done.popitem(last=False)

    def _set_stage(self, job: Job, stage: Stage) -> None:
        for operation in job.operations.values():
            operation.stage = stage
            operation.changed()

    # -- workers ---------------------------------------------------------------------------------------------

    def worker_from_hello(self, hello: worker_pb2.Hello) -> Worker:
        """Return the worker that says this; InvalidInput when it makes no sense."""
        if not hello.worker_id:
            raise InvalidInput("hello.worker_id: is empty", field="hello.worker_id")
        if hello.slots < 1:
            raise InvalidInput(f"hello.slots: {hello.slots} is less than 1", field="hello.slots")
        offer = self.policy.offer(
            platform_to_properties(hello.platform), cpu_millis=hello.cpu_millis, memory_bytes=hello.memory_bytes
        )
        self.worker_hellos[hello.worker_id] = hello
        return Worker(hello.worker_id, offer, hello.slots, hello.cpu_millis, hello.memory_bytes)

    def connect_worker(self, hello: worker_pb2.Hello, session: WorkerSession) -> None:
        """Register a worker's stream and greet it. An older stream of the same worker is closed."""
        worker = self.worker_from_hello(hello)
        old = self._sessions.pop(hello.worker_id, None)
        if old is not None:
            old.close(Unavailable(f"worker {hello.worker_id} connected anew"))
        unknown = self.queue.connect(worker, set(hello.lease_ids), self.clock())
        self._sessions[hello.worker_id] = session
        welcome = worker_pb2.Welcome(
            heartbeat_seconds=self.config.queue.heartbeat_seconds,
            lease_timeout_seconds=self.config.queue.lease_timeout_seconds,
            unknown_lease_ids=unknown,
        )
        session.send(worker_pb2.SchedulerMessage(welcome=welcome))
        self._store.write(Put(WORKERS, {"id": hello.worker_id, "hello": hello.SerializeToString()}))
        log.info("worker=%s connected slots=%d leases=%d", hello.worker_id, hello.slots, len(hello.lease_ids))
        self.pump()

    def disconnect_worker(self, worker_id: str, session: WorkerSession) -> None:
        """Note that a worker's stream broke."""
        if self._sessions.get(worker_id) is session and not self.closed:
            del self._sessions[worker_id]
            self.queue.disconnect(worker_id, self.clock())
            log.info("worker=%s disconnected", worker_id)
            self.pump()

    def heard(self, worker_id: str, session: WorkerSession, message: worker_pb2.WorkerMessage, finish: Finish) -> None:
        """Act on a message of a worker that has said Hello; `finish` sees results through to the end."""
        kind = message.WhichOneof("message")
        if self._sessions.get(worker_id) is not session:
            return
        if kind == "finished":
            task = self.queue.finish(message.finished.lease_id, worker_id, self.clock())
            if task is not None:
                self.spawn(finish(self.jobs[task.id], worker_id, message.finished), "record")
            else:
                self.acknowledge(worker_id, message.finished.lease_id)
        elif kind == "heartbeat":
            self.queue.heartbeat(worker_id, message.heartbeat.lease_ids, self.clock())
        elif kind == "progress":
            self._progress(worker_id, message.progress)
        elif kind == "draining":
            self.queue.drain(worker_id)
        self.pump()

    def _progress(self, worker_id: str, progress: worker_pb2.Progress) -> None:
        self.queue.heartbeat(worker_id, (progress.lease_id,), self.clock())
        lease = self.queue.leases.get(progress.lease_id)
        job = self.jobs.get(lease.task.id) if lease is not None and lease.worker_id == worker_id else None
        if job is not None:
            # Told with the next message; not worth one of its own.
            job.progress = progress.metadata
            for operation in job.operations.values():
                operation.metadata = progress.metadata

    def acknowledge(self, worker_id: str, lease_id: str) -> None:
        """Let a worker forget what it finished."""
        self._send(worker_id, worker_pb2.SchedulerMessage(acknowledge=worker_pb2.Acknowledge(lease_id=lease_id)))

    def _send(self, worker_id: str, message: worker_pb2.SchedulerMessage) -> None:
        session = self._sessions.get(worker_id)
        if session is not None:
            session.send(message)

    # -- what the queue says ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Act on what the queue has decided, and on what has become due. Call after every change of it."""
        if self._timer_at is not None:
            late_seconds = asyncio.get_running_loop().time() - self._timer_at
            if late_seconds > STALL_SECONDS:
                # The process or machine was stopped: what workers said meanwhile is still in the sockets.
                self.queue.postpone(late_seconds)
        due = self.queue.expire(self.clock())
        while events := self.queue.take_events():
            for event in events:
                self._act(event)
            due = self.queue.expire(self.clock())
        self._arm(due)

    def _arm(self, due: float | None) -> None:
        if self._timer is not None:
            if self._timer_due == due and not self.closed:
                return
            self._timer.cancel()
        self._timer, self._timer_at = None, None
        if due is None or self.closed:
            return
        loop = asyncio.get_running_loop()
        self._timer_due = due
        self._timer_at = loop.time() + max(0.0, due - self.clock()) + 0.001
        self._timer = loop.call_at(self._timer_at, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.pump()

    def _act(self, event: Event) -> None:
        if isinstance(event, Assigned):
            self._assigned(event)
        elif isinstance(event, Requeued):
            self._requeued(event)
        elif isinstance(event, StopLease):
            self._send(event.worker_id, worker_pb2.SchedulerMessage(cancel=worker_pb2.Cancel(lease_id=event.lease_id)))
        elif isinstance(event, Abandoned):
            self._abandoned(event)
        elif isinstance(event, Dropped):
            self._forget(self.jobs[event.task.id])
        elif isinstance(event, Lost):
            self._fail(event.task, Unavailable(story(event.task)))
        elif isinstance(event, Refused):
            self._fail(event.task, self._refusal(self.jobs[event.task.id], event.unmatched))
        elif isinstance(event, WorkerDropped):
            self._worker_dropped(event)

    def _assigned(self, event: Assigned) -> None:
        job, lease = self.jobs[event.task.id], event.lease
        self._set_stage(job, Stage.EXECUTING)
        self._store.write(Put(LEASES, lease_row(job, lease.id, lease.worker_id)))
        self._send(lease.worker_id, assign_message(job, lease))

    def _requeued(self, event: Requeued) -> None:
        job = self.jobs[event.task.id]
        log.warning("action=%s is tried again: %s", job.digest, event.reason)
        self.counters.retried += 1
        job.progress = None
        self._set_stage(job, Stage.QUEUED)
        self._store.write(Put(LEASES, lease_row(job)))

    def _abandoned(self, event: Abandoned) -> None:
        operation = self.operations.get(event.operation)
        if operation is not None:
            error = Cancelled("the operation was cancelled: no client waited for it")
            self.end_operation(operation, status_response(status_from_error(error)))

    def _fail(self, task: Task, error: TvixError) -> None:
        job = self.jobs[task.id]
        log.info("action=%s failed: %s", job.digest, error)
        self.end_job(job, status_response(status_from_error(error)))

    def _refusal(self, job: Job, unmatched: Sequence[Property]) -> TvixError:
        if not unmatched:
            return FailedPrecondition("no worker is connected: start one, or look why those there were went away")
        wanted = {name for name, _ in unmatched}
        shown = [f"{name}={value}" for name, value in job.checked.properties if self.policy.key(name) in wanted]
        return FailedPrecondition(f"no worker has the platform properties asked for: {', '.join(shown)}")

    def _worker_dropped(self, event: WorkerDropped) -> None:
        log.warning("worker=%s dropped: %s", event.worker_id, event.reason)
        session = self._sessions.pop(event.worker_id, None)
        if session is not None:
            session.close(Unavailable(f"worker {event.worker_id} was dropped: {event.reason}", retry_seconds=1))


def story(task: Task, last: str = "") -> str:
    """Return how often and where a task was lost, for people."""
    failures = [*task.failures, *([last] if last else [])]
    return f"the action was tried {task.attempts} time(s) and lost each time: {'; '.join(failures)}"
