"""The arrangement of queued tasks. Which one is next: test_build_queue.py."""

from __future__ import annotations

from tvix.executor.platform_policy import Requirements
from tvix.executor.queue_model import Task
from tvix.executor.ready_tasks import ReadyTasks

ANY = Requirements()


def make_ready(*tasks: Task) -> ReadyTasks:
    ready = ReadyTasks(ageing_seconds=300)
    for task in tasks:
        ready.add(ready.shape(task.requirements, lambda requirements: {"w"}), task)
    return ready


def names(ready: ReadyTasks) -> list[str]:
    order = []
    while task := ready.best(ready.shapes.values(), "w", lambda shape: True):
        order.append(task.id)
        ready.remove(task)
    return order


def test_nothing_is_left_when_all_are_taken() -> None:
    ready = make_ready(*(Task(f"t{i}", ANY, None, i % 3, f"i{i % 4}", float(i)) for i in range(24)))
    assert len(ready) == 24
    assert len(names(ready)) == 24
    assert (ready.shapes, ready.running, ready._served, ready._levels_of) == ({}, {}, {}, {})


def test_running_tasks_count_until_they_stop() -> None:
    ready = make_ready()
    ready.started("x")
    ready.started("x")
    assert ready.running == {"x": 2}
    ready.stopped("x")
    ready.stopped("x")
    assert (ready.running, ready._served) == ({}, {})


def test_a_retry_comes_first_but_not_where_it_failed() -> None:
    failed = Task("failed", ANY, failed_on={"w"}, priority=9)
    ready = make_ready(Task("new", ANY), failed)
    shapes = list(ready.shapes.values())
    best = [
        ready.best(shapes, "w", lambda shape: False),
        ready.best(shapes, "w", lambda shape: True),
        ready.best(shapes, "v", lambda shape: False),
    ]
    assert [task.id for task in best if task] == ["new", "failed", "failed"]


def test_a_task_taken_out_is_never_found() -> None:
    tasks = [Task(f"t{i}", ANY, submitted_at=float(i)) for i in range(3)]
    ready = make_ready(*tasks)
    ready.remove(tasks[1])
    assert names(ready) == ["t0", "t2"]
