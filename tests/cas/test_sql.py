"""Records in SQL: the contract, durability between openings, and retention."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.test_database import opened
from tests.contracts.record_store import action_key, action_result, check_record_store
from tvix.cas.interfaces import ActionCache
from tvix.cas.sql import (
    TOUCH_SECONDS,
    Retention,
    SqlRecordStore,
    open_action_cache,
)


async def test_the_action_cache_keeps_the_contract(tmp_path: Path) -> None:
    count = 0

    @asynccontextmanager
    async def make() -> AsyncIterator[ActionCache]:
        nonlocal count
        count += 1
        async with opened(tmp_path / f"{count}.sqlite") as database:
            yield await open_action_cache(database)

    await check_record_store(make)


async def test_records_outlive_the_process_that_wrote_them_and_two_may_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.sqlite"
    async with opened(path) as one, opened(path) as two:
        store, other = await open_action_cache(one, writer=lambda: "alice"), await open_action_cache(two)
        await store.put(action_key("a"), action_result("one"))
        assert await other.get(action_key("a")) == action_result("one")
        async with asyncio.TaskGroup() as group:
            for index in range(20):
                group.create_task((store if index % 2 else other).put(action_key(f"{index}"), action_result("x")))
    async with opened(path) as later:
        store = await open_action_cache(later)
        assert await store.get(action_key("a")) == action_result("one")
        assert await store.writer_of(action_key("a")) == "alice"
        assert await store.writer_of(action_key("absent")) is None
        assert await store.count() == 21
        async with later.read() as connection:
            assert (await connection.execute(sa.text("PRAGMA journal_mode"))).scalar() == "wal"


async def test_sequential_puts_of_one_task_share_transactions_only_when_concurrent(tmp_path: Path) -> None:
    async with opened(tmp_path / "records.sqlite") as database:
        store = await open_action_cache(database)
        commits = 0

        @sa.event.listens_for(database.engine.sync_engine, "commit")
        def committed(_connection: object) -> None:
            nonlocal commits
            commits += 1

        async with asyncio.TaskGroup() as group:
            for index in range(100):
                group.create_task(store.put(action_key(f"{index}"), action_result("x")))
        assert commits <= 3
        assert await store.count() == 100


class Clock:
    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


@asynccontextmanager
async def timed(path: Path) -> AsyncIterator[tuple[Clock, SqlRecordStore[object, re_pb2.ActionResult]]]:
    clock = Clock()
    async with opened(path / "records.sqlite") as database:
        store = await open_action_cache(database, now=clock)
        for name in "abcde":
            await store.put(action_key(name), action_result(name))
            clock.seconds += 1
        yield clock, store  # type: ignore[misc]


async def test_pruning_by_count_deletes_the_longest_unused(tmp_path: Path) -> None:
    async with timed(tmp_path) as (clock, store):
        clock.seconds += TOUCH_SECONDS
        assert await store.get(action_key("a"))
        assert await store.prune(Retention(max_records=2)) == 3
        assert [await store.get(action_key(name)) is not None for name in "abcde"] == [True, False, False, False, True]
        assert await store.prune(Retention(max_records=2)) == 0


async def test_pruning_by_age_counts_from_the_last_use(tmp_path: Path) -> None:
    async with timed(tmp_path) as (clock, store):
        clock.seconds += 10_000
        assert await store.get(action_key("c"))
        await store.put(action_key("f"), action_result("f"))
        assert await store.prune(Retention(max_records=None, max_age_seconds=9_000)) == 4
        assert [await store.get(action_key(name)) is not None for name in "abcdef"] == [False] * 2 + [True] + [
            False
        ] * 2 + [True]


async def test_pruning_many_goes_in_batches(tmp_path: Path) -> None:
    async with opened(tmp_path / "records.sqlite") as database:
        store = await open_action_cache(database)
        async with asyncio.TaskGroup() as group:
            for index in range(1203):
                group.create_task(store.put(action_key(f"{index}"), action_result("x")))
        assert await store.prune(Retention(max_records=1)) == 1202
        assert await store.count() == 1


async def test_a_record_that_cannot_be_decoded_is_absent_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "records.sqlite") as database:
        store = await open_action_cache(database)
        await store.put(action_key("a"), action_result("one"))
        async with database.write() as connection:
            await connection.execute(sa.text("UPDATE action_results SET value = x'0aff'"))
        assert await store.get(action_key("a")) is None
        assert "undecodable value of 2 bytes" in caplog.text
