"""The process of `tvix serve`: claims folder and ports, starts the others, keeps them running, ends them in order.

    supervisor ── scheduler   Execution, Operations, WorkerService on a socket in the state folder; evictor
               ├─ front-N     everything, on the two ports; passes execution on to the scheduler
               └─ worker      runs actions

It serves nothing and opens no store, so there is little that could bring it down. Start: the scheduler
first (it repairs the store), then the rest at once. End: the fronts take no new calls while the worker
finishes its actions; then the fronts drop what is left; the scheduler goes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence

from tvix.errors import FailedPrecondition, Unavailable
from tvix.server.address import Address, claim_port, refuse_strangers
from tvix.server.child import Assignment, first_cause
from tvix.server.config import Config
from tvix.server.process import Process
from tvix.server.state import locked

log = logging.getLogger(__name__)

STARTING_SECONDS = 60.0
HURRY_SECONDS = 3.0
"""How long a process that was told to hurry gets before it is killed."""


class Supervisor:
    """All processes of one server."""

    def __init__(self, config: Config, grpc: Address, http: socket.socket) -> None:
        self.config = config
        self.grpc = grpc
        self.http = Address(*http.getsockname()[:2])
        self.scheduler = self._process("scheduler", "scheduler")
        self.fronts = [
            self._process("front", f"front-{number}", grpc_port=grpc.port, http_fd=http.fileno())
            for number in range(config.server.fronts)
        ]
        has_worker = config.execution.enabled and config.worker.slots > 0
        self.workers = [self._process("worker", "worker")] if has_worker else []
        self._draining = asyncio.Event()
        self._hurried = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Supervisor of {', '.join(process.name for process in self.processes)}>"

    def _process(self, role: str, name: str, *, grpc_port: int = 0, http_fd: int = -1) -> Process:
        assignment = Assignment(
            name=name, config=self.config, supervisor_pid=os.getpid(), grpc_port=grpc_port, http_fd=http_fd
        )
        environment = {
            "PROMETHEUS_MULTIPROC_DIR": str(self.config.state.metrics),
            # We never fork; gRPC's preparations for it can hang in a process that starts others.
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            # Large buffers pass from thread to thread; an arena for each of them would keep what others need.
            "MALLOC_ARENA_MAX": "2",
        }
        return Process(f"tvix.server.{role}", assignment, environment, [http_fd] if http_fd >= 0 else [])

    @property
    def processes(self) -> list[Process]:
        """All children."""
        return [self.scheduler, *self.fronts, *self.workers]

    def stop(self) -> None:
        """Take one request to end: the first drains, the second ends at once."""
        if self._draining.is_set():
            self._hurried.set()
        self._draining.set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Run until `stop`; call `on_ready` when all serve. Raises Unavailable when a child can't be started."""
        try:
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(self._start(tasks, on_ready))
                await self._draining.wait()
                starting.cancel()
                await self._drain()
        except BaseExceptionGroup as group:
            raise first_cause(group) from group

    async def _start(self, tasks: asyncio.TaskGroup, on_ready: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(STARTING_SECONDS):
                tasks.create_task(self.scheduler.keep_running())
                await self.scheduler.ready.wait()
                for process in [*self.fronts, *self.workers]:
                    tasks.create_task(process.keep_running())
                for process in self.processes:
                    await process.ready.wait()
        except TimeoutError as error:
            late = [process.name for process in self.processes if not process.ready.is_set()]
            raise Unavailable(f"not ready after {STARTING_SECONDS:.0f} s: {', '.join(late)}") from error
        on_ready()

    async def _drain(self) -> None:
        log.info("draining seconds=%g", self.config.server.drain_seconds)
        for process in [*self.fronts, *self.workers]:
            process.stop()
        # Without a worker of ours, actions may still be running elsewhere, awaited through the fronts.
        await self._ended(self.workers or self.fronts, self.config.server.drain_seconds)
        await self._hurry([*self.fronts, *self.workers])
        await self._hurry([self.scheduler])

    async def _hurry(self, processes: Sequence[Process]) -> None:
        for process in processes:
            process.stop()
        await self._ended(processes, HURRY_SECONDS)
        for process in processes:
            process.kill()

    async def _ended(self, processes: Sequence[Process], seconds: float) -> None:
        """Wait until the processes are gone, but not longer than that, nor beyond a second request to end."""

        async def all_ended() -> None:
            for process in processes:
                await process.ended.wait()

        waits = [asyncio.ensure_future(all_ended()), asyncio.ensure_future(self._hurried.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)


async def supervise(config: Config, on_ready: Callable[[Supervisor], None]) -> None:
    """Run a server until SIGTERM or SIGINT. Raises FailedPrecondition when it may not or can't be started."""
    if not config.server.insecure:
        refuse_strangers("--grpc", config.server.grpc)
        refuse_strangers("--http", config.server.http)
    with contextlib.ExitStack() as held:
        held.enter_context(locked(config.state))
        grpc_holder, grpc_address = claim_port("--grpc", config.server.grpc)
        held.enter_context(grpc_holder)
        http = held.enter_context(listen("--http", config.server.http))
        supervisor = Supervisor(config, grpc_address, http)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, supervisor.stop)
        await supervisor.run(lambda: on_ready(supervisor))


def listen(option: str, address: Address) -> socket.socket:
    """Return a listening socket that children share; connections wait in it while a child is restarted."""
    try:
        return socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
            backlog=1024,
        )
    except OSError as error:
        holder, _ = claim_port(option, address)  # the same error, in words
        holder.close()
        raise FailedPrecondition(f"{option} {address}: {error.strerror}; choose another with {option}") from error
