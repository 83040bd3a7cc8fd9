"""The sandbox that is none: commands run as we do, with the host's files and network.

For machines where neither bubblewrap nor an OCI runtime works, and for actions that are trusted: a
command can read and write all that the worker can, and kill the worker itself. Platform properties that
ask for ids or for no network have no effect. What is promised still is the end: whatever the command
started is gone when it is over (see supervise.py), unless it kills its supervisor first.

The input root can be `/` only when we are root.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from signal import SIGTERM
from typing import Any

from tvix.errors import FailedPrecondition, Unavailable
from tvix.executor import supervise
from tvix.executor.cgroups import Cgroups, group_for
from tvix.executor.interfaces import Exit, Output, Process, Profile, Sandbox, Usage
from tvix.executor.mount_points import mount_points
from tvix.executor.sandbox import Program, kill_process, prepare_process, report_unstartable, run_program

_JOB_FD = 9
SUPERVISOR = (sys.executable, "-I", "-S", str(Path(supervise.__file__).resolve()), str(_JOB_FD))


class UnconfinedSandbox(Sandbox):
    """Runs processes beside us. See the module."""

    name = "none"

    def __init__(self, cgroups: Cgroups | None = None) -> None:
        self._cgroups = cgroups
        prepare_process()

    def __repr__(self) -> str:
        return "<UnconfinedSandbox>"

    async def run(self, process: Process, stdout: Output, stderr: Output) -> Exit:
        with contextlib.ExitStack() as cleanup:
            root = None
            directory = os.path.join(process.root, process.working_directory)
            if process.profile is Profile.INPUT_ROOT:
                if os.geteuid() != 0:
                    raise FailedPrecondition("sandbox `none` can make the input root `/` only when the worker is root")
                cleanup.enter_context(mount_points(process.root))
                root, directory = str(process.root), f"/{process.working_directory}"
            job = {
                "arguments": list(process.arguments),
                "environment": dict(process.environment),
                "directory": directory,
                "root": root,
                "own_tmp": process.own_tmp,
            }
            return await supervised(process, job, stdout, stderr, self._cgroups)


async def supervised(
    process: Process, job: dict[str, Any], stdout: Output, stderr: Output, cgroups: Cgroups | None
) -> Exit:
    """Run a job of supervise.py for `process`. Unavailable when the supervisor itself fails."""
    with group_for(cgroups, process.limits) as group:
        program = [*group.joining, *SUPERVISOR]
        return group.completed(await _supervised(process, program, job, stdout, stderr))


async def _supervised(
    process: Process, program: list[str], job: dict[str, Any], stdout: Output, stderr: Output
) -> Exit:
    descriptor = os.memfd_create("job")
    try:
        os.pwrite(descriptor, json.dumps({**job, "parent": os.getpid()}).encode(), 0)
        ended = await run_program(
            Program(program, inherited={_JOB_FD: descriptor}),
            stdout,
            stderr,
            wall_seconds=process.limits.wall_seconds,
            kill=lambda pid: kill_process(pid, SIGTERM),
        )
        report = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    finally:
        os.close(descriptor)
    if "exit_code" not in report and ended.timed_out:  # it was stopped before it could begin
        return Exit(ended.exit_code, True, False, Usage(wall_seconds=ended.wall_seconds))
    if "exit_code" not in report:
        raise Unavailable(f"the supervisor of {process.arguments[0]!r} ended with exit code {ended.exit_code}")
    exit_code = report["exit_code"]
    if report["error"]:
        exit_code = report_unstartable(process, report["error"], stderr)
    usage = Usage(
        wall_seconds=ended.wall_seconds,
        user_seconds=report["user_seconds"],
        system_seconds=report["system_seconds"],
        peak_memory_bytes=report["peak_memory_bytes"],
    )
    return Exit(exit_code, ended.timed_out, False, usage)
