"""Spawning, waiting, killing, without any sandbox around."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tests.executor.actions import Recorded
from tvix.errors import Unavailable
from tvix.executor.interfaces import Usage
from tvix.executor.sandbox import (
    Ended,
    Program,
    kill_process,
    parent_of,
    prepare_process,
    reap_orphan,
    run_program,
    usage_from_rusage,
)


async def spawn(script: str, stdout: Recorded, wall_seconds: float | None = None, **fields: object) -> Ended:
    program = Program(["/bin/sh", "-c", script], **fields)  # type: ignore[arg-type]
    return await run_program(program, stdout, Recorded(), wall_seconds=wall_seconds, kill=kill_process)


async def test_descriptors_are_inherited_by_number() -> None:
    read, write = os.pipe()
    await spawn("echo told >&7", Recorded(), inherited={7: write})
    os.close(write)
    assert os.read(read, 100) == b"told\n"
    os.close(read)


async def test_own_session() -> None:
    out = Recorded()
    await spawn("ps -o sid= -p $$; echo $$", out, environment={"PATH": "/usr/bin:/bin"})
    session, process = out.text.split()
    assert session == process


async def test_what_cannot_be_spawned_is_unavailable() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="/no/such cannot be started"):
        await run_program(Program(["/no/such"]), Recorded(), Recorded(), wall_seconds=None, kill=kill_process)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_signals_and_timeouts_are_told() -> None:
    ended = await spawn("kill -KILL $$", Recorded())
    assert (ended.status, ended.exit_code, ended.timed_out) == (-9, 137, False)
    ended = await spawn("exec sleep 60", Recorded(), wall_seconds=0.01, environment={"PATH": "/usr/bin:/bin"})
    assert (ended.exit_code, ended.timed_out) == (137, True)


async def test_orphans_are_reaped_with_their_usage() -> None:
    prepare_process()
    out = Recorded()
    script = "python3 -c 'sum(range(3_000_000))' & echo $!"
    await spawn(script, out, environment={"PATH": os.environ["PATH"]})
    usage = await reap_orphan(int(out.text))
    assert usage is not None
    assert usage.ru_utime > 0
    assert await reap_orphan(int(out.text)) is None, "gone"


async def test_a_slow_reader_does_not_stop_the_loop() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await spawn("sleep 0.05", Recorded(), environment={"PATH": "/usr/bin:/bin"})
    ticking.cancel()
    assert ticks > 10


def test_parents() -> None:
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(999_999_999) is None


def test_killing_what_is_gone_is_fine() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    kill_process(process.pid)


def test_usage_that_is_not_known() -> None:
    assert usage_from_rusage(1.5, None) == Usage(wall_seconds=1.5)
