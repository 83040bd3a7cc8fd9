"""The worker's side of the mount: starts the process that serves it, talks to it, notices its death.

The conversation is described in fuse_process.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvix.cas.digest import Digest
from tvix.errors import InvalidDirectory, MissingBlobs, TvixError, Unavailable
from tvix.executor.input_tree import digest_from_tree_name, tree_name
from tvix.executor.mounts import detach
from tvix.executor.scratch import run_blocking


@dataclass(frozen=True, slots=True)
class FuseConfig:
    """How the mount's process is run."""

    store_url: str
    """The store it reads, which must be the worker's."""
    command: Sequence[str] = (sys.executable, "-m", "tvix.executor.fuse_process")
    start_seconds: float = 30.0
    answer_seconds: float = 150.0
    """Longer than the process gives a store to answer."""


@dataclass(slots=True)
class Faults:
    """What could not be read in one use of a tree."""

    missing: set[Digest] = field(default_factory=set)
    error: TvixError | None = None
    """The first failure that is not a missing blob."""


class MountProcess:
    """One process and its mount, from start to death."""

    def __init__(
        self, mountpoint: Path, process: asyncio.subprocess.Process, control: socket.socket, config: FuseConfig
    ) -> None:
        self.mountpoint = mountpoint
        self._process = process
        self._control = control
        self._config = config
        self._received = b""
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._faults: dict[int, Faults] = {}
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.alive = True
        asyncio.get_running_loop().add_reader(control, self.receive)

    def __repr__(self) -> str:
        return f"<MountProcess {self._process.pid} at {self.mountpoint}>"

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @classmethod
    async def start(cls, mountpoint: Path, config: FuseConfig) -> MountProcess:
        """Start a process and wait for its mount. Raises Unavailable when there is none in time."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        arguments = [
            *(*config.command, "--store", config.store_url, "--mountpoint", str(mountpoint)),
            *("--control", str(theirs.fileno()), "--parent", str(os.getpid())),
        ]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *arguments, stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        started = cls(mountpoint, process, ours, config)
        try:
            async with asyncio.timeout(config.start_seconds):
                await started._ready
        except BaseException as error:
            await started.stop()
            if isinstance(error, TimeoutError):
                reason = f"the mount at {mountpoint} was not ready in {config.start_seconds:g} s"
                raise Unavailable(reason) from error
            raise
        return started

    async def open_tree(self, root: Digest) -> int:
        """Announce an action's use of a tree; return the handle of this use.

        Raises MissingBlobs if the root Directory is absent, InvalidDirectory if it is malformed, Unavailable.
        """
        number = next(self._numbers)
        await self._ask(number, {"op": "open", "tree": tree_name(root)})
        self._faults[number] = Faults()
        return number

    def close_tree(self, handle: int) -> None:
        """Say that the use is over."""
        self._faults.pop(handle, None)
        with contextlib.suppress(Unavailable):
            self._send({"op": "close", "handle": handle})

    def faults(self, handle: int) -> Faults:
        """Return all that could not be read in this use until now."""
        if self.alive:
            self.receive()
        faults = self._faults[handle]
        if not self.alive:
            faults.error = faults.error or self._dead()
        return faults

    async def stats(self) -> dict[str, Any]:
        """Return the counts of requests by kind, of nodes and of open trees."""
        return await self._ask(next(self._numbers), {"op": "stats"})

    async def _ask(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self._send({"id": number, **request})
            async with asyncio.timeout(self._config.answer_seconds):
                message = await answer
        except TimeoutError as error:
            # Its readers hang as well, and cannot be killed before it is.
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            raise Unavailable(f"the process of the mount at {self.mountpoint} does not answer") from error
        finally:
            del self._answers[number]
        if "error" in message:
            raise error_from_json(message)
        return message

    def _send(self, message: dict[str, Any]) -> None:
        if not self.alive:
            raise self._dead()
        try:
            self._control.send(json.dumps(message).encode() + b"\n")
        except OSError as error:
            # A full buffer means that some thousand requests went unanswered.
            self._died()
            raise self._dead() from error

    def receive(self) -> None:
        """Take in what the process has sent until now."""
        while self.alive:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._died()
                return
            *lines, self._received = (self._received + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "ready":
            _settle(self._ready, message)
        elif message.get("event") == "fault":
            for handle in message["handles"]:
                if handle in self._faults:
                    _add(self._faults[handle], message)
        elif message["id"] in self._answers:
            _settle(self._answers[message["id"]], message)

    def _died(self) -> None:
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            for waiting in (self._ready, *self._answers.values()):
                if not waiting.done():
                    waiting.set_exception(self._dead())
            self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())

    def _dead(self) -> Unavailable:
        return Unavailable(f"the process of the mount at {self.mountpoint} has died; try again")

    async def wait_dead(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()
        self._died()

    async def stop(self) -> None:
        """End the process and its mount; whatever still uses it gets errors."""
        with contextlib.suppress(OSError):
            await run_blocking(detach, self.mountpoint)
        self._died()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        with contextlib.suppress(OSError):
            await run_blocking(self.mountpoint.rmdir)


def _settle(future: asyncio.Future[dict[str, Any]], message: dict[str, Any]) -> None:
    if not future.done():
        future.set_result(message)


def _add(faults: Faults, message: dict[str, Any]) -> None:
    error = error_from_json(message)
    if isinstance(error, MissingBlobs):
        faults.missing.update(error.digests)
    elif faults.error is None:
        faults.error = error


def error_from_json(message: dict[str, Any]) -> TvixError:
    """Return the error that an answer or event tells of."""
    if message["error"] == "missing":
        return MissingBlobs(filter(None, map(digest_from_tree_name, message["missing"])))
    if message["error"] == "invalid":
        return InvalidDirectory(message["message"])
    return Unavailable(message["message"])
