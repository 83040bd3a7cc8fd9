"""The scheduler: runs actions on workers that connect to it. What clients ask for; see also dispatcher.py.

An operation's way:

    CACHE_CHECK  read the Action; look the result up
    QUEUED       checked (admission.py), saved, in the queue; input blobs pinned against eviction
    EXECUTING    leased to a worker
    COMPLETED    outputs seen in the CAS, result written to the action cache, then told to everybody

All runs on one event loop. Work that outlives a call (an admission whose client left, the check of a large
input tree, the recording of a result) runs in tasks owned by the dispatcher, awaited by `close`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tvix.cas.digest import Digest
from tvix.cas.interfaces import ActionCache, ActionKey, BlobStore, PinningStore
from tvix.cas.resource_names import check_instance_name
from tvix.cas.tree import TreeWalker
from tvix.errors import Cancelled, InvalidInput, MissingBlobs, NotFound, TvixError, Unavailable
from tvix.executor.admission import CheckedAction, Timeouts, check_action, parse_action
from tvix.executor.dispatcher import Dispatcher, DispatcherConfig, WorkerSession
from tvix.executor.interfaces import Execution, Executor, Stage
from tvix.executor.job import Job, Streams, operation_from_row, task_from_row
from tvix.executor.operation import Operation
from tvix.executor.operations_store import (
    LEASES,
    OPERATIONS,
    TASKS,
    WORKERS,
    Delete,
    OperationsStore,
    Row,
    now_seconds,
)
from tvix.executor.platform_policy import PlatformPolicy, Property
from tvix.executor.queue_model import QueueConfig, State, Task
from tvix.executor.recorder import Recorder
from tvix.executor.results import status_response
from tvix.rpc import status_from_error

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


class LogStreams(Protocol):
    """Makes streams into which a worker writes output while clients read it."""

    async def create(self, parent: str) -> tuple[str, str]:
        """Return (name for readers, secret resource name for the writer)."""


class Scheduler(Executor):
    """Runs actions on workers. `start` first, `close` last; the stores stay the caller's."""

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
        self.started_at = clock()
        self._policy = policy or PlatformPolicy()
        self._blobs = blobs
        self._cache = action_cache
        self._store = store
        self._streams = streams
        self._trees = TreeWalker(blobs)
        dispatching = DispatcherConfig(self.config.queue, self.config.max_remembered, self.config.pin_seconds)
        self.dispatcher = Dispatcher(dispatching, store, self._policy, pins, clock)
        self._recorder = Recorder(self.dispatcher, blobs, action_cache, self._trees)

    def __repr__(self) -> str:
        return f"<Scheduler {self.dispatcher.queue!r}>"

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what was in flight when the last process ended, and begin."""
        saved = await self._store.load()
        now = self.clock()
        for row in saved.workers:
            hello = worker_pb2.Hello.FromString(row["hello"])
            self.dispatcher.queue.remember(self.dispatcher.worker_from_hello(hello), now)
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
        self.dispatcher.pump()
        self.dispatcher.spawn(self._housekeeping(), "housekeeping")
        log.info("scheduler started tasks=%d", len(saved.tasks))

    def _restore(self, row: Row, lease: Row | None, operations: list[Row], now: float) -> None:
        saved = task_from_row(row, self.config.timeouts)
        task = self._new_task(row["id"], saved.execution, saved.checked, saved.overrides, row["queued_at"])
        if lease is not None:
            task.attempts = lease["attempts"]
            task.failures = json.loads(lease["failures"])
            task.failed_on = {failure.partition(": ")[0] for failure in task.failures}
        digest = saved.execution.action_digest
        job = Job(task, digest, saved.execution, saved.checked, saved.overrides, row["queued_at"], saved.streams)
        self.dispatcher.jobs[task.id] = job
        held = (lease["lease_id"], lease["worker_id"]) if lease is not None and lease["lease_id"] else None
        for known in operations:
            operation = Operation(known["name"], known["instance_name"], digest, known["created_at"], announced=True)
            self.dispatcher.attach(job, operation, Stage.EXECUTING if held else Stage.QUEUED)
        self.dispatcher.queue.restore(task, job.operations, held, now)
        self.dispatcher.pin(job)

    async def close(self) -> None:
        """Stop. Queued and running operations stay saved for the next start."""
        await self.dispatcher.close()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(self.config.housekeeping_seconds)
            await self.clean_up()

    async def clean_up(self) -> None:
        """Renew pins, forget what ended long ago. Done by itself every `housekeeping_seconds`."""
        dispatcher = self.dispatcher
        for job in list(dispatcher.jobs.values()):
            dispatcher.pin(job)
        for worker_id in [known for known in dispatcher.worker_hellos if known not in dispatcher.queue.workers]:
            del dispatcher.worker_hellos[worker_id]
            self._store.write(Delete(WORKERS, worker_id))
        horizon = self.clock() - self.config.retention_seconds
        while dispatcher.done and (next(iter(dispatcher.done.values())).done_at or 0) < horizon:
            dispatcher.done.popitem(last=False)
        try:
            await self._store.delete_done_before(horizon)
        except TvixError as error:
            log.warning("deleting old operations failed: %s", error)

    # -- beginning -------------------------------------------------------------------------------------------

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
        the operation. An operation that nobody watches is dropped after a while. `overrides` replace
        platform properties of the action.
        """
        self._check_request(execution)
        prefix = f"{execution.instance_name}/" if execution.instance_name else ""
        name = f"{prefix}operations/{uuid.uuid4()}"
        operation = Operation(name, execution.instance_name, execution.action_digest, self.clock())
        self.dispatcher.counters.submitted += 1
        admission = self.dispatcher.spawn(self._admit(operation, execution, tuple(overrides)), "admission")
        try:
            await asyncio.wait((admission,), timeout=self.config.patience_seconds)
        except asyncio.CancelledError:
            # Nobody has seen the name, so nobody can come back for it.
            admission.cancel()
            self._end_as_cancelled(operation)
            raise
        if admission.done() and not admission.cancelled():
            admission.result()
        operation.announced = True
        if operation.done:
            self.dispatcher.remember(operation)
        else:
            self.dispatcher.operations.setdefault(name, operation)
        return operation

    def _check_request(self, execution: Execution) -> None:
        check_instance_name(execution.instance_name)
        low, high = self.config.min_priority, self.config.max_priority
        if not low <= execution.priority <= high:
            message = f"execution_policy.priority: {execution.priority} is outside {low}…{high}"
            raise InvalidInput(message, field="execution_policy.priority")
        if self.dispatcher.closed:
            raise Unavailable("the scheduler is shutting down", retry_seconds=1)

    async def _admit(self, operation: Operation, execution: Execution, overrides: tuple[Property, ...]) -> None:
        try:
            if not await self._join(operation, execution, overrides):
                await self._look_up_or_submit(operation, execution, overrides)
        except Exception as error:
            if not operation.announced:
                raise
            if not isinstance(error, TvixError):
                log.exception("admission of action=%s failed", execution.action_digest)
            self.dispatcher.end_operation(operation, status_response(status_from_error(error)))

    async def _join(self, operation: Operation, execution: Execution, overrides: tuple[Property, ...]) -> bool:
        """Attach the operation to an equal task in flight, if there is one."""
        key = _merge_key(execution, overrides)
        task = self.dispatcher.queue.find(key) if key is not None else None
        if task is not None:
            await self.dispatcher.join(task, operation, execution.priority)
        return task is not None

    async def _look_up_or_submit(
        self, operation: Operation, execution: Execution, overrides: tuple[Property, ...]
    ) -> None:
        digest = execution.action_digest
        data = (await self._blobs.get_many([digest]))[0]
        do_not_cache = data is not None and parse_action(data, digest).do_not_cache
        if not execution.skip_cache_lookup and not do_not_cache:
            result = await self._cache.get(ActionKey(execution.instance_name, digest))
            if result is not None:
                self.dispatcher.counters.cache_hits += 1
                self.dispatcher.end_operation(operation, re_pb2.ExecuteResponse(result=result, cached_result=True))
                return
            self.dispatcher.counters.cache_misses += 1
        if data is None:
            raise MissingBlobs([digest])
        checked = await check_action(self._blobs, digest, data, self.config.timeouts, overrides)
        task = self._new_task(uuid.uuid4().hex, execution, checked, overrides, self.clock())
        check = await self._check_inputs(digest, checked)
        streams = await self._make_streams(execution)
        # Meanwhile the client may have cancelled, or somebody submitted the same.
        if operation.done or await self._join(operation, execution, overrides):
            return
        job = Job(task, digest, execution, checked, overrides, task.submitted_at, streams, input_check=check)
        if check is not None:
            check.add_done_callback(lambda done: self._inputs_checked(job, done))
        await self.dispatcher.submit(job, operation)

    def _new_task(
        self, task_id: str, execution: Execution, checked: CheckedAction, overrides: Sequence[Property], now: float
    ) -> Task:
        metadata = execution.request_metadata
        return Task(
            task_id,
            self._policy.requirements(checked.properties),
            None if checked.action.do_not_cache else _merge_key(execution, overrides),
            execution.priority,
            metadata.correlated_invocations_id or metadata.tool_invocation_id,
            now,
        )

    async def _make_streams(self, execution: Execution) -> Streams:
        if self._streams is None:
            return Streams()
        stdout_name, stdout_write_name = await self._streams.create(execution.instance_name)
        stderr_name, stderr_write_name = await self._streams.create(execution.instance_name)
        return Streams(stdout_name, stderr_name, stdout_write_name, stderr_write_name)

    async def _check_inputs(self, digest: Digest, checked: CheckedAction) -> asyncio.Task[None] | None:
        """Look all input blobs up; when that takes long, return the task that goes on with it."""
        if not self.config.check_inputs:
            return None
        check = self.dispatcher.spawn(self._require_inputs(digest, checked), "input check")
        await asyncio.wait((check,), timeout=self.config.patience_seconds)
        if not check.done():
            return check
        check.result()
        return None

    async def _require_inputs(self, digest: Digest, checked: CheckedAction) -> None:
        missing = await self._trees.missing_inputs((digest, checked.command_digest), (checked.input_root,))
        if missing:
            raise MissingBlobs(missing)

    def _inputs_checked(self, job: Job, check: asyncio.Task[None]) -> None:
        """End a job whose inputs turned out, late, not to be all there."""
        job.input_check = None
        if check.cancelled() or (error := check.exception()) is None:
            return
        if job.task.state in (State.FINISHING, State.GONE):
            return
        log.info("action=%s stopped: %s", job.digest, error)
        self.dispatcher.queue.stop(job.task, self.clock())
        self.dispatcher.end_job(job, status_response(status_from_error(error)))
        self.dispatcher.pump()

    # -- following and ending --------------------------------------------------------------------------------

    async def get(self, name: str) -> Operation:
        """Return an operation, in flight or finished not too long ago. Raises NotFound."""
        operation = self.dispatcher.operations.get(name) or self.dispatcher.done.get(name)
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
        self.dispatcher.queue.watch(operation.name)
        try:
            while True:
                # As it was when yielded: it may end while the consumer is busy with what it got.
                version, done = operation.version, operation.done
                yield operation
                if done:
                    return
                await operation.wait_changed(version, period_seconds)
        finally:
            self.dispatcher.queue.unwatch(operation.name, self.clock())
            self.dispatcher.pump()

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
            self._end_as_cancelled(operation)

    def _end_as_cancelled(self, operation: Operation) -> None:
        self.dispatcher.queue.cancel_operation(operation.name, self.clock())
        self.dispatcher.counters.cancelled += 1
        error = Cancelled("the operation was cancelled")
        self.dispatcher.end_operation(operation, status_response(status_from_error(error)))
        self.dispatcher.pump()

    async def delete(self, name: str) -> None:
        """Forget an operation; one in flight is cancelled first. Raises NotFound."""
        await self.cancel(name)
        self.dispatcher.done.pop(name, None)
        await self._store.write(Delete(OPERATIONS, name))

    def operations_in_flight(self) -> list[Operation]:
        """Return the operations that have not ended."""
        return list(self.dispatcher.operations.values())

    async def done_page(self, prefix: str, after: str, limit: int) -> list[Operation]:
        """Return finished operations in the order of their names, those after `after`."""
        return [operation_from_row(row) for row in await self._store.done_page(prefix, after, limit)]

    # -- what workers say ------------------------------------------------------------------------------------

    def connect_worker(self, hello: worker_pb2.Hello, session: WorkerSession) -> None:
        """Register a worker's stream and greet it. Raises InvalidInput."""
        self.dispatcher.connect_worker(hello, session)

    def heard(self, worker_id: str, session: WorkerSession, message: worker_pb2.WorkerMessage) -> None:
        """Act on a message of a worker that has said Hello."""
        self.dispatcher.heard(worker_id, session, message, self._recorder.record)

    def disconnect_worker(self, worker_id: str, session: WorkerSession) -> None:
        """Note that a worker's stream broke."""
        self.dispatcher.disconnect_worker(worker_id, session)

    def drain_worker(self, worker_id: str) -> None:
        """Give a worker no more work. Raises NotFound."""
        if not self.dispatcher.queue.drain(worker_id):
            raise NotFound(f"worker {worker_id!r} is not connected")

    def tick(self) -> None:
        """Do what has become due by the clock."""
        self.dispatcher.pump()


def _merge_key(execution: Execution, overrides: Sequence[Property]) -> ActionKey | None:
    return None if overrides else ActionKey(execution.instance_name, execution.action_digest)
