"""The database: opened by many, faults said clearly, transactions whole or undone."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.contracts.record_store import action_key, action_result
from tvix.cas.sql import (
    Database,
    open_action_cache,
    open_database,
)
from tvix.errors import CorruptData, FailedPrecondition, InvalidInput, ResourceExhausted, TvixError, Unavailable


@asynccontextmanager
async def opened(path: Path | str, busy_seconds: float = 5) -> AsyncIterator[Database]:
    database = await open_database(path, busy_seconds=busy_seconds)
    try:
        yield database
    finally:
        await database.close()


async def test_many_may_open_a_new_file_at_the_same_time(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:

        async def enter() -> None:
            await open_action_cache(await stack.enter_async_context(opened(tmp_path / "?odd name%20 #.sqlite")))

        await asyncio.gather(*(enter() for _ in range(8)))
    assert (tmp_path / "?odd name%20 #.sqlite").exists()


async def test_a_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    async with opened(tmp_path / "records.sqlite") as database:
        await open_action_cache(database)
        async with database.write() as connection:
            await connection.execute(sa.text("UPDATE schema_versions SET version = 7"))
        with pytest.raises(
            FailedPrecondition, match=r"action_results tables of .* have version 7, this program knows 1"
        ):
            await open_action_cache(database)


async def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(CorruptData, match=r"records.sqlite: file is not a database: restore it, or delete it"):
        await open_database(path)


async def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=str(tmp_path)):
        await open_database(tmp_path)


@pytest.mark.parametrize("url", ["nonsense", "nodatabase://x"])
async def test_a_url_that_cannot_be_used_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="database URL"):
        await open_database(url)


async def test_a_database_locked_by_somebody_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    async with opened(path, busy_seconds=0.01) as database:
        store = await open_action_cache(database)

        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="database is locked"):
            await store.put(action_key("a"), action_result("one"))
        assert await store.get(action_key("a")) is None, "readers never wait"
        holder.execute("ROLLBACK")
        holder.close()
        await store.put(action_key("a"), action_result("one"))
        assert await store.get(action_key("a")) == action_result("one")


async def test_a_full_disk_is_resource_exhausted(tmp_path: Path) -> None:
    async with opened(tmp_path / "records.sqlite") as database:
        store = await open_action_cache(database)

        def limit(connection: sa.Connection) -> None:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")

        for engine in database.sync_engines:
            sa.event.listen(engine, "begin", limit, insert=True)

        with pytest.raises(ResourceExhausted, match="make room"):
            await store.put(action_key("a"), action_result("x" * 1_000_000))


async def test_a_failed_transaction_is_undone(tmp_path: Path) -> None:
    async with opened(tmp_path / "records.sqlite") as database:
        store = await open_action_cache(database)
        await store.put(action_key("a"), action_result("one"))
        with contextlib.suppress(ZeroDivisionError):
            async with database.write() as connection:
                await connection.execute(sa.text("DELETE FROM action_results"))
                raise ZeroDivisionError
        assert await store.get(action_key("a")) == action_result("one")


async def test_a_transaction_in_one_hop_commits_or_undoes_all(tmp_path: Path) -> None:
    metadata = sa.MetaData()
    table = sa.Table("numbers", metadata, sa.Column("n", sa.Integer, primary_key=True))
    async with opened(tmp_path / "records.sqlite") as database:
        await database.ensure_schema("numbers", 1, metadata)

        def insert(connection: sa.Connection, *numbers: int) -> int:
            return connection.execute(sa.insert(table), [{"n": number} for number in numbers]).rowcount

        assert await database.transact(lambda connection: insert(connection, 1, 2)) == 2
        with pytest.raises(TvixError):
            await database.transact(lambda connection: (insert(connection, 3), insert(connection, 1)))
        async with database.read() as connection:
            assert list((await connection.execute(sa.select(table.c.n))).scalars()) == [1, 2]
