"""The sandbox made by bubblewrap (`bwrap`): namespaces for processes, mounts, IPC, host name, users
and, unless asked otherwise, network.

Nothing of the host is seen but what is named here. With host tools, its system folders and the few
files of /etc that programs cannot do without are there, read-only, and the input root is writable at
`BUILD_DIRECTORY`. With the input root as `/`, only that. In both, /dev holds the harmless nodes only,
/proc shows the sandbox's own processes, /tmp is private and empty, loopback is up.

Works as root and unprivileged. Always in a user namespace: the command holds no capability, whatever
user it believes to be. As bwrap is the first process of the new process namespace, its death is the
death of everything in it; it dies with us (`--die-with-parent`), kill -9 included.

The command's environment is exact but for PWD, which is its working directory unless it sets another.
The environment never becomes bwrap's own: LD_PRELOAD would run outside the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tvix.errors import FailedPrecondition, Unavailable
from tvix.executor.cgroups import Cgroups, group_for
from tvix.executor.host_tools import BUILD_DIRECTORY, NETWORK_FILES, shown_paths
from tvix.executor.interfaces import Exit, Output, Process, Profile, Sandbox, Usage
from tvix.executor.mount_points import mount_points
from tvix.executor.sandbox import (
    Ended,
    Program,
    kill_process,
    parent_of,
    prepare_process,
    reap_orphan,
    report_unstartable,
    run_program,
    usage_from_rusage,
    why_true_fails,
)

HOST_NAME = "tvix"
_STATUS_FD = 9
_SCRIPT_FD = 8
_SCRIPT = "/dev/shm/.command"
_MAX_ARGUMENTS = 4000
"""Of a command; bwrap 0.8 refuses more than 9000 together with its own, of which each variable takes three."""


@dataclass(frozen=True, slots=True)
class BubblewrapConfig:
    """How the sandbox is set up."""

    program: str = "bwrap"
    """A name looked up in PATH, or a path."""
    extra_read_only: tuple[str, ...] = ()
    """More paths of the host that commands using its tools may read."""
    build_directory: str = BUILD_DIRECTORY


class BubblewrapSandbox(Sandbox):
    """Runs each process in a bubblewrap of its own. See the module."""

    name = "bubblewrap"

    def __init__(self, config: BubblewrapConfig | None = None, cgroups: Cgroups | None = None) -> None:
        self._cgroups = cgroups
        self._config = config or BubblewrapConfig()
        program = shutil.which(self._config.program)
        if program is None:
            raise FailedPrecondition(
                f"sandbox program {self._config.program!r} is not installed; "
                "install bubblewrap or choose another sandbox"
            )
        self._program = os.path.realpath(program)
        prepare_process()
        self._host_tools = self._host_tools_arguments()

    def __repr__(self) -> str:
        return f"<BubblewrapSandbox {self._program}>"

    async def why_not(self) -> str:
        return await why_true_fails(self)

    def _host_tools_arguments(self) -> tuple[str, ...]:
        arguments: list[str] = []
        for path, link_target in shown_paths(self._config.extra_read_only):
            if link_target is not None:
                arguments += ("--symlink", link_target, path)
            else:
                arguments += ("--ro-bind-try", path, path)
        return tuple(arguments)

    async def run(self, process: Process, stdout: Output, stderr: Output) -> Exit:
        with contextlib.ExitStack() as cleanup:
            status = os.memfd_create("status")
            cleanup.callback(os.close, status)
            if process.profile is Profile.INPUT_ROOT:
                cleanup.enter_context(mount_points(process.root))
            errors = _HeldBackErrors(stderr)
            group = cleanup.enter_context(group_for(self._cgroups, process.limits))
            inherited = {_STATUS_FD: status}
            if len(process.arguments) > _MAX_ARGUMENTS:
                inherited[_SCRIPT_FD] = cleanup.enter_context(_script(process.arguments))
            program = Program(group.joining + self._arguments(process), inherited=inherited)
            try:
                ended = await run_program(
                    program,
                    stdout,
                    errors,
                    wall_seconds=process.limits.wall_seconds,
                    kill=lambda pid: _kill_sandbox(pid, status),
                )
            finally:
                # bwrap does not wait for the first process of the namespace, with which the others end.
                first = _read_status(status).get("child-pid")
                rusage = await reap_orphan(first) if first is not None else None
            usage = usage_from_rusage(ended.wall_seconds, rusage)
            return group.completed(_exit(process, ended, usage, _read_status(status), errors, stderr))

    def _arguments(self, process: Process) -> list[str]:
        arguments = [self._program]
        if process.profile is Profile.INPUT_ROOT:
            working_root = "/"
            arguments += ("--bind", str(process.root), "/")
        else:
            working_root = self._config.build_directory
            arguments += self._host_tools
            if process.network:
                for path in NETWORK_FILES:
                    arguments += ("--ro-bind-try", path, path)
            arguments += ("--bind", str(process.root), working_root)
        arguments += ("--proc", "/proc", "--dev", "/dev")
        if not process.own_tmp:
            arguments += ("--perms", "1777", "--tmpfs", "/tmp")
        arguments += ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
        if not process.network:
            arguments.append("--unshare-net")
        arguments += ("--hostname", HOST_NAME, "--die-with-parent", "--new-session", "--cap-drop", "ALL")
        arguments += ("--json-status-fd", str(_STATUS_FD))
        if process.uid is not None:
            arguments += ("--uid", str(process.uid))
        if process.gid is not None:
            arguments += ("--gid", str(process.gid))
        directory = os.path.join(working_root, process.working_directory) if process.working_directory else working_root
        arguments += ("--chdir", directory)
        if len(process.arguments) > _MAX_ARGUMENTS:
            arguments += ("--ro-bind-data", str(_SCRIPT_FD), _SCRIPT)
        arguments.append("--clearenv")
        for name, value in process.environment.items():
            arguments += ("--setenv", name, value)
        arguments.append("--")
        arguments += _trampoline(process, directory)
        arguments += process.arguments if len(process.arguments) <= _MAX_ARGUMENTS else ("/bin/sh", _SCRIPT)
        return arguments


@contextlib.contextmanager
def _script(arguments: Sequence[str]) -> Iterator[int]:
    """Provide a file with a script that becomes the command: a shell takes more arguments than bwrap."""
    descriptor = os.memfd_create("command")
    try:
        with os.fdopen(descriptor, "w", closefd=False) as file:
            file.write(f"exec {shlex.join(arguments)}\n")
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _trampoline(process: Process, directory: str) -> tuple[str, ...]:
    """Return what to put before a command that sets its own PWD, which bwrap would overwrite.

    Bazel's C++ toolchains do, for reproducible debug information.
    """
    value = process.environment.get("PWD")
    if value is None or value == directory:
        return ()
    top = str(process.root) if process.profile is Profile.INPUT_ROOT else ""
    for path in ("/usr/bin/env", "/bin/env"):
        if os.path.lexists(top + path):
            return (path, f"PWD={value}")
    return ()


class _HeldBackErrors:
    """Passes stderr on, but holds back what looks like bwrap's own message until we know who wrote it."""

    _PREFIX = b"bwrap: "
    _MAX_BYTES = 4096

    def __init__(self, output: Output) -> None:
        self._output = output
        self._passing = False
        self.held = b""

    def write(self, chunk: bytes) -> None:
        if self._passing:
            self._output.write(chunk)
            return
        self.held += chunk
        start = self.held[: len(self._PREFIX)]
        if len(self.held) > self._MAX_BYTES or not self._PREFIX.startswith(start):
            self.release()

    def release(self) -> None:
        """Pass on what was held: it is the command's."""
        self._passing = True
        if self.held:
            self._output.write(self.held)
            self.held = b""


def _exit(
    process: Process, ended: Ended, usage: Usage, status: Mapping[str, int], errors: _HeldBackErrors, stderr: Output
) -> Exit:
    """Return how the command ended; Unavailable when it never began because bwrap failed."""
    if "exit-code" in status or ended.timed_out:
        errors.release()
        return Exit(ended.exit_code, ended.timed_out, False, usage)
    # bwrap tells the exit code only of a command that it did start.
    message = errors.held.decode(errors="replace").strip()
    if not message.startswith("bwrap: execvp "):
        raise Unavailable(f"bubblewrap failed with exit code {ended.exit_code}: {message or 'without a message'}")
    return Exit(report_unstartable(process, message, stderr), False, False, usage)


def _read_status(descriptor: int) -> dict[str, int]:
    status: dict[str, int] = {}
    for line in os.pread(descriptor, 4096, 0).splitlines():
        with contextlib.suppress(ValueError):
            status.update(json.loads(line))
    return status


def _kill_sandbox(pid: int, status_descriptor: int) -> None:
    """Kill the first process of the sandbox's process namespace; bwrap itself ends when all are gone.

    Before that process exists bwrap is killed, which takes what it has begun with it.
    """
    first = _read_status(status_descriptor).get("child-pid")
    if first is not None and parent_of(first) == pid:
        kill_process(first)
    else:
        kill_process(pid)
