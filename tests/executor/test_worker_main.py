"""The worker's process: signals, namespace, open files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import asyncio, contextlib, os, resource, sys
    from tvix.executor.worker import WorkerConfig
    from tvix.executor.worker_main import run_worker_process
    outside = os.readlink("/proc/self/ns/mnt")

    async def run(action):
        raise AssertionError("no scheduler, no action")

    @contextlib.asynccontextmanager
    async def open_worker():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        print("private" if os.readlink("/proc/self/ns/mnt") != outside else "shared", soft == hard, flush=True)
        asyncio.get_running_loop().call_soon(lambda: print("works", flush=True))
        yield WorkerConfig("127.0.0.1:1", slots=1), run
        print("closed", flush=True)

    run_worker_process(open_worker)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        namespace, files = process.stdout.readline().split()
        assert files == "True"
        if os.geteuid() == 0:
            assert namespace == "private"
        assert process.stdout.readline() == "works\n"
        process.send_signal(number)
        assert process.stdout.readline() == "closed\n"
    assert process.returncode == 0
