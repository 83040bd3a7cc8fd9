"""What fits on a worker."""

from __future__ import annotations

import pytest

from tvix.executor.platform_policy import Offer, Requirements
from tvix.executor.queue_model import Lease, Task, Worker


@pytest.mark.parametrize(
    ("reason", "cpu", "memory", "busy", "fits"),
    [
        ("nothing asked", 0, 0, 0, True),
        ("exactly what is free", 500, 50, 0, True),
        ("too much CPU", 501, 0, 0, False),
        ("too much memory", 0, 51, 0, False),
        ("no slot", 0, 0, 2, False),
    ],
)
def test_fits(reason: str, cpu: int, memory: int, busy: int, fits: bool) -> None:
    worker = Worker("w", Offer({}, {}), 2, cpu_millis=1000, memory_bytes=100)
    worker.used_cpu_millis, worker.used_memory_bytes = 500, 50
    worker.leases = {str(i): Lease(str(i), Task("t"), "w", 1, 0.0) for i in range(busy)}
    assert worker.fits(Requirements(cpu_millis=cpu, memory_bytes=memory)) is fits, reason


def test_a_worker_of_unknown_size_is_not_limited() -> None:
    worker = Worker("w", Offer({}, {}), 1)
    assert worker.fits(Requirements(cpu_millis=10**6, memory_bytes=10**15))
    assert repr(worker) == "<Worker w connected, 0/1 slots>"
