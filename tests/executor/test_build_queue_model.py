"""The state machine under random histories: nothing lost, nothing done twice, nothing leaked, nobody starved.

The test plays the outside world: workers that hold what they were given, clients that watch and leave, time
that passes. It keeps its own books and compares.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tvix.executor.build_queue import BuildQueue
from tvix.executor.platform_policy import Offer, Property, Requirements
from tvix.executor.queue_model import (
    Abandoned,
    Assigned,
    Dropped,
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

KINDS = ("a", "b")
REQUIREMENTS = [
    Requirements(cpu_millis=cpu, memory_bytes=memory, exact=exact)
    for cpu in (0, 1000, 2500)
    for memory in (0, 60)
    for exact in ((), *(((Property("kind", kind)),) for kind in KINDS))
]


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        config = QueueConfig(
            lease_timeout_seconds=10,
            abandon_seconds=40,
            cancel_timeout_seconds=15,
            startup_grace_seconds=20,
            worker_grace_seconds=30,
            ageing_seconds=50,
            reserve_after_seconds=5,
        )
        self.queue = BuildQueue(config, 0.0)
        self.serial = 0
        self.tasks: dict[str, Task] = {}
        """Tasks submitted and not yet told to be over."""
        self.over: dict[str, str] = {}
        """How tasks ended, each once."""
        self.operations: set[str] = set()
        self.watched: set[str] = set()
        self.held: dict[str, dict[str, Task]] = {}
        """Leases as the workers know them."""
        self.finishing: list[tuple[Task, str]] = []

    # -- the outside world --

    def settle(self) -> None:
        """Do what the queue asks for."""
        for event in self.queue.take_events():
            if isinstance(event, Assigned):
                worker = self.queue.workers[event.lease.worker_id]
                assert worker.connected
                assert not worker.draining
                assert event.lease.id not in self.held.setdefault(worker.id, {})
                assert event.task.id in self.tasks
                self.held[worker.id][event.lease.id] = event.task
            elif isinstance(event, (Lost, Refused, Dropped)):
                self.end(event.task, type(event).__name__)
            elif isinstance(event, Abandoned):
                assert event.operation not in self.watched
                self.operations.discard(event.operation)
            else:
                assert isinstance(event, (Requeued, StopLease, WorkerDropped))

    def end(self, task: Task, how: str) -> None:
        assert task.id not in self.over, f"{task.id} ended as {self.over[task.id]} and as {how}"
        self.over[task.id] = how
        del self.tasks[task.id]
        self.operations = {name for name in self.operations if name not in task.operations}
        self.watched &= self.operations

    @rule(
        requirements=st.sampled_from(REQUIREMENTS),
        priority=st.integers(-2, 2),
        invocation=st.sampled_from("xyz"),
        key=st.sampled_from([None, "k1", "k2"]),
    )
    def submit(self, requirements: Requirements, priority: int, invocation: str, key: str | None) -> None:
        self.serial += 1
        task = Task(f"t{self.serial}", requirements, key, priority, invocation, self.now)
        operation = f"o{self.serial}"
        self.operations.add(operation)
        self.tasks[task.id] = task
        found = self.queue.submit(task, operation, self.now)
        if found is not task:
            assert found.merge_key == key
            del self.tasks[task.id]
        self.settle()

    @rule(data=st.data())
    def watch(self, data: st.DataObject) -> None:
        if self.operations:
            name = data.draw(st.sampled_from(sorted(self.operations)))
            if name not in self.watched:
                self.watched.add(name)
                self.queue.watch(name)

    @rule(data=st.data())
    def unwatch(self, data: st.DataObject) -> None:
        if self.watched:
            name = data.draw(st.sampled_from(sorted(self.watched)))
            self.watched.discard(name)
            self.queue.unwatch(name, self.now)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.operations:
            name = data.draw(st.sampled_from(sorted(self.operations)))
            self.operations.discard(name)
            self.watched.discard(name)
            self.queue.cancel_operation(name, self.now)
            self.settle()

    @rule(worker_id=st.sampled_from(["w1", "w2", "w3"]), slots=st.integers(1, 3), kind=st.sampled_from(KINDS))
    def connect(self, worker_id: str, slots: int, kind: str) -> None:
        """A worker comes, or comes again with all that it holds; what is not wanted it stops."""
        worker = Worker(worker_id, Offer({"kind": frozenset({kind})}, {}), slots, 2000, 100)
        held = self.held.setdefault(worker_id, {})
        unknown = self.queue.connect(worker, set(held), self.now)
        for lease_id in unknown:
            del held[lease_id]
        self.settle()

    @rule(worker_id=st.sampled_from(["w1", "w2", "w3"]), forgets=st.booleans())
    def disconnect(self, worker_id: str, forgets: bool) -> None:
        self.queue.disconnect(worker_id, self.now)
        if forgets:
            self.held.pop(worker_id, None)
        self.settle()

    @rule(worker_id=st.sampled_from(["w1", "w2", "w3"]))
    def drain(self, worker_id: str) -> None:
        self.queue.drain(worker_id)

    @rule(worker_id=st.sampled_from(["w1", "w2", "w3"]), names_all=st.booleans())
    def heartbeat(self, worker_id: str, names_all: bool) -> None:
        worker = self.queue.workers.get(worker_id)
        if worker is not None and worker.connected:
            self.queue.heartbeat(worker_id, list(self.held.get(worker_id, {})) if names_all else [], self.now)
            self.settle()

    @rule(data=st.data(), twice=st.booleans())
    def finish(self, data: st.DataObject, twice: bool) -> None:
        """A worker finishes a lease: one it still has, or one it has lost without knowing."""
        leases = sorted((worker, lease) for worker, held in self.held.items() for lease in held)
        connected = [(w, lease) for w, lease in leases if w in self.queue.workers and self.queue.workers[w].connected]
        if not connected:
            return
        worker_id, lease_id = data.draw(st.sampled_from(connected))
        known = self.held[worker_id].pop(lease_id)
        task = self.queue.finish(lease_id, worker_id, self.now)
        if task is not None:
            assert task is known
            assert task.state is State.FINISHING
            self.finishing.append((task, worker_id))
        if twice:
            assert self.queue.finish(lease_id, worker_id, self.now) is None
        self.settle()

    @precondition(lambda self: self.finishing)
    @rule(retry=st.booleans())
    def record(self, retry: bool) -> None:
        task, worker_id = self.finishing.pop(0)
        if retry and self.queue.retry(task, worker_id, "failed", self.now):
            self.settle()
            return
        self.queue.complete(task)
        self.end(task, "Completed")
        self.settle()

    @rule(seconds=st.integers(0, 12))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        due = self.queue.expire(self.now)
        assert due is None or due > self.now
        self.settle()

    # -- what always holds --

    @invariant()
    def no_task_is_lost(self) -> None:
        assert set(self.queue.tasks) == set(self.tasks)
        for task in self.tasks.values():
            queued = task.requirements in self.queue.ready.shapes and (
                task.id in self.queue.ready.shapes[task.requirements].tasks
            )
            assert queued == (task.state is State.QUEUED)
            assert (task.lease is not None) == (task.state is State.RUNNING)
            assert task.attempts <= self.queue.config.max_attempts

    @invariant()
    def resources_are_conserved(self) -> None:
        for worker in self.queue.workers.values():
            leases = list(worker.leases.values())
            assert worker.used_cpu_millis == sum(lease.cpu_millis for lease in leases)
            assert worker.used_memory_bytes == sum(lease.memory_bytes for lease in leases)
            assert min(worker.used_cpu_millis, worker.used_memory_bytes) >= 0
        assert {lease for worker in self.queue.workers.values() for lease in worker.leases} == set(self.queue.leases)

    @invariant()
    def running_counts_are_right(self) -> None:
        counts: dict[str, int] = {}
        for lease in self.queue.leases.values():
            counts[lease.task.invocation] = counts.get(lease.task.invocation, 0) + 1
        assert self.queue.ready.running == counts

    @invariant()
    def no_worker_idles_while_it_could_work(self) -> None:
        for worker in self.queue.workers.values():
            if worker.leases or not worker.connected or worker.draining:
                continue
            for shape in self.queue.ready.shapes.values():
                fresh = [task for task in shape.tasks.values() if worker.id not in task.failed_on]
                assert worker.id not in shape.eligible or not fresh, f"{worker} idle beside {shape}"

    @invariant()
    def nothing_of_the_past_is_kept(self) -> None:
        live = {operation for task in self.queue.tasks.values() for operation in task.operations}
        assert set(self.queue._operations) == live
        assert set(self.queue._watchers) <= live
        kinds: dict[str, Any] = {
            "lease": self.queue.leases,
            "operation": self.queue._operations,
            "grace": {""},
        }
        for kind, name in self.queue._deadlines:
            assert name in kinds[kind], (kind, name)
        assert set(self.queue._worker_deadlines) == set(self.queue.workers)

    def teardown(self) -> None:
        """In the end a healthy worker does everything that clients still want."""
        for name in sorted(self.operations - self.watched):
            self.queue.watch(name)
            self.watched.add(name)
        for unrecorded, _ in self.finishing:
            self.queue.complete(unrecorded)
            self.end(unrecorded, "Completed")
        self.held.clear()
        kinds = Offer({"kind": frozenset(KINDS)}, {})
        self.queue.connect(Worker("last", kinds, 4, 10_000, 1000), (), self.now)
        self.settle()
        for _ in range(len(self.tasks) * 20 + 20):
            if not self.tasks:
                break
            self.now += 5
            self.queue.heartbeat("last", list(self.held.get("last", {})), self.now)
            for lease_id in list(self.held.get("last", {})):
                self.held["last"].pop(lease_id)
                task = self.queue.finish(lease_id, "last", self.now)
                if task is not None:
                    self.queue.complete(task)
                    self.end(task, "Completed")
            self.queue.expire(self.now)
            self.settle()
        assert not self.tasks, f"never run: {self.tasks}"
        assert not self.queue.ready.shapes


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
