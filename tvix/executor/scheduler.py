"""The scheduler: what the state machine of build_queue.py needs to meet the world.

An operation's way:

    CACHE_CHECK  read the Action; look the result up
    QUEUED       checked (admission.py), in the queue, saved; input blobs pinned against eviction
    EXECUTING    leased to a worker
    COMPLETED    outputs seen in the CAS, result written to the action cache, then told to everybody

All methods run on one event loop. After each change of the queue `_pump` acts on its events; one timer
wakes the queue when something becomes due. Work that outlives a call (an admission a client left, the check
of a large input tree, the recording of a result) runs in tasks owned by the scheduler, awaited by `close`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tvix.cas.digest import Digest, digest_to_proto, function_to_wire, make_digest
from tvix.cas.interfaces import ActionCache, ActionKey, BlobStore, PinningStore
from tvix.cas.resource_names import check_instance_name
from tvix.cas.tree import TreeWalker
from tvix.errors import (
    Cancelled,
    FailedPrecondition,
    Internal,
    InvalidInput,
    MissingBlobs,
    NotFound,
    TvixError,
    Unavailable,
)
from tvix.executor.admission import CheckedAction, Timeouts, check_action, parse_action, restore_checked
from tvix.executor.build_queue import BuildQueue
from tvix.executor.interfaces import Execution, Executor, Stage
from tvix.executor.operation import Operation
from tvix.executor.operations_store import (
    LEASES,
    OPERATIONS,
    TASKS,
    WORKERS,
    Delete,
    OperationsStore,
    Put,
    Row,
    now_seconds,
)
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
from tvix.executor.results import is_cacheable, missing_outputs, normalize, status_response
from tvix.rpc import error_from_status, status_from_error

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Settings of the scheduler; times in seconds."""

    queue: QueueConfig = field(default_factory=QueueConfig)
    timeouts: Timeouts = field(default_factory=Timeouts)
    min_priority: int = -(2**31)
    max_priority: int = 2**31 - 1
    retention_seconds: float = 900.0
    """How long a finished operation can still be waited for."""
    max_remembered: int = 1000
    """Finished operations kept in memory; the others are read from the database."""
    patience_seconds: float = 0.05
    """How long a client waits for its first message, and an action for the check of its inputs."""
    check_inputs: bool = True
    """Whether all input blobs are looked up before (large trees: while) an action runs."""
    pin_seconds: float = 600.0
    housekeeping_seconds: float = 60.0


class WorkerSession(Protocol):
    """A worker's open stream."""

    def send(self, message: worker_pb2.SchedulerMessage) -> None:
        """Queue a message for the worker."""

    def close(self, error: TvixError) -> None:
        """End the stream."""


class LogStreams(Protocol):
    """Makes streams into which a worker writes output while clients read it."""

    async def create(self, parent: str) -> tuple[str, str]:
        """Return (name for readers, secret resource name for the writer)."""


@dataclass(slots=True, eq=False)
class _Job:
    """What the scheduler knows of a queue task."""

    task: Task
    digest: Digest
    execution: Execution
    checked: CheckedAction
    overrides: tuple[Property, ...]
    queued_at: float
    streams: tuple[str, str, str, str] = ("", "", "", "")
    """Names of stdout and stderr for readers, then for the writer."""
    operations: dict[str, Operation] = field(default_factory=dict)
    input_check: asyncio.Task[None] | None = None
    progress: re_pb2.ExecutedActionMetadata | None = None

    def queued_metadata(self) -> re_pb2.ExecutedActionMetadata:
        metadata = re_pb2.ExecutedActionMetadata()
        metadata.queued_timestamp.FromNanoseconds(int(self.queued_at * 1e9))
        return metadata


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


class Scheduler(Executor):
    """Runs actions on workers that connect. `start` first, `close` last; stores are the caller's."""

    def __init__(
        self,
        blobs: BlobStore,
        action_cache: ActionCache,
        store: OperationsStore,
        config: SchedulerConfig | None = None,
        *,
        pins: PinningStore | None = None,
        policy: PlatformPolicy | None = None,
        streams: LogStreams | None = None,
        clock: Callable[[], float] = now_seconds,
    ) -> None:
        self.config = config or SchedulerConfig()
        self.clock = clock
        self.policy = policy or PlatformPolicy()
        self.queue = BuildQueue(self.config.queue, clock(), lambda: uuid.uuid4().hex)
        self.counters = Counters()
        self.on_completed: list[Callable[[Operation, re_pb2.ExecuteResponse, float], None]] = []
        """Called with (operation, response, seconds since it was made) at each end."""
        self._blobs = blobs
        self._cache = action_cache
        self._store = store
        self._pins = pins
        self._streams = streams
        self._trees = TreeWalker(blobs)
        self._jobs: dict[str, _Job] = {}
        self._operations: dict[str, Operation] = {}
        self._done: OrderedDict[str, Operation] = OrderedDict()
        self._sessions: dict[str, WorkerSession] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r}>"

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what was in flight when the last process ended, and begin."""
        saved = await self._store.load()
        now = self.clock()
        for row in saved.workers:
            hello = worker_pb2.Hello.FromString(row["hello"])
            self.queue.remember(self._worker_from_hello(hello), now)
        leases = {row["task_id"]: row for row in saved.leases}
        operations: dict[str, list[Row]] = {}
        for row in saved.operations:
            operations.setdefault(row["task_id"], []).append(row)
        for row in saved.tasks:
            try:
                self._restore(row, leases.get(row["id"]), operations[row["id"]], now)
            except (KeyError, TvixError) as error:
                log.warning("task=%s is not taken over: %r", row["id"], error)
                self._store.write(Delete(TASKS, row["id"]), Delete(LEASES, row["id"]))
            else:
                del operations[row["id"]]
        for orphans in operations.values():
            self._store.write(*(Delete(OPERATIONS, row["name"]) for row in orphans))
        if self._jobs:
            log.info("restored tasks=%d leases=%d", len(self._jobs), len(self.queue.leases))
        self._pump()
        self._spawn(self._housekeeping(), "housekeeping")

    def _restore(self, row: Row, lease: Row | None, operations: list[Row], now: float) -> None:
        digest = make_digest(row["digest_function"], row["hash"], row["size_bytes"])
        overrides = tuple(Property(*pair) for pair in json.loads(row["overrides"]))
        checked = restore_checked(digest, row["action"], row["command"], self.config.timeouts, ())
        execution = Execution(
            digest,
            row["instance_name"],
            row["skip_cache_lookup"],
            row["priority"],
            re_pb2.RequestMetadata.FromString(row["request_metadata"]),
        )
        task = self._new_task(row["id"], execution, checked, overrides, row["queued_at"])
        if lease is not None:
            task.attempts = lease["attempts"]
            task.failures = json.loads(lease["failures"])
            task.failed_on = {failure.partition(": ")[0] for failure in task.failures}
        job = _Job(task, digest, execution, checked, overrides, row["queued_at"], tuple(json.loads(row["streams"])))
        self._jobs[task.id] = job
        stage = Stage.EXECUTING if lease and lease["lease_id"] else Stage.QUEUED
        for saved in operations:
            operation = Operation(saved["name"], saved["instance_name"], digest, saved["created_at"], announced=True)
            self._operations[operation.name] = operation
            self._attach(job, operation, stage)
        held = (lease["lease_id"], lease["worker_id"]) if lease and lease["lease_id"] else None
        self.queue.restore(task, job.operations, held, now)
        self._pin(job)

    async def close(self) -> None:
        """Stop. Queued and running operations stay saved for the next start."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for session in list(self._sessions.values()):
            session.close(Unavailable("the scheduler is shutting down", retry_seconds=1))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, TvixError):
            log.error("task=%s failed", task.get_name(), exc_info=error)

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(self.config.housekeeping_seconds)
            for job in list(self._jobs.values()):
                self._pin(job)
            horizon = self.clock() - self.config.retention_seconds
            while self._done and (next(iter(self._done.values())).done_at or 0) < horizon:
                self._done.popitem(last=False)
            try:
                await self._store.delete_done_before(horizon)
            except TvixError as error:
                log.warning("deleting old operations failed: %s", error)

    # -- what clients want -----------------------------------------------------------------------------------

    async def execute(self, execution: Execution, report: Callable[[Stage], None]) -> re_pb2.ExecuteResponse:
        operation = await self.begin(execution)
        try:
            async with aclosing(self.watch(operation, 3600)) as states:
                async for state in states:
                    report(state.stage)
        except asyncio.CancelledError:
            await self.cancel(operation.name)
            raise
        assert operation.response is not None
        return operation.response

    async def begin(self, execution: Execution, overrides: Sequence[Property] = ()) -> Operation:
        """Start an operation and return it; it is saved unless its stage is still CACHE_CHECK or it is done.

        Raises what is wrong with the request or the action when that shows at once; what shows later ends
        the operation. An operation that nobody watches is dropped after a while.
        """
        self._check_request(execution)
        prefix = f"{execution.instance_name}/" if execution.instance_name else ""
        name = f"{prefix}operations/{uuid.uuid4()}"
        operation = Operation(name, execution.instance_name, execution.action_digest, self.clock())
        self.counters.submitted += 1
        admission = self._spawn(self._admit(operation, execution, tuple(overrides)), "admission")
        await asyncio.wait((admission,), timeout=self.config.patience_seconds)
        if admission.done() and not admission.cancelled():
            admission.result()
        operation.announced = True
        self._operations.setdefault(name, operation)
        if operation.done:
            self._remember(operation)
        return operation

    def _check_request(self, execution: Execution) -> None:
        check_instance_name(execution.instance_name)
        low, high = self.config.min_priority, self.config.max_priority
        if not low <= execution.priority <= high:
            message = f"execution_policy.priority: {execution.priority} is outside {low}…{high}"
            raise InvalidInput(message, field="execution_policy.priority")
        if self._closed:
            raise Unavailable("the scheduler is shutting down", retry_seconds=1)

    async def _admit(self, operation: Operation, execution: Execution, overrides: tuple[Property, ...]) -> None:
        try:
            if not await self._join(operation, execution, overrides):
                await self._submit(operation, execution, overrides)
        except TvixError as error:
            if not operation.announced:
                raise
            self._end_operation(operation, status_response(status_from_error(error)))
        except Exception as error:
            log.exception("admission of action=%s failed", execution.action_digest)
            if not operation.announced:
                raise
            self._end_operation(operation, status_response(status_from_error(error)))

    async def _join(self, operation: Operation, execution: Execution, overrides: tuple[Property, ...]) -> bool:
        """Attach the operation to an equal task in flight, if there is one."""
        key = _merge_key(execution, overrides)
        task = self.queue.find(key) if key is not None else None
        if task is None:
            return False
        job = self._jobs[task.id]
        self.counters.merged += 1
        stage = Stage.QUEUED if task.state is State.QUEUED else Stage.EXECUTING
        self._operations[operation.name] = operation
        self._attach(job, operation, stage)
        self.queue.join(task, operation.name, execution.priority, self.clock())
        self._pump()
        await self._store.write(Put(OPERATIONS, _operation_row(operation)))
        return True

    async def _submit(self, operation: Operation, execution: Execution, overrides: tuple[Property, ...]) -> None:
        digest = execution.action_digest
        data = (await self._blobs.get_many([digest]))[0]
        do_not_cache = data is not None and parse_action(data, digest).do_not_cache
        if not execution.skip_cache_lookup and not do_not_cache:
            result = await self._cache.get(ActionKey(execution.instance_name, digest))
            if result is not None:
                self.counters.cache_hits += 1
                self._end_operation(operation, re_pb2.ExecuteResponse(result=result, cached_result=True))
                return
            self.counters.cache_misses += 1
        if data is None:
            raise MissingBlobs([digest])
        checked = await check_action(self._blobs, digest, data, self.config.timeouts, overrides)
        check = await self._check_inputs(digest, checked)
        streams = await self._make_streams(execution)
        # Meanwhile the client may have cancelled, or somebody submitted the same.
        if operation.done or await self._join(operation, execution, overrides):
            return
        now = self.clock()
        task = self._new_task(uuid.uuid4().hex, execution, checked, overrides, now)
        job = _Job(task, digest, execution, checked, overrides, now, streams, input_check=check)
        self._jobs[task.id] = job
        self._operations[operation.name] = operation
        self._attach(job, operation, Stage.QUEUED)
        if check is not None:
            check.add_done_callback(lambda done: self._inputs_checked(job, done))
        self._pin(job)
        self.queue.submit(task, operation.name, now)
        saved = self._store.write(Put(TASKS, _task_row(job)), Put(OPERATIONS, _operation_row(operation)))
        self._pump()
        await saved

    def _new_task(
        self, task_id: str, execution: Execution, checked: CheckedAction, overrides: Sequence[Property], now: float
    ) -> Task:
        metadata = execution.request_metadata
        return Task(
            task_id,
            self.policy.requirements(checked.properties),
            None if checked.action.do_not_cache else _merge_key(execution, overrides),
            execution.priority,
            metadata.correlated_invocations_id or metadata.tool_invocation_id,
            now,
        )

    async def _make_streams(self, execution: Execution) -> tuple[str, str, str, str]:
        if self._streams is None:
            return ("", "", "", "")
        stdout_name, stdout_write = await self._streams.create(execution.instance_name)
        stderr_name, stderr_write = await self._streams.create(execution.instance_name)
        return stdout_name, stderr_name, stdout_write, stderr_write

    async def _check_inputs(self, digest: Digest, checked: CheckedAction) -> asyncio.Task[None] | None:
        """Look all input blobs up; when that takes long, return the task that goes on with it."""
        if not self.config.check_inputs:
            return None
        check = self._spawn(self._require_inputs(digest, checked), "input check")
        await asyncio.wait((check,), timeout=self.config.patience_seconds)
        if not check.done():
            return check
        check.result()
        return None

    async def _require_inputs(self, digest: Digest, checked: CheckedAction) -> None:
        missing = await self._trees.missing_inputs((digest, checked.command_digest), (checked.input_root,))
        if missing:
            raise MissingBlobs(missing)

    def _inputs_checked(self, job: _Job, check: asyncio.Task[None]) -> None:
        job.input_check = None
        if check.cancelled() or (error := check.exception()) is None:
            return
        if job.task.state in (State.FINISHING, State.GONE):
            return
        log.info("action=%s stopped: %s", job.digest, error)
        self.queue.stop(job.task, self.clock())
        self._end_job(job, status_response(status_from_error(error)))
        self._pump()

    def _attach(self, job: _Job, operation: Operation, stage: Stage) -> None:
        operation.task_id = job.task.id
        operation.stage = stage
        operation.metadata = job.progress or job.queued_metadata()
        operation.stdout_stream_name, operation.stderr_stream_name = job.streams[:2]
        job.operations[operation.name] = operation
        operation.changed()

    async def get(self, name: str) -> Operation:
        """Return an operation, in flight or finished not too long ago. Raises NotFound."""
        operation = self._operations.get(name) or self._done.get(name)
        if operation is None:
            row = await self._store.get(name)
            if row is None or row["done_at"] is None:
                raise NotFound(f"operation {name!r} is not known here; it may have ended long ago: execute again")
            operation = operation_from_row(row)
        return operation

    async def watch(self, operation: Operation, period_seconds: float) -> AsyncGenerator[Operation, None]:
        """Yield the operation now, at each change, and at least each period, until it has ended.

        Each yield is the same object as it is then. Keeps the operation alive meanwhile. Use under `aclosing`.
        """
        self.queue.watch(operation.name)
        try:
            while True:
                version = operation.version
                yield operation
                if operation.done:
                    return
                await operation.wait_changed(version, period_seconds)
        finally:
            self.queue.unwatch(operation.name, self.clock())
            self._arm()

    async def wait_done(self, operation: Operation, timeout_seconds: float | None) -> None:
        """Return when the operation has ended or the time is up (None: never)."""
        try:
            async with asyncio.timeout(timeout_seconds), aclosing(self.watch(operation, 3600)) as states:
                async for _ in states:
                    pass
        except TimeoutError:
            pass

    async def cancel(self, name: str) -> None:
        """End an operation as CANCELLED, and its run if no other operation wants it. Raises NotFound; a
        finished operation stays as it is.
        """
        operation = await self.get(name)
        if not operation.done:
            self.queue.cancel_operation(name, self.clock())
            self.counters.cancelled += 1
            self._end_operation(operation, status_response(status_from_error(Cancelled("the operation was cancelled"))))
            self._pump()

    async def delete(self, name: str) -> None:
        """Forget a finished operation; one in flight just loses interest in it and is cancelled. Raises NotFound."""
        await self.cancel(name)
        self._done.pop(name, None)
        await self._store.write(Delete(OPERATIONS, name))

    def operations_in_flight(self) -> list[Operation]:
        """Return the operations that have not ended."""
        return [operation for operation in self._operations.values() if not operation.done]

    async def done_page(self, prefix: str, after: str, limit: int) -> list[Operation]:
        """Return finished operations in the order of their names, those after `after`."""
        return [operation_from_row(row) for row in await self._store.done_page(prefix, after, limit)]

    # -- what workers say ------------------------------------------------------------------------------------

    def connect_worker(self, hello: worker_pb2.Hello, session: WorkerSession) -> None:
        """Register a worker's stream and greet it. An older stream of the same worker is closed."""
        if not hello.worker_id:
            raise InvalidInput("hello.worker_id: is empty", field="hello.worker_id")
        if hello.slots < 1:
            raise InvalidInput(f"hello.slots: {hello.slots} is less than 1", field="hello.slots")
        worker = self._worker_from_hello(hello)
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
        bare = worker_pb2.Hello()
        bare.CopyFrom(hello)
        del bare.lease_ids[:]
        self._store.write(Put(WORKERS, {"id": hello.worker_id, "hello": bare.SerializeToString()}))
        log.info("worker=%s connected slots=%d leases=%d", hello.worker_id, hello.slots, len(hello.lease_ids))
        self._pump()

    def _worker_from_hello(self, hello: worker_pb2.Hello) -> Worker:
        offer = self.policy.offer(
            platform_to_properties(hello.platform), cpu_millis=hello.cpu_millis, memory_bytes=hello.memory_bytes
        )
        return Worker(hello.worker_id, offer, hello.slots, hello.cpu_millis, hello.memory_bytes)

    def disconnect_worker(self, worker_id: str, session: WorkerSession) -> None:
        """Note that a worker's stream broke."""
        if self._sessions.get(worker_id) is not session:
            return
        del self._sessions[worker_id]
        self.queue.disconnect(worker_id, self.clock())
        log.info("worker=%s disconnected", worker_id)
        self._pump()

    def drain_worker(self, worker_id: str) -> None:
        """Give a worker no more work. Raises NotFound."""
        if not self.queue.drain(worker_id):
            raise NotFound(f"worker {worker_id!r} is not connected")

    def heard(self, worker_id: str, session: WorkerSession, message: worker_pb2.WorkerMessage) -> None:
        """Act on a message of a worker that has said Hello."""
        kind = message.WhichOneof("message")
        if kind == "finished":
            self._finished(worker_id, session, message.finished)
        elif kind == "heartbeat":
            self.queue.heartbeat(worker_id, message.heartbeat.lease_ids, self.clock())
        elif kind == "progress":
            self._progress(worker_id, message.progress)
        elif kind == "draining":
            self.queue.drain(worker_id)
        self._pump()

    def _progress(self, worker_id: str, progress: worker_pb2.Progress) -> None:
        self.queue.heartbeat(worker_id, (progress.lease_id,), self.clock())
        lease = self.queue.leases.get(progress.lease_id)
        job = self._jobs.get(lease.task.id) if lease is not None else None
        if job is not None:
            job.progress = progress.metadata
            for operation in job.operations.values():
                operation.metadata = progress.metadata

    def _finished(self, worker_id: str, session: WorkerSession, finished: worker_pb2.Finished) -> None:
        task = self.queue.finish(finished.lease_id, worker_id, self.clock())
        if task is None:
            session.send(_acknowledge(finished.lease_id))
            return
        self._spawn(self._record(self._jobs[task.id], worker_id, finished), "record")

    async def _record(self, job: _Job, worker_id: str, finished: worker_pb2.Finished) -> None:
        """See what a worker made of a task through to the end, then let the worker forget it."""
        response = finished.response
        try:
            failure = await self._settle(job, worker_id, finished)
        except Exception as error:
            log.exception("recording of action=%s failed", job.digest)
            response, failure = status_response(status_from_error(error)), ""
        if failure and self.queue.retry(job.task, worker_id, failure, self.clock()):
            log.warning("action=%s worker=%s to be tried again: %s", job.digest, worker_id, failure)
            self._pump()
        else:
            if failure and not response.status.code:
                response = status_response(status_from_error(Internal(_story(job.task, failure))))
            saved = self._end_job(job, response)
            self.queue.complete(job.task)
            self._pump()
            await saved
        session = self._sessions.get(worker_id)
        if session is not None:
            session.send(_acknowledge(finished.lease_id))

    async def _settle(self, job: _Job, worker_id: str, finished: worker_pb2.Finished) -> str:
        """Complete the response and cache it. Returns why another worker should try, empty if none should."""
        response = finished.response
        normalize(response, worker_id, job.queued_metadata())
        if finished.retry:
            return response.status.message or response.message or "the worker gave up without a reason"
        if response.status.code:
            if isinstance(error_from_status(response.status), MissingBlobs):
                await self._name_all_missing(job, response)
            return ""
        missing = await missing_outputs(response.result, job.digest.function, self._blobs, self._trees)
        if missing:
            return f"outputs were not uploaded: {MissingBlobs(missing)}"
        if is_cacheable(response, job.checked.action):
            await self._cache.put(ActionKey(job.execution.instance_name, job.digest), response.result)
        return ""

    async def _name_all_missing(self, job: _Job, response: re_pb2.ExecuteResponse) -> None:
        """Add to a worker's missing blobs those it has not come across."""
        error = error_from_status(response.status)
        assert isinstance(error, MissingBlobs)
        roots = (job.digest, job.checked.command_digest)
        found = await self._trees.missing_inputs(roots, (job.checked.input_root,))
        response.status.CopyFrom(status_from_error(MissingBlobs({*error.digests, *found})))

    # -- what the queue says ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what has become due by the clock."""
        self.queue.expire(self.clock())
        self._pump()

    def _pump(self) -> None:
        while events := self.queue.take_events():
            for event in events:
                self._act(event)
        self._arm()

    def _act(self, event: Event) -> None:
        if isinstance(event, Assigned):
            self._assigned(event)
        elif isinstance(event, Requeued):
            self._requeued(event)
        elif isinstance(event, StopLease):
            self._send(event.worker_id, worker_pb2.SchedulerMessage(cancel=worker_pb2.Cancel(lease_id=event.lease_id)))
        elif isinstance(event, Abandoned):
            operation = self._operations.get(event.operation)
            if operation is not None and not operation.done:
                error = Cancelled("the operation was cancelled: no client waited for it")
                self._end_operation(operation, status_response(status_from_error(error)))
        elif isinstance(event, Dropped):
            self._forget(self._jobs[event.task.id])
        elif isinstance(event, Lost):
            self._end_job(
                self._jobs[event.task.id], status_response(status_from_error(Unavailable(_story(event.task))))
            )
        elif isinstance(event, Refused):
            self._refused(event)
        elif isinstance(event, WorkerDropped):
            self._worker_dropped(event)

    def _assigned(self, event: Assigned) -> None:
        job, lease = self._jobs[event.task.id], event.lease
        self._set_stage(job, Stage.EXECUTING)
        self._store.write(Put(LEASES, _lease_row(job, lease.id, lease.worker_id)))
        assign = worker_pb2.Assign(
            lease_id=lease.id,
            instance_name=job.execution.instance_name,
            digest_function=function_to_wire(job.digest.function),
            action_digest=digest_to_proto(job.digest),
            action=job.checked.action_bytes,
            command=job.checked.command_bytes,
            metadata=job.queued_metadata(),
            stdout_write_name=job.streams[2],
            stderr_write_name=job.streams[3],
            attempt=lease.attempt,
            request_metadata=job.execution.request_metadata,
            timeout_seconds=job.checked.timeout_seconds,
        )
        self._send(lease.worker_id, worker_pb2.SchedulerMessage(assign=assign))

    def _requeued(self, event: Requeued) -> None:
        job = self._jobs[event.task.id]
        self.counters.retried += 1
        job.progress = None
        self._set_stage(job, Stage.QUEUED)
        self._store.write(Put(LEASES, _lease_row(job, "", "")))

    def _refused(self, event: Refused) -> None:
        job = self._jobs[event.task.id]
        self._end_job(job, status_response(status_from_error(self._refusal(job, event.unmatched))))

    def _refusal(self, job: _Job, unmatched: Sequence[Property]) -> TvixError:
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

    def _send(self, worker_id: str, message: worker_pb2.SchedulerMessage) -> None:
        session = self._sessions.get(worker_id)
        if session is not None:
            session.send(message)

    def _arm(self) -> None:
        """Set the timer for the next thing that becomes due; early is harmless."""
        now = self.clock()
        due = self.queue.expire(now)
        if self.queue.has_events():
            asyncio.get_running_loop().call_soon(self._pump)
        if due is None or self._closed or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now) + 0.001, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._pump()

    # -- ends ------------------------------------------------------------------------------------------------

    def _set_stage(self, job: _Job, stage: Stage) -> None:
        for operation in job.operations.values():
            operation.stage = stage
            operation.metadata = job.progress or operation.metadata
            operation.changed()

    def _end_job(self, job: _Job, response: re_pb2.ExecuteResponse) -> asyncio.Future[None]:
        """Tell all operations of a task the end; the future ends when that is saved."""
        for operation in list(job.operations.values()):
            self._end_operation(operation, response)
        return self._forget(job)

    def _forget(self, job: _Job) -> asyncio.Future[None]:
        self._jobs.pop(job.task.id, None)
        if job.input_check is not None:
            job.input_check.cancel()
        if self._pins is not None:
            self._spawn(self._pins.unpin(job.task.id), "unpin")
        return self._store.write(Delete(TASKS, job.task.id), Delete(LEASES, job.task.id))

    def _end_operation(self, operation: Operation, response: re_pb2.ExecuteResponse) -> None:
        if operation.done:
            return
        now = self.clock()
        operation.stage, operation.response, operation.done_at = Stage.COMPLETED, response, now
        if response.status.code:
            self.counters.failed += 1
        else:
            self.counters.completed += 1
        job = self._jobs.get(operation.task_id)
        if job is not None:
            job.operations.pop(operation.name, None)
        if operation.task_id:
            self._store.write(Put(OPERATIONS, _operation_row(operation)))
        if operation.announced:
            self._remember(operation)
        operation.changed()
        for listener in self.on_completed:
            listener(operation, response, now - operation.created_at)

    def _remember(self, operation: Operation) -> None:
        self._operations.pop(operation.name, None)
        self._done[operation.name] = operation
        while len(self._done) > self.config.max_remembered:
            self._done.popitem(last=False)

    def _pin(self, job: _Job) -> None:
        if self._pins is not None:
            roots = (job.digest, job.checked.command_digest)
            until = self.clock() + self.config.pin_seconds
            self._spawn(self._pins.pin(job.task.id, roots, (job.checked.input_root,), until), "pin")


def _merge_key(execution: Execution, overrides: Sequence[Property]) -> ActionKey | None:
    return None if overrides else ActionKey(execution.instance_name, execution.action_digest)


def _acknowledge(lease_id: str) -> worker_pb2.SchedulerMessage:
    return worker_pb2.SchedulerMessage(acknowledge=worker_pb2.Acknowledge(lease_id=lease_id))


def _story(task: Task, last: str = "") -> str:
    failures = [*task.failures, *([last] if last else [])]
    return f"the action was tried {task.attempts} time(s) and each was lost: {'; '.join(failures)}"


def _task_row(job: _Job) -> Row:
    return {
        "id": job.task.id,
        "instance_name": job.execution.instance_name,
        "digest_function": job.digest.function,
        "hash": job.digest.hash,
        "size_bytes": job.digest.size_bytes,
        "priority": job.execution.priority,
        "queued_at": job.queued_at,
        "skip_cache_lookup": job.execution.skip_cache_lookup,
        "overrides": json.dumps(job.overrides),
        "request_metadata": job.execution.request_metadata.SerializeToString(),
        "action": job.checked.action_bytes,
        "command": job.checked.command_bytes,
        "streams": json.dumps(job.streams),
    }


def _lease_row(job: _Job, lease_id: str, worker_id: str) -> Row:
    return {
        "task_id": job.task.id,
        "lease_id": lease_id,
        "worker_id": worker_id,
        "attempts": job.task.attempts,
        "failures": json.dumps(job.task.failures),
    }


def _operation_row(operation: Operation) -> Row:
    digest = operation.action_digest
    return {
        "name": operation.name,
        "task_id": operation.task_id,
        "instance_name": operation.instance_name,
        "digest_function": digest.function,
        "hash": digest.hash,
        "size_bytes": digest.size_bytes,
        "created_at": operation.created_at,
        "done_at": operation.done_at,
        "response": None if operation.response is None else operation.response.SerializeToString(),
    }


def operation_from_row(row: Row) -> Operation:
    """Return a finished operation as it was saved."""
    return Operation(
        row["name"],
        row["instance_name"],
        make_digest(row["digest_function"], row["hash"], row["size_bytes"]),
        row["created_at"],
        row["task_id"],
        Stage.COMPLETED,
        re_pb2.ExecuteResponse.FromString(row["response"]),
        done_at=row["done_at"],
        announced=True,
    )
