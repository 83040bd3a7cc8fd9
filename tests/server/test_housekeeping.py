"""Chores."""

import asyncio
import logging

import pytest

from tvix.errors import Unavailable
from tvix.server.housekeeping import keep_house


async def test_a_chore_that_fails_neither_stops_the_others_nor_itself(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()
    tried = 0

    async def failing() -> int:
        nonlocal tried
        tried += 1
        raise Unavailable("the database is locked")

    async def pruning() -> int:
        if tried == 2:
            done.set()
        return 3

    with caplog.at_level(logging.INFO, "tvix"):
        keeping = asyncio.create_task(keep_house([("a", failing), ("b", pruning)], period_seconds=0))
        async with asyncio.timeout(10):
            await done.wait()
        keeping.cancel()
    assert "pruning=a failed='the database is locked'" in caplog.text
    assert "pruning=b removed=3" in caplog.text
