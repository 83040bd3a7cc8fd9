"""The queued tasks, arranged so that the next one for a worker is found in O(log n). Pure.

Tasks with equal requirements form a *shape*; a shape's tasks of one priority form a *level*; a level's tasks
of one invocation are in order of arrival. The next task is chosen in three steps:

1. Priority with ageing. A task's order is `submitted_at + priority * ageing_seconds`: one step of priority is
   worth that much waiting, so a lower priority waits longer but never for ever. The order never changes while
   a task waits, hence a heap. The first task in order tells which priority is served now.
2. Fairness. Of the invocations with tasks of that priority, the one with the fewest running tasks is served,
   and among equals the one served longest ago.
3. First come, first served within the invocation.

Tasks to be tried again stand apart and come before all others, on a worker that they did not fail on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from tvix.executor.platform_policy import Requirements
from tvix.executor.priority_map import PriorityMap

if TYPE_CHECKING:
    from tvix.executor.queue_model import Task


class _Level:
    """The queued tasks of one shape and priority."""

    __slots__ = ("invocations", "ranks")

    def __init__(self) -> None:
        self.invocations: dict[str, OrderedDict[str, Task]] = {}
        self.ranks: PriorityMap[str] = PriorityMap()


class Shape:
    """The queued tasks with one set of requirements, and the workers that could run them."""

    __slots__ = ("eligible", "levels", "order", "requirements", "reserved_for", "retries", "tasks")

    def __init__(self, requirements: Requirements) -> None:
        self.requirements = requirements
        self.eligible: set[str] = set()
        """Ids of the workers, connected or remembered, that satisfy the requirements."""
        self.tasks: dict[str, Task] = {}
        self.order: PriorityMap[str] = PriorityMap()
        self.levels: dict[int, _Level] = {}
        self.retries: OrderedDict[str, Task] = OrderedDict()
        self.reserved_for: str | None = None
        """A worker kept free of other work until this shape's oldest task fits on it."""

    def __repr__(self) -> str:
        return f"<Shape {self.requirements}: {len(self.tasks)} queued>"


class ReadyTasks:
    """All queued tasks. Counts running tasks per invocation, which fairness needs."""

    def __init__(self, ageing_seconds: float) -> None:
        self._ageing_seconds = ageing_seconds
        self.shapes: dict[Requirements, Shape] = {}
        self.running: dict[str, int] = {}
        """Running tasks by invocation; absent means none."""
        self._served: dict[str, int] = {}
        self._serial = 0
        self._levels_of: dict[str, set[tuple[Requirements, int]]] = {}

    def __repr__(self) -> str:
        return f"<ReadyTasks {len(self)} queued in {len(self.shapes)} shapes>"

    def __len__(self) -> int:
        return sum(len(shape.tasks) for shape in self.shapes.values())

    def __iter__(self) -> Iterator[Task]:
        for shape in self.shapes.values():
            yield from shape.tasks.values()

    def shape(self, requirements: Requirements, find_eligible: Callable[[Requirements], set[str]]) -> Shape:
        """Return the shape for these requirements, new or existing."""
        shape = self.shapes.get(requirements)
        if shape is None:
            shape = self.shapes[requirements] = Shape(requirements)
            shape.eligible = find_eligible(requirements)
        return shape

    def add(self, shape: Shape, task: Task) -> None:
        """Queue a task; a retry when it has failed before."""
        shape.tasks[task.id] = task
        if task.failed_on:
            shape.retries[task.id] = task
            return
        shape.order.set(task.id, task.submitted_at + task.priority * self._ageing_seconds)
        level = shape.levels.get(task.priority)
        if level is None:
            level = shape.levels[task.priority] = _Level()
        waiting = level.invocations.get(task.invocation)
        if waiting is None:
            waiting = level.invocations[task.invocation] = OrderedDict()
            self._levels_of.setdefault(task.invocation, set()).add((shape.requirements, task.priority))
            level.ranks.set(task.invocation, self._rank(task.invocation))
        waiting[task.id] = task

    def remove(self, task: Task) -> None:
        """Take a queued task out, to run it or because nobody wants it any more."""
        shape = self.shapes[task.requirements]
        del shape.tasks[task.id]
        if shape.retries.pop(task.id, None) is None:
            shape.order.discard(task.id)
            self._remove_from_level(shape, task)
        if not shape.tasks:
            del self.shapes[task.requirements]

    def _remove_from_level(self, shape: Shape, task: Task) -> None:
        level = shape.levels[task.priority]
        waiting = level.invocations[task.invocation]
        del waiting[task.id]
        if waiting:
            return
        del level.invocations[task.invocation]
        level.ranks.discard(task.invocation)
        places = self._levels_of[task.invocation]
        places.discard((shape.requirements, task.priority))
        if not places:
            del self._levels_of[task.invocation]
        if not level.invocations:
            del shape.levels[task.priority]
        self._forget_idle(task.invocation)

    def started(self, invocation: str) -> None:
        """Count a task of the invocation as running."""
        self._serial += 1
        self._served[invocation] = self._serial
        self.running[invocation] = self.running.get(invocation, 0) + 1
        self._rerank(invocation)

    def stopped(self, invocation: str) -> None:
        """Count a task of the invocation as no longer running."""
        self.running[invocation] -= 1
        if not self.running[invocation]:
            del self.running[invocation]
        self._rerank(invocation)
        self._forget_idle(invocation)

    def _rank(self, invocation: str) -> tuple[int, int]:
        return self.running.get(invocation, 0), self._served.get(invocation, 0)

    def _rerank(self, invocation: str) -> None:
        rank = self._rank(invocation)
        for requirements, priority in self._levels_of.get(invocation, ()):
            self.shapes[requirements].levels[priority].ranks.set(invocation, rank)

    def _forget_idle(self, invocation: str) -> None:
        if invocation not in self.running and invocation not in self._levels_of:
            self._served.pop(invocation, None)

    def best(self, shapes: Iterable[Shape], worker_id: str, alone: Callable[[Shape], bool]) -> Task | None:
        """Return the next task for the worker out of these shapes, or None. It stays queued.

        `alone(shape)` tells whether the worker is the only one that can run the shape now, so that a task
        that failed on it must be tried on it again.
        """
        shapes = list(shapes)
        for shape in shapes:
            for task in shape.retries.values():
                if worker_id not in task.failed_on or alone(shape):
                    return task
        heads = [(head, shape) for shape in shapes if (head := shape.order.peek())]
        if not heads:
            return None
        (_, first_id), first_shape = min(heads, key=lambda pair: pair[0])
        priority = first_shape.tasks[first_id].priority
        levels = [shape.levels[priority] for _, shape in heads if priority in shape.levels]
        ranked = [(rank, level) for level in levels if (rank := level.ranks.peek())]
        (_, invocation), level = min(ranked, key=lambda pair: pair[0])
        return next(iter(level.invocations[invocation].values()))
