"""Commands without a sandbox, by running them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.sandbox import InputRootContract, SandboxContract, alive, host_process, root, run, shell
from tvix.errors import FailedPrecondition
from tvix.executor.interfaces import Profile, Sandbox
from tvix.executor.unconfined import UnconfinedSandbox

__all__ = ["root"]


@pytest.fixture
def sandbox() -> UnconfinedSandbox:
    return UnconfinedSandbox()


class TestSandbox(SandboxContract):
    """What all sandboxes promise."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the root folder")
class TestInputRoot(InputRootContract):
    """The input root as `/`."""

    async def test_ids_in_the_input_root(self, sandbox: Sandbox, root: Path) -> None:
        """Ids are ours, whatever is asked for."""
        process = replace(self._process(root, "id -u"), uid=1234)
        assert (await run(sandbox, process)).stdout.split() == [str(os.getuid())]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can")
async def test_input_root_needs_root(sandbox: UnconfinedSandbox, root: Path) -> None:
    with pytest.raises(FailedPrecondition, match="only when the worker is root"):
        await run(sandbox, replace(host_process(root, "true"), profile=Profile.INPUT_ROOT))


async def test_environment_has_nothing_of_ours(sandbox: UnconfinedSandbox, root: Path) -> None:
    assert (await run(sandbox, host_process(root, "/usr/bin/env", env={"A": "b"}))).stdout == "A=b\n"


async def test_directory_is_the_build_root_itself(sandbox: UnconfinedSandbox, root: Path) -> None:
    assert (await shell(sandbox, root, "/bin/pwd")).stdout == f"{root}\n"


def test_nothing_outlives_a_killed_worker(root: Path) -> None:
    marker = f"31536004.{os.getpid()}"
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from tvix.executor.unconfined import UnconfinedSandbox
        from tvix.executor.interfaces import Process, Profile
        class Out:
            def write(self, chunk): print("up", flush=True)
        script = "(setsid sleep {marker} &); echo up; sleep {marker}"
        env = {{"PATH": "/usr/bin:/bin"}}
        process = Process(["sh", "-c", script], env, Path({str(root)!r}), "", Profile.HOST_TOOLS)
        asyncio.run(UnconfinedSandbox().run(process, Out(), Out()))
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
