"""The sandbox made by an OCI runtime, by running it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.contracts.sandbox import (
    InputRootContract,
    IsolationContract,
    SandboxContract,
    alive,
    host_process,
    root,
    run,
    shell,
)
from tvix.errors import FailedPrecondition, Unavailable
from tvix.executor.interfaces import Sandbox
from tvix.executor.oci import OciConfig, OciSandbox

__all__ = ["root"]

pytestmark = pytest.mark.skipif(shutil.which("crun") is None, reason="crun is not installed")


@pytest.fixture
def sandbox(tmp_path: Path) -> OciSandbox:
    return OciSandbox(OciConfig(tmp_path / "oci"))


class TestSandbox(SandboxContract):
    """What all sandboxes promise."""

    start_seconds = 2.0
    added_variables = frozenset({"HOME"})

    async def test_killed_by_a_signal_is_128_plus_its_number(self, sandbox: Sandbox, root: Path) -> None:
        """The command is process 1, which signals without a handler do not reach; its children are like any."""
        assert (await shell(sandbox, root, "sh -c 'kill -TERM $$'; exit $?")).exit_code == 143
        assert (await shell(sandbox, root, "sh -c 'kill -KILL $$'; exit $?")).exit_code == 137


class TestIsolation(IsolationContract):
    """Nothing of the host."""


class TestInputRoot(InputRootContract):
    """The input root as `/`."""


async def test_it_works_here(sandbox: OciSandbox) -> None:
    assert await sandbox.why_not() == ""


def test_absent_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="install no-crun or no-runc"):
        OciSandbox(OciConfig(tmp_path, programs=("no-crun", "no-runc")))


async def test_failure_of_the_runtime_is_ours(sandbox: OciSandbox, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="crun failed: "):
        await run(sandbox, host_process(tmp_path / "absent", "true"))


async def test_nothing_is_left_in_scratch(sandbox: OciSandbox, root: Path, tmp_path: Path) -> None:
    await run(sandbox, host_process(root, "false"))
    assert sorted(path.name for path in (tmp_path / "oci").iterdir()) == ["rootfs", "state"]
    assert list((tmp_path / "oci" / "state").iterdir()) == []


def test_nothing_outlives_a_killed_worker(root: Path, tmp_path: Path) -> None:
    marker = f"31536005.{os.getpid()}"
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from tvix.executor.oci import OciConfig, OciSandbox
        from tvix.executor.interfaces import Process, Profile
        class Out:
            def write(self, chunk): print("up", flush=True)
        script = "(setsid sleep {marker} &); echo up; sleep {marker}"
        env = {{"PATH": "/usr/bin:/bin"}}
        process = Process(["sh", "-c", script], env, Path({str(root)!r}), "", Profile.HOST_TOOLS)
        asyncio.run(OciSandbox(OciConfig(Path({str(tmp_path / "oci")!r}))).run(process, Out(), Out()))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"up\n"
        assert alive(marker)
        worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(marker) and time.monotonic() < deadline:
        os.sched_yield()
    assert alive(marker) == []
