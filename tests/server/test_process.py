"""Keeping a child process running."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.server.running import wait_until
from tvix.errors import Unavailable
from tvix.server.child import Assignment
from tvix.server.config import Config
from tvix.server.process import Process

SERVING = """
import os, pathlib, signal, sys, time
sys.stdin.readline()
folder = pathlib.Path(os.environ["FOLDER"])
(folder / f"{os.getpid()}.pid").write_text("")
print("ready", flush=True)
time.sleep(60)
"""
ENDING = "import sys; sys.exit(3)"
DEAF = SERVING.replace("sys.stdin.readline()", "signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdin.readline()")


@asynccontextmanager
async def kept(folder: Path, script: str) -> AsyncIterator[tuple[Process, asyncio.Task[None]]]:
    """A process that runs the script as a module, kept running."""
    (folder / "child_script.py").write_text(script)
    environment = {"PYTHONPATH": str(folder), "FOLDER": str(folder)}
    process = Process("child_script", Assignment(name="it", config=Config(), supervisor_pid=0), environment)
    keeping = asyncio.create_task(process.keep_running())
    try:
        async with asyncio.timeout(60):
            yield process, keeping
    finally:
        process.kill()
        await asyncio.gather(keeping, return_exceptions=True)


def pids(folder: Path) -> set[int]:
    return {int(path.stem) for path in folder.glob("*.pid")}


async def test_a_process_that_dies_is_started_again_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(tmp_path, SERVING) as (process, _):
        await process.ready.wait()
        (first,) = pids(tmp_path)
        os.kill(first, 9)
        await asyncio.to_thread(wait_until, lambda: len(pids(tmp_path)) == 2, "a second process")
        await process.ready.wait()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "process=it ended='killed by SIGKILL' restarting"
    ]


async def test_a_process_that_never_serves_is_not_started_again(tmp_path: Path) -> None:
    async with kept(tmp_path, ENDING) as (process, keeping):
        with pytest.raises(Unavailable, match=r"the it process ended while starting \(exit code 3\)"):
            await keeping
        assert process.ended.is_set()


async def test_stopping_ends_it_for_good(tmp_path: Path) -> None:
    async with kept(tmp_path, SERVING) as (process, keeping):
        await process.ready.wait()
        process.stop()
        await keeping
        assert process.ended.is_set()
        assert not process.ready.is_set()


async def test_stopping_while_it_is_being_started(tmp_path: Path) -> None:
    async with kept(tmp_path, SERVING) as (process, keeping):
        await asyncio.sleep(0)
        process.stop()
        await keeping


async def test_a_process_that_does_not_listen_can_be_killed(tmp_path: Path) -> None:
    async with kept(tmp_path, DEAF) as (process, keeping):
        await process.ready.wait()
        process.stop()
        process.kill()
        await keeping
