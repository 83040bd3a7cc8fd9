"""The worker process: what has to happen before, around and after the worker's event loop.

The private mount namespace comes first, while there is one thread only; then signals: the first SIGTERM
or SIGINT drains, the second stops everything.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import uvloop

from tvix.errors import FailedPrecondition
from tvix.executor.mounts import enter_private_namespace
from tvix.executor.worker import RunAction, Worker, WorkerConfig

log = logging.getLogger(__name__)

OpenWorker = Callable[[], AbstractAsyncContextManager[tuple[WorkerConfig, RunAction]]]
"""Opens what a worker needs (store, build roots, sandbox) on its loop, and closes it afterwards."""


def run_worker_process(open_worker: OpenWorker) -> None:
    """Run a worker until it is drained. Call in a process of its own, before any thread is started."""
    prepare_worker_process()
    uvloop.run(_work(open_worker))


def prepare_worker_process() -> None:
    """Enter the private mount namespace, if there can be one, and allow many open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        enter_private_namespace()
    except FailedPrecondition as error:
        log.warning("worker has no mount namespace of its own, input roots will be copied: %s", error)


async def _work(open_worker: OpenWorker) -> None:
    async with open_worker() as (config, run_action):
        worker = Worker(config, run_action)
        stop_on_signals(worker)
        await worker.run()


def stop_on_signals(worker: Worker) -> None:
    """Drain on the first SIGTERM or SIGINT, kill on the second."""
    signals_seen = 0

    def stop() -> None:
        nonlocal signals_seen
        signals_seen += 1
        log.info("worker=%r %s", worker, "drains" if signals_seen == 1 else "stops at once")
        worker.drain() if signals_seen == 1 else worker.kill()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
