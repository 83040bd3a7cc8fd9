"""The bubblewrap sandbox, by running it."""

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
)
from tvix.errors import FailedPrecondition, Unavailable
from tvix.executor.bubblewrap import BubblewrapConfig, BubblewrapSandbox

__all__ = ["root"]

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture
def sandbox() -> BubblewrapSandbox:
    return BubblewrapSandbox()


class TestSandbox(SandboxContract):
    """What all sandboxes promise."""

    added_variables = frozenset({"PWD"})


class TestIsolation(IsolationContract):
    """Nothing of the host."""


class TestInputRoot(InputRootContract):
    """The input root as `/`."""


def test_absent_program_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="'no-such-bwrap' is not installed"):
        BubblewrapSandbox(BubblewrapConfig(program="no-such-bwrap"))


async def test_failure_of_bwrap_is_ours(sandbox: BubblewrapSandbox, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="bubblewrap failed with exit code 1: bwrap: Can't find source path"):
        await run(sandbox, host_process(tmp_path / "absent", "true"))


async def test_messages_like_bwraps_own_pass(sandbox: BubblewrapSandbox, root: Path) -> None:
    ran = await run(sandbox, host_process(root, "sh", "-c", "echo 'bwrap: execvp x: nonsense' >&2; exit 1"))
    assert (ran.exit_code, ran.stderr) == (1, "bwrap: execvp x: nonsense\n")


async def test_the_environment_is_not_bwraps(sandbox: BubblewrapSandbox, root: Path) -> None:
    # The loader would complain on stderr from outside, too, if bwrap itself had this variable.
    env = {"PATH": "/usr/bin:/bin", "LD_PRELOAD": "/no/such.so"}
    ran = await run(sandbox, host_process(root, "true", env=env))
    assert ran.stderr.count("/no/such.so") == 1


def test_nothing_outlives_a_killed_worker(root: Path) -> None:
    marker = f"31536003.{os.getpid()}"
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from tvix.executor.bubblewrap import BubblewrapSandbox
        from tvix.executor.interfaces import Process, Profile
        class Out:
            def write(self, chunk): print("up", flush=True)
        script = "(setsid sleep {marker} &); echo up; sleep {marker}"
        env = {{"PATH": "/usr/bin:/bin"}}
        process = Process(["sh", "-c", script], env, Path({str(root)!r}), "", Profile.HOST_TOOLS)
        asyncio.run(BubblewrapSandbox().run(process, Out(), Out()))
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
