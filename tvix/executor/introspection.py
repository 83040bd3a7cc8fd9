"""What the scheduler is doing, for people: a snapshot, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from tvix.executor.platform_policy import Requirements
from tvix.executor.queue_model import Task
from tvix.executor.scheduler import Scheduler

RATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class QueuedGroup:
    """Queued actions of one invocation that ask for the same."""

    requirements: str
    invocation: str
    count: int
    waiting_seconds: float
    """Of the one that waits longest."""
    eligible_workers: int


@dataclass(frozen=True, slots=True)
class RunningAction:
    """An action on a worker."""

    action: str
    instance_name: str
    worker_id: str
    attempt: int
    running_seconds: float
    queued_seconds: float
    mnemonic: str
    target: str
    invocation: str
    operations: int


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker, connected or lately so."""

    id: str
    connected: bool
    draining: bool
    slots: int
    busy: int
    finished: int
    silent_seconds: float
    version: str
    platform: str
    cpu_millis: int
    used_cpu_millis: int
    memory_bytes: int
    used_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler at one moment. Lists are cut, counts are whole."""

    started_at: float
    queued: int
    running: int
    operations: int
    queue: list[QueuedGroup]
    """The longest first."""
    actions: list[RunningAction]
    """The oldest first."""
    workers: list[WorkerState]
    completed_per_second: float
    """Operations ended over the last minute."""


def take_snapshot(scheduler: Scheduler, max_entries: int = 100) -> Snapshot:
    """Return what the scheduler is doing now; lists hold at most `max_entries`."""
    queue = scheduler.dispatcher.queue
    return Snapshot(
        scheduler.started_at,
        len(queue.ready),
        len(queue.leases),
        len(scheduler.dispatcher.operations),
        _queued(scheduler)[:max_entries],
        _running(scheduler, max_entries),
        [_worker(scheduler, worker_id) for worker_id in sorted(queue.workers)[:max_entries]],
        _rate(scheduler),
    )


def _queued(scheduler: Scheduler) -> list[QueuedGroup]:
    now = scheduler.clock()
    queue = scheduler.dispatcher.queue
    groups: dict[tuple[Requirements, str], list[Task]] = {}
    for task in queue.ready:
        groups.setdefault((task.requirements, task.invocation), []).append(task)
    found = [
        QueuedGroup(
            str(requirements),
            invocation,
            len(tasks),
            now - min(task.submitted_at for task in tasks),
            len(queue.ready.shapes[requirements].eligible),
        )
        for (requirements, invocation), tasks in groups.items()
    ]
    return sorted(found, key=lambda group: (-group.count, group.requirements, group.invocation))


def _running(scheduler: Scheduler, max_entries: int) -> list[RunningAction]:
    now = scheduler.clock()
    leases = sorted(scheduler.dispatcher.queue.leases.values(), key=lambda lease: lease.granted_at)[:max_entries]
    actions = []
    for lease in leases:
        job = scheduler.dispatcher.jobs.get(lease.task.id)
        if job is None:
            continue  # being stopped
        metadata = job.execution.request_metadata
        actions.append(
            RunningAction(
                str(job.digest),
                job.execution.instance_name,
                lease.worker_id,
                lease.attempt,
                now - lease.granted_at,
                lease.granted_at - job.queued_at,
                metadata.action_mnemonic,
                metadata.target_id,
                lease.task.invocation,
                len(job.operations),
            )
        )
    return actions


def _worker(scheduler: Scheduler, worker_id: str) -> WorkerState:
    worker = scheduler.dispatcher.queue.workers[worker_id]
    hello = scheduler.dispatcher.worker_hellos.get(worker_id)
    properties = hello.platform.properties if hello is not None else ()
    return WorkerState(
        worker.id,
        worker.connected,
        worker.draining,
        worker.slots,
        len(worker.leases),
        worker.finished,
        max(0.0, scheduler.clock() - worker.last_seen),
        hello.version if hello is not None else "",
        " ".join(f"{item.name}={item.value}" for item in properties),
        worker.cpu_millis,
        worker.used_cpu_millis,
        worker.memory_bytes,
        worker.used_memory_bytes,
    )


def _rate(scheduler: Scheduler) -> float:
    times = scheduler.dispatcher.done_times
    now = scheduler.clock()
    window = min(RATE_SECONDS, max(1.0, now - scheduler.started_at))
    if times and len(times) == times.maxlen:
        # More than fits: what fits tells the rate as well.
        window = min(window, max(1.0, now - times[0]))
    return sum(1 for time in times if time >= now - window) / window
