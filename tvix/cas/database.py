"""The SQL database that records live in.

SQLAlchemy, so that SQLite (embedded, the default) can be PostgreSQL later; what is SQLite's own stands in
`_prepare_sqlite` and `_probe_sqlite`. Several processes share one SQLite file: WAL, so that readers never wait;
write transactions begin IMMEDIATE, so that they queue (up to `BUSY_SECONDS`) instead of failing half-way.

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
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

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

T = TypeVar("T")

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

    def __init__(self, engine: AsyncEngine, blocking: sa.Engine | None = None) -> None:
        """`blocking` is a second engine on the same database, for `transact`; see there."""
        self.engine = engine
        self._blocking = blocking
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tvix-sql") if blocking is not None else None
        self.url = engine.url.render_as_string(hide_password=True)
        self._writing = asyncio.Lock()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<Database {self.url}>"

    @property
    def sync_engines(self) -> list[sa.Engine]:
        """The engines behind this database, to listen to."""
        return [self.engine.sync_engine, *([self._blocking] if self._blocking is not None else [])]

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

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction, which its return commits and its exception undoes.

        What `write` does in five hops between the loop and the driver's thread, a statement and a commit each,
        takes one here: for the transactions that every execution waits for. `work` runs in a thread.
        """
        with _Mapped(self.url):
            if self._blocking is None or self._writer is None:
                async with self._writing, self.engine.begin() as connection:
                    return await connection.run_sync(work)
            async with self._writing:
                return await asyncio.get_running_loop().run_in_executor(self._writer, self._transact, work)

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        assert self._blocking is not None
        with self._blocking.begin() as connection:
            return work(connection)

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
        if self._blocking is not None and self._writer is not None:
            await asyncio.to_thread(self._writer.shutdown)
            self._blocking.dispose()
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
    if engine.dialect.name != "sqlite":
        return Database(engine)
    blocking = sa.create_engine(parsed.set(drivername="sqlite"), connect_args={"check_same_thread": False})
    database = Database(engine, blocking)
    await asyncio.to_thread(_probe_sqlite, database.url, parsed.database or "", busy_seconds)
    _prepare_sqlite(engine.sync_engine, busy_seconds, database)
    _prepare_sqlite(blocking, busy_seconds, database)
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


def _prepare_sqlite(engine: sa.Engine, busy_seconds: float, database: Database) -> None:
    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        thread = getattr(getattr(connection, "driver_connection", None), "_thread", None)
        if isinstance(thread, threading.Thread):
            database._threads.add(thread)
        # None: the driver begins no transactions of its own, `begun` does.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
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
