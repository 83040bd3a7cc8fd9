"""The state machine, event by event."""

from __future__ import annotations

from typing import Any

import pytest

from tvix.executor.build_queue import BuildQueue
from tvix.executor.platform_policy import Offer, Property, Requirements
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

T0 = 1000.0
LINUX = Requirements(exact=(Property("osfamily", "linux"),))
WINDOWS = Requirements(exact=(Property("osfamily", "windows"),))
CONFIG = QueueConfig(
    lease_timeout_seconds=20,
    abandon_seconds=60,
    cancel_timeout_seconds=30,
    startup_grace_seconds=60,
    worker_grace_seconds=120,
    ageing_seconds=300,
)


def make_queue(**changes: Any) -> BuildQueue:
    return BuildQueue(QueueConfig(**{**_fields(CONFIG), **changes}), T0)


def _fields(config: QueueConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in QueueConfig.__slots__}


def make_worker(worker_id: str = "w1", slots: int = 1, os_family: str = "linux", **fields: Any) -> Worker:
    numbers = {"cpu": fields.get("cpu_millis", 0), "memory": fields.get("memory_bytes", 0)}
    return Worker(worker_id, Offer({"osfamily": frozenset({os_family})}, numbers), slots, **fields)


def submit(queue: BuildQueue, name: str, now: float = T0, **fields: Any) -> Task:
    fields.setdefault("requirements", LINUX)
    return queue.submit(Task(name, submitted_at=now, **fields), f"op-{name}", now)


def assigned(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.task.id, event.lease.worker_id) for event in events if isinstance(event, Assigned)]


def finish(queue: BuildQueue, task: Task, now: float) -> None:
    assert task.lease is not None
    assert queue.finish(task.lease.id, task.lease.worker_id, now) is task
    queue.complete(task)


def test_a_task_is_leased_to_a_free_worker_at_once() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a")
    assert assigned(queue.take_events()) == [("a", "w1")]
    assert task.state is State.RUNNING
    finish(queue, task, T0)
    assert not queue.tasks
    assert not queue.leases
    assert queue.take_events() == []


def test_a_worker_that_connects_takes_what_waits_up_to_its_slots() -> None:
    queue = make_queue()
    for name in "abc":
        submit(queue, name)
    queue.connect(make_worker(slots=2), (), T0)
    assert assigned(queue.take_events()) == [("a", "w1"), ("b", "w1")]


def test_finishing_makes_room_for_the_next() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    first = submit(queue, "a")
    submit(queue, "b")
    queue.take_events()
    finish(queue, first, T0)
    assert assigned(queue.take_events()) == [("b", "w1")]


def test_the_emptiest_worker_is_taken() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1", slots=2), (), T0)
    queue.connect(make_worker("w2", slots=2), (), T0)
    for name in "abcd":
        submit(queue, name)
    assert [worker for _, worker in assigned(queue.take_events())] == ["w1", "w2", "w1", "w2"]


def run_order(queue: BuildQueue, worker: Worker, now: float) -> list[str]:
    """Let one worker run everything; return the order."""
    queue.connect(worker, (), now)
    order: list[str] = []
    while found := assigned(queue.take_events()):
        for name, _ in found:
            order.append(name)
            finish(queue, queue.tasks[name], now)
    return order


@pytest.mark.parametrize(
    ("reason", "tasks", "order"),
    [
        ("first come, first served", [("a", 0, 0, ""), ("b", 0, 1, ""), ("c", 0, 2, "")], "abc"),
        ("a lower number is sooner", [("a", 5, 0, ""), ("b", -5, 1, ""), ("c", 0, 2, "")], "bca"),
        (
            "a step of priority is worth 300 s of waiting",
            [("a", 1, 0, ""), ("b", 0, 299, ""), ("c", 0, 301, "")],
            "bac",
        ),
        ("invocations take turns", [("a", 0, 0, "x"), ("b", 0, 1, "x"), ("c", 0, 2, "y"), ("d", 0, 3, "y")], "acbd"),
        ("priority goes before turns", [("a", 0, 0, "x"), ("b", 0, 1, "x"), ("c", 1, 2, "y")], "abc"),
    ],
)
def test_order(reason: str, tasks: list[tuple[str, int, float, str]], order: str) -> None:
    queue = make_queue(startup_grace_seconds=1000)
    for name, priority, after, invocation in tasks:
        submit(queue, name, T0 + after, priority=priority, invocation=invocation)
    assert "".join(run_order(queue, make_worker(), T0 + 400)) == order, reason


def test_the_invocation_with_fewer_running_tasks_is_served() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1", slots=3), (), T0)
    big = [submit(queue, f"big{i}", invocation="big") for i in range(9)]
    small = [submit(queue, f"small{i}", invocation="small") for i in range(3)]
    queue.take_events()
    finish(queue, big[0], T0)
    finish(queue, big[1], T0)
    finish(queue, big[2], T0)
    served = [name for name, _ in assigned(queue.take_events())]
    assert served == ["small0", "big3", "small1"]
    finish(queue, queue.tasks["big3"], T0)
    assert assigned(queue.take_events()) == [("big4", "w1")]
    finish(queue, small[0], T0)
    finish(queue, small[1], T0)
    assert assigned(queue.take_events()) == [("small2", "w1"), ("big5", "w1")]


def test_fairness_holds_across_requirements() -> None:
    queue = make_queue()
    worker = make_worker(slots=1, memory_bytes=10)
    for i in range(4):
        submit(queue, f"big{i}", T0 + i, invocation="big")
    needs = Requirements(exact=LINUX.exact, memory_bytes=5)
    submit(queue, "small0", T0 + 10, invocation="small", requirements=needs)
    assert run_order(queue, worker, T0 + 20) == ["big0", "small0", "big1", "big2", "big3"]


def test_equal_tasks_in_flight_are_one() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    first = submit(queue, "a", merge_key="k")
    second = queue.submit(Task("b", LINUX, "k"), "op-b", T0)
    assert second is first
    assert first.operations == {"op-a", "op-b"}
    assert assigned(queue.take_events()) == [("a", "w1")]
    assert first.lease
    queue.finish(first.lease.id, "w1", T0)
    assert queue.find("k") is first, "until the result is recorded, others must not run it again"
    queue.complete(first)
    assert queue.find("k") is None


def test_a_more_urgent_operation_pulls_the_task_forward() -> None:
    queue = make_queue()
    submit(queue, "a", priority=0)
    submit(queue, "b", priority=5, merge_key="k")
    queue.submit(Task("c", LINUX, "k", priority=-5), "op-c", T0)
    assert run_order(queue, make_worker(), T0) == ["b", "a"]


def test_an_operation_nobody_watches_is_dropped_with_its_run() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a", merge_key="k")
    queue.watch("op-a")
    queue.unwatch("op-a", T0 + 10)
    queue.heartbeat("w1", [task.lease.id] if task.lease else [], T0 + 60)
    queue.expire(T0 + 69)
    queue.take_events()
    lease = task.lease
    assert lease
    queue.heartbeat("w1", [lease.id], T0 + 69)
    queue.expire(T0 + 70)
    assert queue.take_events() == [Abandoned("op-a"), StopLease("w1", lease.id), Dropped(task)]
    assert queue.find("k") is None
    assert queue.leases, "the place stays taken until the worker says that the process is gone"
    assert queue.finish(lease.id, "w1", T0 + 71) is None
    assert not queue.leases


def test_a_watched_operation_lives_on() -> None:
    queue = make_queue()
    submit(queue, "a")
    queue.connect(make_worker(os_family="linux"), (), T0)
    queue.watch("op-a")
    queue.watch("op-a")
    queue.unwatch("op-a", T0)
    queue.take_events()
    task = queue.tasks["a"]
    for second in range(1, 100):
        queue.heartbeat("w1", [task.lease.id] if task.lease else [], T0 + second)
        queue.expire(T0 + second)
    assert queue.take_events() == []


def test_one_of_two_operations_leaving_changes_nothing() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a", merge_key="k")
    queue.submit(Task("b", LINUX, "k"), "op-b", T0)
    queue.take_events()
    assert queue.cancel_operation("op-a", T0)
    assert queue.take_events() == []
    assert task.state is State.RUNNING
    assert queue.cancel_operation("op-b", T0)
    assert isinstance(queue.take_events()[0], StopLease)
    assert not queue.cancel_operation("op-b", T0)


def test_cancelling_a_queued_task_takes_it_out() -> None:
    queue = make_queue()
    task = submit(queue, "a")
    queue.cancel_operation("op-a", T0)
    assert queue.take_events() == [Dropped(task)]
    assert run_order(queue, make_worker(), T0) == []


def test_a_worker_that_does_not_stop_when_told_is_dropped() -> None:
    queue = make_queue()
    queue.connect(make_worker(slots=2), (), T0)
    submit(queue, "a")
    other = submit(queue, "b")
    queue.cancel_operation("op-a", T0)
    queue.take_events()
    for second in (10, 20, 29):
        queue.heartbeat("w1", list(queue.leases), T0 + second)
        queue.expire(T0 + second)
        queue.take_events()
    queue.expire(T0 + 30)
    events = queue.take_events()
    assert isinstance(events[0], WorkerDropped)
    assert "did not stop" in events[0].reason
    assert [event.task for event in events if isinstance(event, Requeued)] == [other]
    assert not queue.leases


def test_a_silent_worker_loses_its_leases_and_others_take_them() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1"), (), T0)
    task = submit(queue, "a")
    queue.connect(make_worker("w2"), (), T0)
    queue.take_events()
    queue.heartbeat("w2", (), T0 + 19)
    assert queue.expire(T0 + 19.5) == T0 + 20
    queue.expire(T0 + 20)
    events = queue.take_events()
    assert [type(event) for event in events] == [WorkerDropped, Requeued, Assigned]
    assert assigned(events) == [("a", "w2")]
    assert task.attempts == 2
    assert task.failures == ["w1: silent for 20 s"]


def test_the_lost_lease_is_refused_when_its_worker_comes_late() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1"), (), T0)
    task = submit(queue, "a")
    assert task.lease
    old = task.lease.id
    queue.expire(T0 + 20)
    assert queue.connect(make_worker("w1"), [old], T0 + 25) == [old]
    assert queue.finish(old, "w1", T0 + 26) is None
    assert task.state is State.RUNNING


def test_a_task_is_given_up_after_its_last_try() -> None:
    queue = make_queue(max_attempts=3)
    task = submit(queue, "a")
    for attempt in range(3):
        queue.connect(make_worker(f"w{attempt}"), (), T0)
        queue.take_events()
        queue.drain(f"w{attempt}")
        queue.disconnect(f"w{attempt}", T0)
        queue.expire(T0 + 20)
        queue.expire(T0 + 20)
    assert task.state is State.GONE
    assert isinstance(queue.take_events()[-1], Lost)
    assert [failure.partition(":")[0] for failure in task.failures] == ["w0", "w1", "w2"]


def test_a_worker_that_reconnects_in_time_goes_on() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a")
    assert task.lease
    queue.disconnect("w1", T0 + 1)
    queue.expire(T0 + 15)
    assert queue.connect(make_worker(), [task.lease.id], T0 + 15) == []
    queue.expire(T0 + 34)
    assert [type(event) for event in queue.take_events()] == [Assigned]
    assert queue.finish(task.lease.id, "w1", T0 + 34) is task


def test_a_worker_that_comes_back_without_its_lease_gets_the_task_again() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a")
    queue.take_events()
    queue.connect(make_worker(), (), T0 + 1)
    events = queue.take_events()
    assert [type(event) for event in events] == [Requeued, Assigned]
    assert task.attempts == 2


def test_a_retry_goes_to_another_worker_if_there_is_one() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1"), (), T0)
    task = submit(queue, "a")
    queue.connect(make_worker("w2"), (), T0)
    blocker = submit(queue, "b")
    queue.take_events()
    assert task.lease
    queue.finish(task.lease.id, "w1", T0)
    assert queue.retry(task, "w1", "its sandbox is broken", T0)
    assert assigned(queue.take_events()) == []
    finish(queue, blocker, T0)
    assert assigned(queue.take_events()) == [("a", "w2")]


def test_retries_end() -> None:
    queue = make_queue(max_attempts=2)
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a")
    assert task.lease
    queue.finish(task.lease.id, "w1", T0)
    assert queue.retry(task, "w1", "x", T0)
    assert task.lease
    queue.finish(task.lease.id, "w1", T0)
    assert not queue.retry(task, "w1", "x", T0)
    queue.complete(task)


def test_a_report_of_another_workers_lease_is_ignored() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1"), (), T0)
    queue.connect(make_worker("w2"), (), T0)
    task = submit(queue, "a")
    assert task.lease
    assert queue.finish(task.lease.id, "w2", T0) is None
    assert task.state is State.RUNNING


def test_a_lease_the_worker_stops_naming_is_lost() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a")
    queue.take_events()
    for second in range(5, 21, 5):
        queue.heartbeat("w1", (), T0 + second)
    queue.expire(T0 + 20)
    assert [type(event) for event in queue.take_events()] == [Requeued, Assigned]
    assert task.attempts == 2


def test_a_heartbeat_naming_an_unknown_lease_is_told_to_stop_it() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    queue.heartbeat("w1", ["who"], T0)
    assert queue.take_events() == [StopLease("w1", "who")]


def test_what_no_worker_can_run_is_refused_with_what_lacks() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a", requirements=WINDOWS)
    assert queue.take_events() == [Refused(task, [Property("osfamily", "windows")])]
    assert not queue.tasks


def test_without_workers_tasks_wait_only_through_the_first_grace() -> None:
    queue = make_queue()
    task = submit(queue, "a")
    assert queue.expire(T0 + 59) == T0 + 60
    assert queue.take_events() == []
    queue.watch("op-a")
    queue.expire(T0 + 60)
    assert queue.take_events() == [Refused(task, [])]
    late = submit(queue, "b", T0 + 70)
    assert queue.take_events() == [Refused(late, [])]


def test_tasks_wait_for_a_worker_that_went_away_until_it_is_forgotten() -> None:
    queue = make_queue()
    queue.connect(make_worker("w1"), (), T0)
    queue.connect(make_worker("w2", os_family="windows"), (), T0)
    queue.disconnect("w2", T0)
    task = submit(queue, "a", requirements=WINDOWS)
    queue.watch("op-a")
    for second in range(10, 120, 10):
        queue.heartbeat("w1", (), T0 + second)
        queue.expire(T0 + second)
    assert queue.take_events() == []
    queue.heartbeat("w1", (), T0 + 119)
    queue.expire(T0 + 120)
    assert queue.take_events() == [Refused(task, [Property("osfamily", "windows")])]


def test_a_draining_worker_takes_no_more() -> None:
    queue = make_queue()
    queue.connect(make_worker(slots=2), (), T0)
    first = submit(queue, "a")
    assert queue.drain("w1")
    assert not queue.drain("nobody")
    submit(queue, "b")
    assert assigned(queue.take_events()) == [("a", "w1")]
    finish(queue, first, T0)
    assert assigned(queue.take_events()) == []
    queue.disconnect("w1", T0)
    assert not queue.workers


def needs(cpu_millis: int = 0, memory_bytes: int = 0) -> Requirements:
    return Requirements(LINUX.exact, (), cpu_millis, memory_bytes)


def test_resources_are_taken_and_given_back() -> None:
    queue = make_queue()
    worker = make_worker(slots=4, cpu_millis=2000, memory_bytes=100)
    queue.connect(worker, (), T0)
    first = submit(queue, "a", requirements=needs(1500, 10))
    submit(queue, "b", requirements=needs(1000, 10))
    submit(queue, "c", requirements=needs(500, 10))
    assert [name for name, _ in assigned(queue.take_events())] == ["a", "c"]
    assert (worker.used_cpu_millis, worker.used_memory_bytes) == (2000, 20)
    finish(queue, first, T0)
    assert assigned(queue.take_events()) == [("b", "w1")]
    finish(queue, queue.tasks["b"], T0)
    finish(queue, queue.tasks["c"], T0)
    assert (worker.used_cpu_millis, worker.used_memory_bytes) == (0, 0)


def test_a_big_task_that_waits_long_gets_a_worker_kept_free() -> None:
    queue = make_queue(reserve_after_seconds=30)
    queue.connect(make_worker(slots=2, cpu_millis=2000), (), T0)
    small = [submit(queue, f"s{i}", requirements=needs(1000)) for i in range(6)]
    submit(queue, "big", T0, requirements=needs(2000))
    queue.take_events()
    finish(queue, small[0], T0 + 10)
    assert assigned(queue.take_events()) == [("s2", "w1")]
    finish(queue, small[1], T0 + 31)
    assert assigned(queue.take_events()) == []
    finish(queue, small[2], T0 + 32)
    assert assigned(queue.take_events()) == [("big", "w1")]
    finish(queue, queue.tasks["big"], T0 + 33)
    assert [name for name, _ in assigned(queue.take_events())] == ["s3", "s4"]


def test_an_estimate_beyond_the_worker_takes_the_whole_worker() -> None:
    queue = make_queue()
    queue.connect(make_worker(slots=2, cpu_millis=1000), (), T0)
    submit(queue, "a", requirements=needs(64_000))
    submit(queue, "b", requirements=needs(1))
    assert assigned(queue.take_events()) == [("a", "w1")]


def test_restored_leases_wait_for_their_worker() -> None:
    queue = make_queue()
    queue.remember(make_worker("w1"), T0)
    running = Task("a", LINUX, attempts=1)
    waiting = Task("b", LINUX)
    queue.restore(running, ["op-a"], ("lease-x", "w1"), T0)
    queue.restore(waiting, ["op-b"], None, T0)
    assert queue.take_events() == []
    assert queue.connect(make_worker("w1"), ["lease-x"], T0 + 5) == []
    assert assigned(queue.take_events()) == []
    assert queue.finish("lease-x", "w1", T0 + 6) is running
    assert assigned(queue.take_events()) == [("b", "w1")]


def test_a_restored_lease_of_an_unknown_worker_is_lost_in_time() -> None:
    queue = make_queue()
    task = Task("a", LINUX, attempts=1)
    queue.restore(task, ["op-a"], ("lease-x", "gone"), T0)
    queue.connect(make_worker("w2"), (), T0)
    queue.heartbeat("w2", (), T0 + 19)
    queue.expire(T0 + 20)
    assert [type(event) for event in queue.take_events()] == [Requeued, Assigned]


def test_all_silent_workers_go_before_anything_is_tried_again() -> None:
    queue = make_queue()
    for name in ("w1", "w2", "w3"):
        queue.connect(make_worker(name), (), T0)
    task = submit(queue, "a")
    queue.watch("op-a")
    queue.take_events()
    queue.expire(T0 + 500)
    assert [type(event) for event in queue.take_events()] == [WorkerDropped, Requeued, WorkerDropped, WorkerDropped]
    assert task.attempts == 1


def test_after_a_standstill_of_our_own_workers_get_their_time_again() -> None:
    queue = make_queue()
    queue.connect(make_worker(), (), T0)
    task = submit(queue, "a")
    queue.watch("op-a")
    queue.take_events()
    queue.postpone(500)
    assert queue.expire(T0 + 500) == T0 + 520
    assert queue.take_events() == []
    assert task.lease
    queue.heartbeat("w1", [task.lease.id], T0 + 501)
    assert queue.expire(T0 + 502) == T0 + 521


def test_tens_of_thousands_queued_stay_quick() -> None:
    """A step costs the same with 10,000 tasks queued as with few: the whole run takes seconds otherwise."""
    queue = make_queue()
    for i in range(10_000):
        submit(queue, f"{i}", T0 + i * 1e-3, invocation=f"i{i % 2000}", priority=i % 7)
    order = run_order(queue, make_worker(slots=50), T0 + 60)
    assert len(order) == 10_000
    assert not queue.ready.shapes
    assert not queue.ready.running
