"""Records in SQL: each kind in a table of its own, keys and values as bytes. See database.py for durability."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.coalescing import Coalescing
from tvix.cas.database import Database, open_database
from tvix.cas.interfaces import ActionKey, K, RecordStore, V

__all__ = [
    "ACTION_RESULTS",
    "TOUCH_SECONDS",
    "Codec",
    "Database",
    "Retention",
    "SqlRecordStore",
    "open_action_cache",
    "open_database",
    "open_records",
]

log = logging.getLogger(__name__)


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
        self._upsert = database.upsert(table)
        self._touch = (
            sa.update(table)
            .where(table.c.key == sa.bindparam("touched_key"), table.c.used_seconds < sa.bindparam("used"))
            .values(used_seconds=sa.bindparam("used"))
        )

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
        last = {row["key"]: row for row in rows}  # the last put of a key wins, also within one statement
        used = self._take_touched()

        def write(connection: sa.Connection) -> None:
            connection.execute(self._upsert, list(last.values()))
            if used:
                connection.execute(self._touch, used)

        await self._database.transact(write)
        return [None] * len(rows)

    def _take_touched(self) -> list[dict[str, Any]]:
        touched, self._touched = self._touched, {}
        return [{"touched_key": key, "used": seconds} for key, seconds in touched.items()]

    async def _write_touched(self) -> None:
        if used := self._take_touched():
            await self._database.transact(lambda connection: connection.execute(self._touch, used))

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
        await self._write_touched()
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
        await self._write_touched()


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
