"""What the build queue holds and says: its settings, tasks, leases, workers, and the events it gives out. Pure."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass, field

from tvix.executor.platform_policy import Offer, Property, Requirements


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Times in seconds."""

    heartbeat_seconds: float = 3.0
    """How often workers say that they live."""
    lease_timeout_seconds: float = 15.0
    """How long a worker may be silent, or away, before its leases are given to others."""
    abandon_seconds: float = 60.0
    """How long an operation lives that no client watches."""
    cancel_timeout_seconds: float = 30.0
    """How long a worker may take to stop a cancelled lease before it is dropped."""
    startup_grace_seconds: float = 60.0
    """How long tasks wait for the first worker after a start."""
    worker_grace_seconds: float = 120.0
    """How long tasks wait for a worker that went away."""
    max_attempts: int = 3
    ageing_seconds: float = 300.0
    """How much waiting one step of priority is worth."""
    reserve_after_seconds: float = 30.0
    """After waiting this long, a task that needs more than is free gets a worker kept free for it."""


class State(enum.Enum):
    """Where a task is."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHING = "finishing"
    """Its lease has ended, its result is being recorded."""
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Task:
    """One action to be run. Changed only by the queue."""

    id: str
    requirements: Requirements = field(default_factory=Requirements)
    merge_key: Hashable | None = None
    """Tasks with equal keys are one; None is never merged."""
    priority: int = 0
    invocation: str = ""
    """Whose work it is, for fairness."""
    submitted_at: float = 0.0
    state: State = State.QUEUED
    attempts: int = 0
    """Leases granted so far."""
    failures: list[str] = field(default_factory=list)
    """Why earlier tries were lost, oldest first."""
    failed_on: set[str] = field(default_factory=set)
    operations: set[str] = field(default_factory=set)
    lease: Lease | None = None

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.state.value}, {len(self.operations)} operations>"


@dataclass(slots=True, eq=False)
class Lease:
    """One try of a task on a worker."""

    id: str
    task: Task
    worker_id: str
    attempt: int
    granted_at: float
    cancelling: bool = False
    cpu_millis: int = 0
    memory_bytes: int = 0


@dataclass(slots=True, eq=False)
class Worker:
    """A worker that is connected or was so lately."""

    id: str
    offer: Offer
    slots: int
    cpu_millis: int = 0
    """0: unknown, not limited; likewise memory."""
    memory_bytes: int = 0
    connected: bool = True
    draining: bool = False
    last_seen: float = 0.0
    connected_at: float = 0.0
    leases: dict[str, Lease] = field(default_factory=dict)
    used_cpu_millis: int = 0
    used_memory_bytes: int = 0
    finished: int = 0
    """Leases it has finished, for people."""

    def __repr__(self) -> str:
        state = "draining" if self.draining else "connected" if self.connected else "away"
        return f"<Worker {self.id} {state}, {len(self.leases)}/{self.slots} slots>"

    def part_of(self, requirements: Requirements) -> tuple[int, int]:
        """Return the CPU and memory a task takes here; an estimate beyond the whole worker takes it all."""
        return min(requirements.cpu_millis, self.cpu_millis), min(requirements.memory_bytes, self.memory_bytes)

    def fits(self, requirements: Requirements) -> bool:
        """Tell whether a slot and the resources are free now."""
        if len(self.leases) >= self.slots:
            return False
        cpu_millis, memory_bytes = self.part_of(requirements)
        return (
            self.used_cpu_millis + cpu_millis <= self.cpu_millis
            and self.used_memory_bytes + memory_bytes <= self.memory_bytes
        )


@dataclass(frozen=True, slots=True)
class Assigned:
    """Send the worker this lease."""

    task: Task
    lease: Lease


@dataclass(frozen=True, slots=True)
class Requeued:
    """The task's lease was lost; it is queued again."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The task is gone: every try of it was lost; `task.failures` tells how."""

    task: Task


@dataclass(frozen=True, slots=True)
class Refused:
    """The task is gone: no worker can run it. `unmatched` is empty when there is no worker at all."""

    task: Task
    unmatched: list[Property]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The task is gone: nobody waits for it any more."""

    task: Task


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The operation is gone: no client watched it for `abandon_seconds`."""

    operation: str


@dataclass(frozen=True, slots=True)
class StopLease:
    """Tell the worker to stop this lease."""

    worker_id: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class WorkerDropped:
    """Close the worker's stream, if it has one: it is no longer known."""

    worker_id: str
    reason: str


Event = Assigned | Requeued | Lost | Refused | Dropped | Abandoned | StopLease | WorkerDropped
