"""What of the scheduler survives a restart: tasks, leases, operations and finished responses, in SQL.

Three writes per action, each an upsert or delete of a small row: submitted, leased, done. They are collected
and committed together by one writer, so that a commit's cost is shared by everything that happened while the
one before was under way; `write` returns a future for those who must know that a row is on disk before they
go on (an operation's name before the client sees it, a result before the worker may forget it). Rows that are
replaced or deleted before their commit are never written.

    tasks       id, when and for whom, the action and command as read from the CAS    until done
    leases      task id, lease id, worker id, attempts, failures                      until done
    operations  name, task id; once done the serialized ExecuteResponse               for the retention time
    workers     id, the serialized Hello                                              until forgotten
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from tvix.cas.sql import Database
from tvix.errors import TvixError

log = logging.getLogger(__name__)

Row = dict[str, Any]

METADATA = sa.MetaData()
TASKS = sa.Table(
    "executor_tasks",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("instance_name", sa.Text, nullable=False),
    sa.Column("digest_function", sa.String(16), nullable=False),
    sa.Column("hash", sa.String(128), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("queued_at", sa.Float, nullable=False),
    sa.Column("skip_cache_lookup", sa.Boolean, nullable=False),
    sa.Column("overrides", sa.Text, nullable=False),
    sa.Column("request_metadata", sa.LargeBinary, nullable=False),
    sa.Column("action", sa.LargeBinary, nullable=False),
    sa.Column("command", sa.LargeBinary, nullable=False),
    sa.Column("streams", sa.Text, nullable=False),
)
LEASES = sa.Table(
    "executor_leases",
    METADATA,
    sa.Column("task_id", sa.String(64), primary_key=True),
    sa.Column("lease_id", sa.String(64), nullable=False),
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failures", sa.Text, nullable=False),
)
OPERATIONS = sa.Table(
    "executor_operations",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("task_id", sa.String(64), nullable=False),
    sa.Column("instance_name", sa.Text, nullable=False),
    sa.Column("digest_function", sa.String(16), nullable=False),
    sa.Column("hash", sa.String(128), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("done_at", sa.Float, nullable=True, index=True),
    sa.Column("response", sa.LargeBinary, nullable=True),
)
WORKERS = sa.Table(
    "executor_workers",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("hello", sa.LargeBinary, nullable=False),
)
_TABLES = {table.name: table for table in METADATA.sorted_tables}
_KEYS = {table.name: next(iter(table.primary_key)) for table in METADATA.sorted_tables}
_DELETES = {name: sa.delete(_TABLES[name]).where(key == sa.bindparam("key")) for name, key in _KEYS.items()}


class Put(NamedTuple):
    """Insert a row, or replace the one with its primary key."""

    table: sa.Table
    row: Row


class Delete(NamedTuple):
    """Remove the row with this primary key, if there is one."""

    table: sa.Table
    key: str


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class Saved:
    """What was in flight when the last process ended; rows by column name."""

    tasks: list[Row]
    leases: list[Row]
    operations: list[Row]
    """Only those not done."""
    workers: list[Row]


class OperationsStore:
    """The tables, and the writer. One process uses them at a time. Call `open` first, `close` last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: dict[tuple[str, str], Row | None] = {}
        self._batch_done: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None
        self._statements = {table.name: database.upsert(table) for table in METADATA.sorted_tables}

    def __repr__(self) -> str:
        return f"<OperationsStore {len(self._pending)} changes pending>"

    async def open(self) -> None:
        """Create the tables and start the writer."""
        await self._database.ensure_schema("executor", 1, METADATA)
        self._writer = asyncio.create_task(self._write_loop(), name="operations-store")

    async def close(self) -> None:
        """Commit what is pending. The database is the caller's."""
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            await self._writer

    def write(self, *changes: Change) -> asyncio.Future[None]:
        """Take changes, which become visible and durable together. The future ends when they are, with an
        error if they cannot be; whoever does not care may drop it.
        """
        for change in changes:
            key = change.key if isinstance(change, Delete) else change.row[_KEYS[change.table.name].name]
            self._pending[change.table.name, key] = None if isinstance(change, Delete) else change.row
        if self._batch_done is None:
            self._batch_done = asyncio.get_running_loop().create_future()
            self._wake.set()
        return self._batch_done

    async def _write_loop(self) -> None:
        while not (self._closing and not self._pending):
            await self._wake.wait()
            self._wake.clear()
            if not self._pending:
                continue
            pending, self._pending = self._pending, {}
            done, self._batch_done = self._batch_done, None
            assert done is not None
            try:
                await self._commit(pending)
            except TvixError as error:
                log.error("saving %d changes of operations failed: %s", len(pending), error)
                if not done.done():
                    done.set_exception(error)
                    done.exception()
            else:
                if not done.done():
                    done.set_result(None)

    async def _commit(self, pending: Mapping[tuple[str, str], Row | None]) -> None:
        puts: dict[str, list[Row]] = {}
        deletes: dict[str, list[str]] = {}
        for (table, key), row in pending.items():
            if row is None:
                deletes.setdefault(table, []).append(key)
            else:
                puts.setdefault(table, []).append(row)

        def commit(connection: sa.Connection) -> None:
            for table, rows in puts.items():
                connection.execute(self._statements[table], rows)
            for table, keys in deletes.items():
                connection.execute(_DELETES[table], [{"key": key} for key in keys])

        await self._database.transact(commit)

    async def load(self) -> Saved:
        """Return what was in flight."""
        async with self._database.read() as connection:

            async def rows(query: sa.Select[Any]) -> list[Row]:
                return [dict(row) for row in (await connection.execute(query)).mappings()]

            return Saved(
                await rows(sa.select(TASKS).order_by(TASKS.c.queued_at)),
                await rows(sa.select(LEASES)),
                await rows(sa.select(OPERATIONS).where(OPERATIONS.c.done_at.is_(None))),
                await rows(sa.select(WORKERS)),
            )

    async def get(self, name: str) -> Row | None:
        """Return the row of a committed operation, done or not."""
        async with self._database.read() as connection:
            row = (await connection.execute(sa.select(OPERATIONS).where(OPERATIONS.c.name == name))).mappings().first()
        return None if row is None else dict(row)

    async def done_page(self, prefix: str, after: str, limit: int) -> list[Row]:
        """Return at most `limit` finished operations whose names begin with `prefix` and come after `after`."""
        query = (
            sa.select(OPERATIONS)
            .where(OPERATIONS.c.done_at.is_not(None), OPERATIONS.c.name > after)
            .where(OPERATIONS.c.name.startswith(prefix, autoescape=True))
            .order_by(OPERATIONS.c.name)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def delete_done_before(self, time_seconds: float) -> None:
        """Forget operations that ended before then."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(OPERATIONS).where(OPERATIONS.c.done_at < time_seconds))


def now_seconds() -> float:
    """Return the time in seconds since the epoch: the clock used unless a test hands in another."""
    return time.time()
