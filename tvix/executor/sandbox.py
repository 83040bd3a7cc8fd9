"""Runs one program to its end and knows when everything it started is gone. Shared by all sandboxes.

A program is spawned without a fork of this large process (`posix_spawn`), waited for by a pidfd on
the event loop, and reaped with `wait4`, which gives its own resource usage and its children's. Its
output comes through pipes: reading a file while it grows would lose what a program writes after
reopening /dev/stdout, and a pipe lets us stop a flood.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tvix.errors import TvixError, Unavailable
from tvix.executor.command import DEFAULT_PATH
from tvix.executor.interfaces import Output, Process, Profile, Sandbox, Usage

PIPE_READ_BYTES = 256 * 1024
KILL_GRACE_SECONDS = 30.0
"""How long a killed tree may take to be gone: a process stuck in the kernel cannot be hurried."""

NOT_FOUND_EXIT_CODE = 127
NOT_EXECUTABLE_EXIT_CODE = 126
"""What shells answer for commands that cannot be started; we do the same, with a line on stderr, so
that a client shows it as any other failure of the command instead of retrying on another worker."""


_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
"""Signals given their default action in what we spawn: Python ignores SIGPIPE and SIGXFSZ."""

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def prepare_process() -> None:
    """Make this process fit to spawn sandboxes; called once by each of them, any number of times.

    Orphans below us become our children, so that we can wait for them and learn what they used, and
    descriptors that we inherited ourselves are not handed on.
    """
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)


class NullOutput:
    """Takes output and forgets it."""

    def write(self, chunk: bytes) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a spawned program ended."""

    status: int
    """As from `waitstatus_to_exitcode`: the exit code, or minus the signal."""
    timed_out: bool
    wall_seconds: float

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 + N when killed by signal N."""
        return self.status if self.status >= 0 else 128 - self.status


def usage_from_rusage(wall_seconds: float, rusage: resource.struct_rusage | None) -> Usage:
    """Return what the kernel counted for a process and the descendants that were waited for.

    Peak memory is that of the largest single process. Not for a process that we spawned ourselves:
    for it the kernel counts our own peak as well, having shared our memory until it executed.
    """
    if rusage is None:
        return Usage(wall_seconds=wall_seconds)
    return Usage(
        wall_seconds=wall_seconds,
        user_seconds=rusage.ru_utime,
        system_seconds=rusage.ru_stime,
        peak_memory_bytes=rusage.ru_maxrss * 1024,
        read_bytes=rusage.ru_inblock * 512,
        written_bytes=rusage.ru_oublock * 512,
    )


@dataclass(frozen=True, slots=True)
class Program:
    """What to spawn."""

    arguments: list[str]
    """The first is the absolute path of the file to execute."""
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[int, int] = field(default_factory=dict)
    """File descriptors of ours by the number under which the program finds them."""


async def run_program(
    program: Program,
    stdout: Output,
    stderr: Output,
    *,
    wall_seconds: float | None,
    kill: Callable[[int], None],
) -> Ended:
    """Spawn, wait for the end, pass output on as it comes; standard input is /dev/null.

    `kill(pid)` is called on timeout and on cancellation, and must make the program and all that it
    started end; the program's own end is awaited before this returns or raises CancelledError.
    Unavailable when the program cannot be spawned or does not die.
    """
    pipes = _Pipes()
    try:
        started = time.monotonic()
        pid = _spawn(program, pipes)
        pipes.attach(stdout, stderr)
        exited = _Exit(pid)
        try:
            timed_out = await _wait(exited, wall_seconds, lambda: kill(pid))
            ended = exited.reap()
        finally:
            exited.close()
        wall = time.monotonic() - started
        pipes.drain()
        return Ended(os.waitstatus_to_exitcode(ended[0]), timed_out, wall)
    finally:
        pipes.close()


def _spawn(program: Program, pipes: _Pipes) -> int:
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, pipes.out_write, 1),
        (os.POSIX_SPAWN_DUP2, pipes.err_write, 2),
    ]
    actions += [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in program.inherited.items()]
    try:
        return os.posix_spawn(
            program.arguments[0],
            program.arguments,
            program.environment,
            file_actions=actions,
            setsid=True,  # Ctrl-C in our terminal is for us to act on
            setsigmask=(),
            setsigdef=_SIGNALS,
        )
    except (OSError, ValueError) as exc:
        raise Unavailable(f"sandbox program {program.arguments[0]} cannot be started: {exc}") from exc


class _Pipes:
    """The two pipes through which output comes; both read ends are on the event loop."""

    def __init__(self) -> None:
        self._reads: dict[int, Output] = {}
        self.out_read, self.out_write = os.pipe()
        self.err_read, self.err_write = os.pipe()

    def attach(self, stdout: Output, stderr: Output) -> None:
        """Close our copies of the write ends and begin to pass on what comes."""
        loop = asyncio.get_running_loop()
        for write, read, output in (
            (self.out_write, self.out_read, stdout),
            (self.err_write, self.err_read, stderr),
        ):
            os.close(write)
            os.set_blocking(read, False)
            self._reads[read] = output
            loop.add_reader(read, self._pump, read)
        self.out_write = self.err_write = -1

    def _pump(self, read: int) -> bool:
        """Pass on one piece; False when there is none for now or ever."""
        try:
            chunk = os.read(read, PIPE_READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            asyncio.get_running_loop().remove_reader(read)
            return False
        self._reads[read].write(chunk)
        return True

    def drain(self) -> None:
        """Pass on what is in the pipes now: the writers are gone, or do not count any more."""
        for read in self._reads:
            while self._pump(read):
                pass

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for read in self._reads:
            loop.remove_reader(read)
        for descriptor in (self.out_read, self.err_read, self.out_write, self.err_write):
            if descriptor >= 0:
                os.close(descriptor)


class _Exit:
    """A child's end, as a future."""

    def __init__(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.future: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self.pidfd, self._ready)

    def _ready(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        if not self.future.done():
            self.future.set_result(None)

    def reap(self) -> tuple[int, resource.struct_rusage]:
        """Return the wait status and usage of the ended child."""
        _, status, rusage = os.wait4(self.pid, 0)
        return status, rusage

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)


async def _wait(exited: _Exit, wall_seconds: float | None, kill: Callable[[], None]) -> bool:
    """Wait for the end; return whether time ran out. Cancelled: kill, wait for the end, pass it on."""
    try:
        await asyncio.wait((exited.future,), timeout=wall_seconds)
        if exited.future.done():
            return False
        kill()
        await _wait_killed(exited)
        return True
    except asyncio.CancelledError:
        kill()
        await _wait_killed(exited)
        exited.reap()
        raise


async def reap_orphan(pid: int) -> resource.struct_rusage | None:
    """Wait for the end of a process whose parent was a child of ours and is gone; return its usage.

    None when it is not ours, in a process that did not call `prepare_process`.
    """
    try:
        reaped, _, rusage = os.wait4(pid, os.WNOHANG)  # noqa: ASYNC222 - does not block
    except ChildProcessError:
        return None
    if reaped:
        return rusage
    exited = _Exit(pid)
    try:
        await _wait_killed(exited)
        return exited.reap()[1]
    finally:
        exited.close()


async def _wait_killed(exited: _Exit) -> None:
    """Wait for the end of a killed child, however often we are cancelled meanwhile."""
    deadline = time.monotonic() + KILL_GRACE_SECONDS
    while not exited.future.done():
        if time.monotonic() > deadline:
            raise Unavailable(f"process {exited.pid} did not die within {KILL_GRACE_SECONDS:.0f} s of being killed")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((exited.future,), timeout=1.0)


async def why_true_fails(sandbox: Sandbox) -> str:
    """Return why `true` does not run in a sandbox, empty if it does."""
    with tempfile.TemporaryDirectory() as folder:
        process = Process(["true"], {"PATH": DEFAULT_PATH}, Path(folder), "", Profile.HOST_TOOLS)
        try:
            ended = await sandbox.run(process, NullOutput(), NullOutput())
        except TvixError as error:
            return str(error)
    return "" if ended.exit_code == 0 else f"`true` ends with exit code {ended.exit_code}"


def report_unstartable(process: Process, reason: str, stderr: Output) -> int:
    """Say on stderr, as a shell would, that the command could not be started; return its exit code."""
    name = process.arguments[0]
    missing = "No such file or directory" in reason or "not found" in reason
    text = "command not found" if missing else reason.rpartition(": ")[2] or "cannot be executed"
    stderr.write(f"tvix: {name}: {text}\n".encode())
    return NOT_FOUND_EXIT_CODE if missing else NOT_EXECUTABLE_EXIT_CODE


def parent_of(pid: int) -> int | None:
    """Return the parent of a process, None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def kill_process(pid: int, signal_number: int = signal.SIGKILL) -> None:
    """Send a signal to a child of ours; one that has ended already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal_number)
