"""The scheduler's state machine: tasks, operations, leases and workers. Pure.

No clock (`now` is handed in, seconds since the epoch), no lock, no await, no wire messages. Every method
changes the state and leaves what the outside has to do in a list, which `take_events` gives out.

    task        one action to be run    QUEUED → RUNNING → FINISHING → gone, and RUNNING → QUEUED (tried again)
    operation   one client's wish for a task; several share one; a task nobody waits for is cancelled
    lease       one try of a task on a worker; alive while the worker names it; holds resources until it ends
    worker      connected, or remembered for a while after its stream broke

A lease ends in exactly one place, `_end_lease`, which gives the worker's resources back. A lost lease is tried
again elsewhere, up to `max_attempts`. A cancelled lease holds its resources until the worker says that the
process is gone; a worker that does not say so in time is dropped. Which task comes next: ready_tasks.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable

from tvix.executor.platform_policy import Offer, Requirements, nearest_unmatched, unmatched
from tvix.executor.priority_map import PriorityMap
from tvix.executor.queue_model import (
    Abandoned,
    Assigned,
    Dropped,
    Event,
    Lease,
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
from tvix.executor.ready_tasks import ReadyTasks, Shape


class BuildQueue:
    """Decides who runs what. `new_id` makes lease ids, unique over restarts."""

    def __init__(self, config: QueueConfig, started_at: float, new_id: Callable[[], str] | None = None) -> None:
        self.config = config
        self.started_at = started_at
        self.ready = ReadyTasks(config.ageing_seconds)
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, Worker] = {}
        self.leases: dict[str, Lease] = {}
        self._by_key: dict[Hashable, Task] = {}
        self._operations: dict[str, Task] = {}
        self._watchers: dict[str, int] = {}
        self._deadlines: PriorityMap[tuple[str, str]] = PriorityMap()
        self._worker_deadlines: PriorityMap[str] = PriorityMap()
        self._events: list[Event] = []
        serial = itertools.count(1)
        self._new_id = new_id or (lambda: f"lease-{next(serial)}")

    def __repr__(self) -> str:
        idle = sum(worker.connected and not worker.leases for worker in self.workers.values())
        return f"<BuildQueue {len(self.ready)} queued, {len(self.leases)} leased, {idle} idle workers>"

    def take_events(self) -> list[Event]:
        """Return what has to be done outside since the last call, in order."""
        events, self._events = self._events, []
        return events

    def has_events(self) -> bool:
        """Tell whether `take_events` would give any."""
        return bool(self._events)

    # -- tasks and operations ------------------------------------------------------------------------------

    def find(self, merge_key: Hashable) -> Task | None:
        """Return the task in flight with this key."""
        return self._by_key.get(merge_key)

    def submit(self, task: Task, operation: str, now: float) -> Task:
        """Queue the task for an operation, or join the operation to an equal task in flight, which is returned."""
        found = self._by_key.get(task.merge_key) if task.merge_key is not None else None
        if found is not None:
            self.join(found, operation, task.priority, now)
            return found
        self._add_task(task)
        self._add_operation(task, operation, now)
        self._enqueue(task, now)
        return task

    def join(self, task: Task, operation: str, priority: int, now: float) -> None:
        """Let one more operation wait for a task in flight; the better priority counts."""
        self._add_operation(task, operation, now)
        if priority < task.priority and task.state is State.QUEUED:
            self.ready.remove(task)
            task.priority = priority
            self.ready.add(self._shape(task.requirements), task)
        task.priority = min(priority, task.priority)

    def restore(self, task: Task, operations: Iterable[str], lease: tuple[str, str] | None, now: float) -> None:
        """Take over a task from before a restart; `lease` is (lease id, worker id) when one ran it.

        The worker has the lease timeout to come back for its lease.
        """
        self._add_task(task)
        for operation in operations:
            self._add_operation(task, operation, now)
        if lease is None:
            self._enqueue(task, now)
            return
        lease_id, worker_id = lease
        worker = self.workers.get(worker_id)
        if worker is None:
            worker = Worker(worker_id, Offer({}, {}), slots=0, connected=False, last_seen=now)
            self._add_worker(worker, now)
        task.state = State.RUNNING
        self._add_lease(Lease(lease_id, task, worker_id, task.attempts, now), worker, now)

    def watch(self, operation: str) -> None:
        """Count one more client that watches the operation. Unknown operations are fine, here and below."""
        if operation in self._operations:
            self._watchers[operation] = self._watchers.get(operation, 0) + 1
            self._deadlines.discard(("operation", operation))

    def is_watched(self, operation: str) -> bool:
        """Tell whether a client watches the operation."""
        return operation in self._watchers

    def unwatch(self, operation: str, now: float) -> None:
        """Count one client less; the last one leaving starts the clock."""
        if operation not in self._operations or operation not in self._watchers:
            return
        self._watchers[operation] -= 1
        if not self._watchers[operation]:
            del self._watchers[operation]
            self._deadlines.set(("operation", operation), now + self.config.abandon_seconds)

    def cancel_operation(self, operation: str, now: float) -> bool:
        """Take an operation off its task, which is stopped if it was the last. False when it is not in flight."""
        task = self._operations.get(operation)
        if task is None:
            return False
        self._remove_operation(operation)
        if not task.operations and task.state is not State.FINISHING:
            self.stop(task, now)
            self._events.append(Dropped(task))
        return True

    def stop(self, task: Task, now: float) -> None:
        """Forget a task, queued or running; a running one is stopped on its worker."""
        if task.state is State.QUEUED:
            self.ready.remove(task)
        lease = task.lease
        self._remove_task(task)
        if lease is not None:
            lease.cancelling = True
            self._deadlines.set(("lease", lease.id), now + self.config.cancel_timeout_seconds)
            if self.workers[lease.worker_id].connected:
                self._events.append(StopLease(lease.worker_id, lease.id))

    def finish(self, lease_id: str, worker_id: str, now: float) -> Task | None:
        """End a lease that its worker has finished; free its place. Returns its task, now FINISHING, for
        `complete` or `retry`; None when the lease is unknown, another worker's, or was cancelled.
        """
        lease = self.leases.get(lease_id)
        if lease is None or lease.worker_id != worker_id:
            return None
        worker = self.workers[worker_id]
        worker.finished += 1
        self._end_lease(lease)
        task = None
        if not lease.cancelling:
            task = lease.task
            task.state = State.FINISHING
        self._fill(worker, now)
        return task

    def complete(self, task: Task) -> None:
        """Forget a FINISHING task, whose result is recorded."""
        assert task.state is State.FINISHING, task
        self._remove_task(task)

    def retry(self, task: Task, worker_id: str, reason: str, now: float) -> bool:
        """Queue a FINISHING task again because its worker failed. False, and nothing done, when it has had
        all its tries: the caller completes it.
        """
        assert task.state is State.FINISHING, task
        if task.attempts >= self.config.max_attempts:
            return False
        task.failed_on.add(worker_id)
        task.failures.append(f"{worker_id}: {reason}")
        if not task.operations:
            self._remove_task(task)
            self._events.append(Dropped(task))
            return True
        self._events.append(Requeued(task, reason))
        self._enqueue(task, now)
        return True

    # -- workers -------------------------------------------------------------------------------------------

    def connect(self, worker: Worker, lease_ids: Collection[str], now: float) -> list[str]:
        """Register a worker that (re)connected holding these leases; return those it shall stop.

        Leases that we think it has and it does not name are lost.
        """
        known = self.workers.get(worker.id)
        if known is not None:
            worker.leases = known.leases
            worker.finished = known.finished
            worker.used_cpu_millis = known.used_cpu_millis
            worker.used_memory_bytes = known.used_memory_bytes
        worker.connected, worker.last_seen, worker.connected_at = True, now, now
        self._add_worker(worker, now)
        for lease in list(worker.leases.values()):
            if lease.id not in lease_ids:
                self._lose(lease, "it came back without the lease", now)
            elif lease.cancelling:
                self._events.append(StopLease(worker.id, lease.id))
            else:
                self._deadlines.set(("lease", lease.id), now + self.config.lease_timeout_seconds)
        self._fill(worker, now)
        return [lease_id for lease_id in lease_ids if lease_id not in worker.leases]

    def remember(self, worker: Worker, now: float) -> None:
        """Take over, after a restart, a worker that was connected before; it may come back."""
        worker.connected, worker.last_seen = False, now
        self._add_worker(worker, now)

    def disconnect(self, worker_id: str, now: float) -> None:
        """Note that a worker's stream broke. It keeps its leases until they time out."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        worker.connected, worker.last_seen = False, now
        self._set_worker_deadline(worker)
        if worker.draining and not worker.leases:
            self._forget_worker(worker, now)

    def drain(self, worker_id: str) -> bool:
        """Give a worker no more leases. False when it is not known."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.draining = True
        return worker is not None

    def heartbeat(self, worker_id: str, lease_ids: Iterable[str], now: float) -> None:
        """Note that a worker lives and works on these leases. Unknown ones it is told to stop."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        worker.last_seen = now
        self._set_worker_deadline(worker)
        for lease_id in lease_ids:
            lease = worker.leases.get(lease_id)
            if lease is None:
                self._events.append(StopLease(worker_id, lease_id))
            elif not lease.cancelling:
                self._deadlines.set(("lease", lease_id), now + self.config.lease_timeout_seconds)

    # -- time ----------------------------------------------------------------------------------------------

    def expire(self, now: float) -> float | None:
        """Do what has become due; return when the next thing is due, None when nothing is."""
        self._expire_workers(now)
        while (due := self._deadlines.peek()) is not None and due[0] <= now:
            _, (kind, name) = due
            self._deadlines.discard((kind, name))
            if kind == "lease":
                self._lease_due(self.leases[name], now)
            elif kind == "operation":
                self._events.append(Abandoned(name))
                self.cancel_operation(name, now)
            else:
                self._refuse_unmatched(now)
        heads = (self._deadlines.peek(), self._worker_deadlines.peek())
        return min((float(head[0]) for head in heads if head is not None), default=None)

    def postpone(self, seconds: float) -> None:
        """Give workers so much more time: we ourselves stood still and may not have heard them."""
        for worker in self.workers.values():
            worker.last_seen += seconds
            self._set_worker_deadline(worker)
            for lease in worker.leases.values():
                at = self._deadlines.rank(("lease", lease.id))
                self._deadlines.set(("lease", lease.id), at + seconds)

    def _expire_workers(self, now: float) -> None:
        """Drop and forget workers. All silent ones first, so that no lost task is given to another of them."""
        dropped = []
        while (due := self._worker_deadlines.peek()) is not None and due[0] <= now:
            worker = self.workers[due[1]]
            if not worker.connected:
                self._forget_worker(worker, now)
                continue
            dropped.append((worker, f"silent for {now - worker.last_seen:.0f} s"))
            worker.connected, worker.last_seen = False, now
            self._set_worker_deadline(worker)
        for worker, reason in dropped:
            self._drop_worker(worker, reason, now)

    def _lease_due(self, lease: Lease, now: float) -> None:
        worker = self.workers[lease.worker_id]
        if lease.cancelling:
            self._drop_worker(worker, f"did not stop lease {lease.id} when told to", now)
        elif worker.connected:
            self._lose(lease, "the worker no longer names the lease", now)
            self._fill(worker, now)
        else:
            self._lose(lease, f"the worker is away for {now - worker.last_seen:.0f} s", now)

    def _worker_deadline(self, worker: Worker) -> float:
        config = self.config
        return worker.last_seen + (
            config.lease_timeout_seconds
            if worker.connected
            else max(config.worker_grace_seconds, config.lease_timeout_seconds + 1)
        )

    def _set_worker_deadline(self, worker: Worker) -> None:
        self._worker_deadlines.set(worker.id, self._worker_deadline(worker))

    # -- inner workings ------------------------------------------------------------------------------------

    def _add_task(self, task: Task) -> None:
        self.tasks[task.id] = task
        if task.merge_key is not None:
            self._by_key[task.merge_key] = task

    def _remove_task(self, task: Task) -> None:
        task.state, task.lease = State.GONE, None
        del self.tasks[task.id]
        if task.merge_key is not None:
            del self._by_key[task.merge_key]
        for operation in list(task.operations):
            self._forget_operation(operation)

    def _add_operation(self, task: Task, operation: str, now: float) -> None:
        task.operations.add(operation)
        self._operations[operation] = task
        self._deadlines.set(("operation", operation), now + self.config.abandon_seconds)

    def _remove_operation(self, operation: str) -> None:
        self._operations[operation].operations.discard(operation)
        self._forget_operation(operation)

    def _forget_operation(self, operation: str) -> None:
        # `task.operations` is left as it is: who handles the events of a task that is gone needs it.
        del self._operations[operation]
        self._watchers.pop(operation, None)
        self._deadlines.discard(("operation", operation))

    def _shape(self, requirements: Requirements) -> Shape:
        return self.ready.shape(requirements, self._find_eligible)

    def _find_eligible(self, requirements: Requirements) -> set[str]:
        return {worker.id for worker in self.workers.values() if not unmatched(requirements, worker.offer)}

    def _enqueue(self, task: Task, now: float) -> None:
        task.state = State.QUEUED
        shape = self._shape(task.requirements)
        self.ready.add(shape, task)
        if not shape.eligible:
            self._refuse_unmatched(now)
            return
        free = [
            worker
            for worker_id in shape.eligible
            if self._takes_work(worker := self.workers[worker_id]) and worker.fits(task.requirements)
        ]
        if free:
            # Those the task did not fail on first, then the emptiest.
            free.sort(key=lambda worker: (worker.id in task.failed_on, len(worker.leases) / worker.slots, worker.id))
            self._fill(free[0], now)

    @staticmethod
    def _takes_work(worker: Worker) -> bool:
        return worker.connected and not worker.draining and len(worker.leases) < worker.slots

    def _fill(self, worker: Worker, now: float) -> None:
        """Grant leases until the worker is full or nothing is left for it."""
        while self._takes_work(worker):
            task = self._next_for(worker, now)
            if task is None:
                return
            self._grant(task, worker, now)

    def _next_for(self, worker: Worker, now: float) -> Task | None:
        shapes = [shape for shape in self.ready.shapes.values() if worker.id in shape.eligible]
        held = [shape for shape in shapes if shape.reserved_for == worker.id]
        if held and not worker.fits(held[0].requirements):
            return None
        fitting = [shape for shape in shapes if worker.fits(shape.requirements)]
        if len(fitting) < len(shapes):
            self._reserve(worker, shapes, now)
            if any(shape.reserved_for == worker.id and shape not in fitting for shape in shapes):
                return None
        return self.ready.best(held or fitting, worker.id, lambda shape: self._is_alone(worker, shape))

    def _reserve(self, worker: Worker, shapes: list[Shape], now: float) -> None:
        """Keep the worker for a shape whose oldest task has waited long and does not fit yet."""
        for shape in shapes:
            head = shape.order.peek()
            if not head or shape.reserved_for is not None or worker.fits(shape.requirements):
                continue
            if now - shape.tasks[head[1]].submitted_at >= self.config.reserve_after_seconds:
                shape.reserved_for = worker.id
                return

    def _is_alone(self, worker: Worker, shape: Shape) -> bool:
        others = (self.workers[worker_id] for worker_id in shape.eligible if worker_id != worker.id)
        return not any(other.connected and not other.draining for other in others)

    def _grant(self, task: Task, worker: Worker, now: float) -> None:
        shape = self.ready.shapes[task.requirements]
        if shape.reserved_for == worker.id:
            shape.reserved_for = None
        self.ready.remove(task)
        task.state = State.RUNNING
        task.attempts += 1
        lease = Lease(self._new_id(), task, worker.id, task.attempts, now)
        self._add_lease(lease, worker, now)
        self._events.append(Assigned(task, lease))

    def _add_lease(self, lease: Lease, worker: Worker, now: float) -> None:
        lease.cpu_millis, lease.memory_bytes = worker.part_of(lease.task.requirements)
        worker.used_cpu_millis += lease.cpu_millis
        worker.used_memory_bytes += lease.memory_bytes
        worker.leases[lease.id] = lease
        self.leases[lease.id] = lease
        lease.task.lease = lease
        self.ready.started(lease.task.invocation)
        self._deadlines.set(("lease", lease.id), now + self.config.lease_timeout_seconds)

    def _end_lease(self, lease: Lease) -> None:
        """The one place where what a lease holds is given back."""
        worker = self.workers[lease.worker_id]
        worker.used_cpu_millis -= lease.cpu_millis
        worker.used_memory_bytes -= lease.memory_bytes
        del worker.leases[lease.id]
        del self.leases[lease.id]
        if lease.task.lease is lease:
            lease.task.lease = None
        self.ready.stopped(lease.task.invocation)
        self._deadlines.discard(("lease", lease.id))

    def _lose(self, lease: Lease, reason: str, now: float) -> None:
        """End a lease whose worker failed; its task is tried again or is lost."""
        self._end_lease(lease)
        if lease.cancelling:
            return
        task = lease.task
        task.state = State.FINISHING
        if not self.retry(task, lease.worker_id, reason, now):
            task.failures.append(f"{lease.worker_id}: {reason}")
            self._remove_task(task)
            self._events.append(Lost(task))

    def _add_worker(self, worker: Worker, now: float) -> None:
        self.workers[worker.id] = worker
        self._set_worker_deadline(worker)
        for shape in self.ready.shapes.values():
            if unmatched(shape.requirements, worker.offer):
                shape.eligible.discard(worker.id)
            else:
                shape.eligible.add(worker.id)

    def _drop_worker(self, worker: Worker, reason: str, now: float) -> None:
        worker.connected = False
        self._events.append(WorkerDropped(worker.id, reason))
        for lease in list(worker.leases.values()):
            self._lose(lease, reason, now)
        self._set_worker_deadline(worker)

    def _forget_worker(self, worker: Worker, now: float) -> None:
        for lease in list(worker.leases.values()):
            self._lose(lease, "the worker is gone", now)
        del self.workers[worker.id]
        self._worker_deadlines.discard(worker.id)
        for shape in self.ready.shapes.values():
            shape.eligible.discard(worker.id)
            if shape.reserved_for == worker.id:
                shape.reserved_for = None
        self._refuse_unmatched(now)

    def _refuse_unmatched(self, now: float) -> None:
        """Refuse the tasks that no known worker can run; with no workers at all, only after the first grace."""
        grace_ends = self.started_at + self.config.startup_grace_seconds
        hopeless = [shape for shape in self.ready.shapes.values() if not shape.eligible]
        offers = [worker.offer for worker in self.workers.values() if worker.slots]
        if hopeless and not offers and now < grace_ends:
            self._deadlines.set(("grace", ""), grace_ends)
            return
        for shape in hopeless:
            missing = nearest_unmatched(shape.requirements, offers)
            for task in list(shape.tasks.values()):
                self.ready.remove(task)
                self._remove_task(task)
                self._events.append(Refused(task, missing if offers else []))
