"""One child process of the supervisor, kept running until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence

from tvix.errors import Unavailable
from tvix.server.child import READY, Assignment

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 5.0
STEADY_SECONDS = 30.0
"""A process that ran this long is started anew at once when it ends."""


class Process:
    """Starts `python -m MODULE`, hands it its assignment, and starts it again whenever it ends."""

    def __init__(
        self, module: str, assignment: Assignment, environment: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        self.assignment = assignment
        self.ready = asyncio.Event()
        """Set while the child serves."""
        self.ended = asyncio.Event()
        """Set while the child neither runs nor will be started again."""
        self._module = module
        self._environment = environment
        self._inherited = inherited
        self.ended.set()
        self._stop = asyncio.Event()
        self._running: asyncio.subprocess.Process | None = None

    def __repr__(self) -> str:
        return f"<Process {self.name} {'ready' if self.ready.is_set() else 'not ready'}>"

    @property
    def name(self) -> str:
        """The child's name in logs."""
        return self.assignment.name

    async def keep_running(self) -> None:
        """Start the child, and again whenever it ends; return when it ended after `stop` or `kill`.

        Raises Unavailable when it ends before it ever served: starting it again would not help.
        """
        backoff_seconds = FIRST_BACKOFF_SECONDS
        served = False
        self.ended.clear()
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                code = await self._run_once()
                served = served or self.ready.is_set()
                self.ready.clear()
                if self._stop.is_set():
                    return
                if not served:
                    raise Unavailable(f"the {self.name} process ended while starting ({_how(code)}); see above")
                log.warning("process=%s ended=%r restarting", self.name, _how(code))
                steady = time.monotonic() - started > STEADY_SECONDS
                backoff_seconds = FIRST_BACKOFF_SECONDS if steady else min(backoff_seconds * 2, MAX_BACKOFF_SECONDS)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), backoff_seconds)
        finally:
            self.ended.set()

    async def _run_once(self) -> int:
        process = self._running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **self._environment},
            pass_fds=self._inherited,
            # Ctrl-C in a terminal is for the supervisor alone, which then stops the others in order.
            start_new_session=True,
        )
        assert process.stdin
        assert process.stdout
        if self._stop.is_set():  # said while the child was being started
            process.terminate()
        try:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(self.assignment.model_dump_json().encode() + b"\n")
                process.stdin.close()
            async for line in process.stdout:
                if line.decode().strip() == READY:
                    self.ready.set()
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._running = None

    def stop(self) -> None:
        """Ask the child to drain; asked again, to hurry."""
        self._stop.set()
        if self._running and self._running.returncode is None:
            self._running.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the child at once."""
        self._stop.set()
        if self._running and self._running.returncode is None:
            self._running.kill()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
