"""What survives a restart, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tvix.cas.sql import Database, open_database
from tvix.errors import TvixError
from tvix.executor.operations_store import LEASES, OPERATIONS, TASKS, WORKERS, Delete, OperationsStore, Put


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(tmp_path / "records.sqlite")
    yield database
    await database.close()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[OperationsStore]:
    store = OperationsStore(database)
    await store.open()
    yield store
    await store.close()


def operation(name: str, **fields: Any) -> Put:
    row = {
        "name": name,
        "task_id": "t",
        "instance_name": "",
        "digest_function": "sha256",
        "hash": "0" * 64,
        "size_bytes": 1,
        "created_at": 1.0,
        "done_at": None,
        "response": None,
    }
    return Put(OPERATIONS, {**row, **fields})


def lease(task_id: str, lease_id: str) -> Put:
    row = {"task_id": task_id, "lease_id": lease_id, "worker_id": "w", "attempts": 1, "failures": "[]"}
    return Put(LEASES, row)


async def test_what_was_awaited_is_there_for_the_next_process(database: Database, store: OperationsStore) -> None:
    await store.write(operation("a"), lease("t", "l"), Put(WORKERS, {"id": "w", "hello": b"hi"}))
    saved = await OperationsStore(database).load()
    assert [row["name"] for row in saved.operations] == ["a"]
    assert [row["lease_id"] for row in saved.leases] == ["l"]
    assert saved.workers == [{"id": "w", "hello": b"hi"}]
    assert saved.tasks == []


async def test_later_changes_of_a_row_win(store: OperationsStore) -> None:
    store.write(lease("t", "one"))
    await store.write(lease("t", "two"))
    assert [row["lease_id"] for row in (await store.load()).leases] == ["two"]
    store.write(lease("t", "three"))
    await store.write(Delete(LEASES, "t"))
    assert (await store.load()).leases == []
    await store.write(Delete(TASKS, "never there"))


async def test_close_commits_what_is_pending(database: Database) -> None:
    store = OperationsStore(database)
    await store.open()
    store.write(operation("a"))
    await store.close()
    assert await store.get("a") is not None


async def test_done_operations_are_listed_in_pages_and_forgotten(store: OperationsStore) -> None:
    changes = [operation(f"x/{i}", done_at=float(i), response=b"r") for i in range(5)]
    await store.write(*changes, operation("x/waiting"), operation("y/0", done_at=1.0, response=b""))
    assert [row["name"] for row in await store.done_page("x/", "", 2)] == ["x/0", "x/1"]
    assert [row["name"] for row in await store.done_page("x/", "x/1", 9)] == ["x/2", "x/3", "x/4"]
    assert await store.done_page("x%", "", 9) == []
    await store.delete_done_before(3)
    assert [row["name"] for row in await store.done_page("", "", 9)] == ["x/3", "x/4"]
    assert await store.get("x/waiting") is not None
    assert await store.get("x/0") is None


async def test_a_write_that_fails_tells_who_waits_and_the_next_one_works(store: OperationsStore) -> None:
    with pytest.raises(TvixError):
        await store.write(
            Put(LEASES, {"task_id": "t", "lease_id": None, "worker_id": "", "attempts": 1, "failures": ""})
        )
    await store.write(lease("t", "fine"))
