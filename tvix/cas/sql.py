"""Records in SQL: the database, and record stores on top of it.

SQLAlchemy, so that SQLite (embedded, the default) can be PostgreSQL later; what is SQLite's own stands in
`_prepare_sqlite`. Several processes share one SQLite file: WAL, so that readers never wait; write
transactions begin IMMEDIATE, so that they queue (up to `BUSY_SECONDS`) instead of failing half-way.

Durability: synchronous=NORMAL. A commit survives the death of any process at once; after a power cut the
last commits before it may be gone (the file is never damaged). That is right for records that can be made
again; blobs have their own policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, cast

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.coalescing import Coalescing
from tvix.cas.interfaces import ActionKey, K, RecordStore, V
from tvix.errors import (
    CorruptData,
    FailedPrecondition,
    Internal,
    InvalidInput,
    ResourceExhausted,
    TvixError,
    Unavailable,
)

log = logging.getLogger(__name__)

BUSY_SECONDS = 30
"""How long a write waits for other processes' writes."""

_CLOSE_SECONDS = 5

_versions = sa.Table(
    "schema_versions",
    sa.MetaData(),
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)


class Database:
    """One database, shared by all the record stores of a process. Made by `open_database`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.url = engine.url.render_as_string(hide_password=True)
        self._writing = asyncio.Lock()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<Database {self.url}>"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection for SELECTs. SQL errors, here and in `write`, become TvixErrors."""
        with _Mapped(self.url):
            async with self.engine.connect() as connection:
                await connection.execution_options(tvix_reads=True)
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction, which a clean end commits and an exception undoes."""
        # SQLite has one writer anyhow. Waiting here keeps readers' connections free and the order fair.
        with _Mapped(self.url):
            async with self._writing, self.engine.begin() as connection:
                yield connection

    async def ensure_schema(self, name: str, version: int, tables: sa.MetaData) -> None:
        """Create the tables unless they are there. `name` is the part of the program that owns them.

        Raises FailedPrecondition when the database was written by a newer program. A part that raises its
        `version` migrates its older tables itself, before.
        """
        async with self.write() as connection:
            await connection.run_sync(_versions.metadata.create_all)
            query = sa.select(_versions.c.version).where(_versions.c.name == name)
            found = (await connection.execute(query)).scalar()
            if found is not None and found > version:
                raise FailedPrecondition(
                    f"the {name} tables of {self.url} have version {found}, this program knows {version}: "
                    "it was written by a newer tvix; run that one, or use another state folder"
                )
            await connection.run_sync(tables.create_all)
            if found is None:
                await connection.execute(self.upsert(_versions, {"name": name, "version": version}))

    def upsert(self, table: sa.Table, row: dict[str, Any] | None = None) -> sa.Executable:
        """Return a statement that inserts a row or, where its primary key exists, replaces the rest.

        Without `row`, rows are given to `execute` beside the statement.
        """
        insert: Any = (postgresql if self.engine.dialect.name == "postgresql" else sqlite_dialect).insert(table)
        if row is not None:
            insert = insert.values(row)
        keys = [column.name for column in table.primary_key]
        rest = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
        return cast("sa.Executable", insert.on_conflict_do_update(index_elements=keys, set_=rest))

    async def close(self) -> None:
        """Close all connections, and wait until the threads that work for them are gone."""
        await self.engine.dispose()
        for thread in list(self._threads):
            # A connection that was in use when its user was cancelled is closed by its thread, later. That must
            # not be after the event loop has ended.
            await asyncio.to_thread(thread.join, _CLOSE_SECONDS)


async def open_database(url: str | Path, *, busy_seconds: float = BUSY_SECONDS) -> Database:
    """Open a database, by SQLAlchemy URL or the path of a SQLite file (created when absent).

    A write waits for those of other processes for up to `busy_seconds`, then is Unavailable.

    Raises InvalidInput for a URL that cannot be used, Unavailable or CorruptData for a file that cannot.
    """
    if isinstance(url, Path):
        url.parent.mkdir(parents=True, exist_ok=True)
    try:
        parsed = sa.make_url(url) if isinstance(url, str) else sa.URL.create("sqlite", database=str(url))
        if parsed.get_backend_name() == "sqlite":
            parsed = parsed.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(parsed, pool_size=4, max_overflow=0, pool_timeout=2 * busy_seconds)
    except (sa.exc.ArgumentError, NoSuchModuleError, ImportError, TypeError) as error:
        raise InvalidInput(f"database URL {url!r} cannot be used: {error}", field="database") from error
    database = Database(engine)
    if engine.dialect.name == "sqlite":
        await asyncio.to_thread(_probe_sqlite, database.url, parsed.database or "", busy_seconds)
        _prepare_sqlite(engine, busy_seconds, database)
    return database


def _probe_sqlite(url: str, path: str, busy_seconds: float) -> None:
    """Make the file a WAL database, once; what is wrong with it shows here rather than in the pool."""
    deadline = time.monotonic() + busy_seconds
    with _Mapped(url), contextlib.closing(sqlite3.connect(path, timeout=busy_seconds)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
            except sqlite3.OperationalError as error:
                # Two processes that change the mode at once get SQLITE_BUSY without any waiting.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


def _prepare_sqlite(engine: AsyncEngine, busy_seconds: float, database: Database) -> None:
    @sa.event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        thread = getattr(connection.driver_connection, "_thread", None)
        if isinstance(thread, threading.Thread):
            database._threads.add(thread)
        # None: the driver begins no transactions of its own, `begun` does.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def begun(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("tvix_reads"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


class _Mapped:
    """Turns SQLAlchemy's errors into ours, naming the database."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (SQLAlchemyError, sqlite3.Error)):
            raise _error_from_sql(error, self._url) from error


_CAUSES: list[tuple[tuple[str, ...], type[TvixError], str]] = [
    (("malformed", "not a database", "corrupt"), CorruptData, "restore it, or delete it to begin anew"),
    (("disk is full", "disk full"), ResourceExhausted, "make room on its disk"),
    (("readonly", "read-only"), Unavailable, "it is read-only; see its owner, mode and mount"),
    (("locked", "busy"), Unavailable, "somebody holds it for too long; try again"),
    (("unable to open", "disk i/o", "connect"), Unavailable, "see its path, owner and disk"),
]


def _error_from_sql(error: SQLAlchemyError | sqlite3.Error, url: str) -> TvixError:
    text = str(error.orig if isinstance(error, DBAPIError) else error)
    for needles, kind, advice in _CAUSES:
        if any(needle in text.lower() for needle in needles):
            return kind(f"database {url}: {text}: {advice}")
    if isinstance(error, sa.exc.TimeoutError):
        return Unavailable(f"database {url}: all connections are in use")
    return Internal(f"database {url}: {text}")


@dataclass(frozen=True)
class Codec(Generic[K, V]):
    """How keys and values become bytes. `decode` raises ValueError for bytes that are no value."""

    encode_key: Callable[[K], bytes]
    encode: Callable[[V], bytes]
    decode: Callable[[bytes], V]


@dataclass(frozen=True, slots=True)
class Retention:
    """How many records `prune` leaves, and for how long after their last use; None means no limit."""

    max_records: int | None = 1_000_000
    max_age_seconds: float | None = None


TOUCH_SECONDS = 3600.0
"""A record's time of last use is written again when it is this old, so that reads rarely write."""

_PRUNE_BATCH = 500
"""Records deleted in one transaction, so that others' writes get in between."""


class SqlRecordStore(RecordStore[K, V]):
    """Records in a table of their own: key, value, who wrote it, when it was written and last used.

    Made by `open_records`. Concurrent puts share one transaction. The database is closed by its owner.
    """

    def __init__(
        self,
        database: Database,
        table: sa.Table,
        codec: Codec[K, V],
        writer: Callable[[], str] = lambda: "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._table = table
        self._codec = codec
        self._writer = writer
        self._now = now
        self._put_rows = Coalescing[dict[str, Any], None](self._write_rows)
        self._touched: dict[bytes, float] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._table.name} in {self._database.url}>"

    async def get(self, key: K) -> V | None:
        key_bytes = self._codec.encode_key(key)
        columns = self._table.c
        query = sa.select(columns.value, columns.used_seconds).where(columns.key == key_bytes)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        now = self._now()
        if now - row.used_seconds >= TOUCH_SECONDS:
            self._touched[key_bytes] = now
        try:
            return self._codec.decode(row.value)
        except ValueError as error:
            # A record can be made again; a broken one must not keep its action from running.
            log.warning("table=%s key=%r undecodable value of %d bytes: %s", self._table, key, len(row.value), error)
            return None

    async def put(self, key: K, value: V) -> None:
        now = self._now()
        row = {
            "key": self._codec.encode_key(key),
            "value": self._codec.encode(value),
            "writer": self._writer(),
            "created_seconds": now,
            "used_seconds": now,
        }
        await self._put_rows([row])

    async def _write_rows(self, rows: Sequence[dict[str, Any]]) -> Sequence[None]:
        async with self._database.write() as connection:
            # The last put of a key wins, also within one statement.
            last = {row["key"]: row for row in rows}
            await connection.execute(self._database.upsert(self._table), list(last.values()))
            await self._write_touched(connection)
        return [None] * len(rows)

    async def _write_touched(self, connection: AsyncConnection) -> None:
        touched, self._touched = self._touched, {}
        if not touched:
            return
        columns = self._table.c
        update = (
            sa.update(self._table)
            .where(columns.key == sa.bindparam("touched_key"), columns.used_seconds < sa.bindparam("used"))
            .values(used_seconds=sa.bindparam("used"))
        )
        rows = [{"touched_key": key, "used": used} for key, used in touched.items()]
        await connection.execute(update, rows)

    async def delete(self, key: K) -> None:
        self._touched.pop(self._codec.encode_key(key), None)
        async with self._database.write() as connection:
            await connection.execute(sa.delete(self._table).where(self._table.c.key == self._codec.encode_key(key)))

    async def count(self) -> int:
        """Return the number of records."""
        async with self._database.read() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(self._table))).scalar_one())

    async def writer_of(self, key: K) -> str | None:
        """Return who wrote the record last, or None when there is none."""
        query = sa.select(self._table.c.writer).where(self._table.c.key == self._codec.encode_key(key))
        async with self._database.read() as connection:
            return cast("str | None", (await connection.execute(query)).scalar())

    async def prune(self, retention: Retention) -> int:
        """Delete what the retention does not keep, the longest unused first; return how many.

        Uses are known to within `TOUCH_SECONDS`, and caches in front hide some: keep ages well above that.
        """
        if self._touched:
            async with self._database.write() as connection:
                await self._write_touched(connection)
        deleted = 0
        if retention.max_age_seconds is not None:
            deleted += await self._delete_oldest(None, before=self._now() - retention.max_age_seconds)
        if retention.max_records is not None:
            deleted += await self._delete_oldest(max(0, await self.count() - retention.max_records))
        return deleted

    async def _delete_oldest(self, limit: int | None, before: float | None = None) -> int:
        columns = self._table.c
        deleted = 0
        while limit is None or deleted < limit:
            size = _PRUNE_BATCH if limit is None else min(_PRUNE_BATCH, limit - deleted)
            oldest = sa.select(columns.key).order_by(columns.used_seconds, columns.key).limit(size)
            if before is not None:
                oldest = oldest.where(columns.used_seconds < before)
            async with self._database.write() as connection:
                gone = await connection.execute(sa.delete(self._table).where(columns.key.in_(oldest)))
            deleted += gone.rowcount
            if gone.rowcount < size:
                break
        return deleted

    async def close(self) -> None:
        """Write down the last uses. The database is closed by whoever opened it."""
        if self._touched:
            async with self._database.write() as connection:
                await self._write_touched(connection)


async def open_records(
    database: Database,
    name: str,
    codec: Codec[K, V],
    writer: Callable[[], str] = lambda: "",
    now: Callable[[], float] = time.time,
) -> SqlRecordStore[K, V]:
    """Return the store of the records called `name`, creating its table. `writer` says who is putting."""
    table = _records_table(name)
    await database.ensure_schema(name, 1, table.metadata)
    return SqlRecordStore(database, table, codec, writer, now)


def _records_table(name: str) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("writer", sa.String, nullable=False),
        sa.Column("created_seconds", sa.Double, nullable=False),
        sa.Column("used_seconds", sa.Double, nullable=False, index=True),
    )


def _action_key_bytes(key: ActionKey) -> bytes:
    return f"{key.instance_name}\0{key.action_digest}".encode()


def _decode_action_result(data: bytes) -> re_pb2.ActionResult:
    try:
        return re_pb2.ActionResult.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


ACTION_RESULTS: Codec[ActionKey, re_pb2.ActionResult] = Codec(
    _action_key_bytes, re_pb2.ActionResult.SerializeToString, _decode_action_result
)


async def open_action_cache(
    database: Database, writer: Callable[[], str] = lambda: "", now: Callable[[], float] = time.time
) -> SqlRecordStore[ActionKey, re_pb2.ActionResult]:
    """Return the action cache of a database. Results are stored as they are: unknown fields survive."""
    return await open_records(database, "action_results", ACTION_RESULTS, writer, now)
