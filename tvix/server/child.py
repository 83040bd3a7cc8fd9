"""What the processes of a server share: how one is told what to be, says that it is ready, and ends.

The supervisor starts `python -m tvix.server.<role>` in a session of its own, writes one JSON line (an
Assignment) to its stdin, and reads one line from its stdout when the child serves. SIGTERM asks it to
drain, a second one to drop what is left. When the supervisor dies the kernel kills the child.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from tvix.errors import TvixError, codes_of
from tvix.server.config import Config
from tvix.server.logs import set_up_logging

PR_SET_PDEATHSIG = 1
READY = "ready"


class Assignment(BaseModel):
    """What a child is told on its stdin."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    """For logs: front-0, scheduler, …"""
    config: Config
    supervisor_pid: int
    grpc_port: int = 0
    """The port that fronts share."""
    http_fd: int = -1
    """A listening socket that fronts share."""


@dataclass(slots=True)
class Child:
    """A process's view of itself."""

    assignment: Assignment
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is to finish what it has and take nothing new."""
    hurried: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is to drop what is left."""

    @property
    def config(self) -> Config:
        """The server's configuration."""
        return self.assignment.config

    def ready(self) -> None:
        """Tell the supervisor that this process serves."""
        print(READY, flush=True)

    def stop(self) -> None:
        """Take one request to end: the first drains, the second hurries."""
        if self.draining.is_set():
            self.hurried.set()
        self.draining.set()


def run_child(main: Callable[[Child], Awaitable[None]], prepare: Callable[[], None] = lambda: None) -> None:
    """Read the assignment, run `main` to its end on uvloop, and exit with the code of what it raised.

    `prepare` runs before there are threads or an event loop.
    """
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    set_up_logging(assignment.name, assignment.config.server.log_level)
    prepare()
    die_with(assignment.supervisor_pid)
    import uvloop

    tune_collector()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(main, assignment))
    except (TvixError, BaseExceptionGroup) as error:
        cause = first_cause(error)
        if not isinstance(cause, TvixError):
            raise
        print(f"tvix: error: {assignment.name}: {cause}", file=sys.stderr)
        sys.exit(codes_of(cause).exit)


def tune_collector() -> None:
    """Let the cyclic collector leave alone what was imported, and look seldom: messages hold no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def first_cause(error: BaseException) -> BaseException:
    """Return what a group of exceptions is about: the first error of ours in it, else its first one."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [first_cause(inner) for inner in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, TvixError)), causes[0])


async def _run(main: Callable[[Child], Awaitable[None]], assignment: Assignment) -> None:
    child = Child(assignment)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, child.stop)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    await main(child)


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)
