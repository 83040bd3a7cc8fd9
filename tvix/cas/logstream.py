"""Log streams: bytes that are read while they are still being written. Reference: the Log Stream API v1.

    {parent/}logstreams/{id}            what readers are told
    {parent/}logstreams/{id}/{token}    what only the writer knows

A stream is a file in one folder, so that any process may append and any other tail:

    {id}.log    not finished yet; appended to, under flock
    {id}.done   finished: the same file, renamed

Making a stream touches no disk: id and token are authenticated with a secret kept in the same folder, so
a name that we gave out is told from an invented one without a record of it.

    id: creation time in seconds, hex:8 - random, hex:16 - MAC of parent and the rest, hex:16
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tvix.cas.interfaces import CHUNK_BYTES
from tvix.errors import (
    FailedPrecondition,
    InvalidResourceName,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
)

_SEGMENT = "logstreams"


@dataclass(frozen=True, slots=True)
class LogStreamLimits:
    """How much is kept, and how long."""

    max_stream_bytes: int = 64 * 1024 * 1024
    max_total_bytes: int = 1024 * 1024 * 1024
    """`prune` removes the oldest streams beyond it."""
    kept_seconds: float = 24 * 3600.0
    """Since the last write, or since it was made when nothing was written."""
    poll_seconds: float = 0.05
    """How often a reader that has caught up looks for more that another process wrote."""


class LogStreamNames(NamedTuple):
    """The two names of a stream."""

    name: str
    write_name: str


class _Parsed(NamedTuple):
    parent: str
    stream_id: str
    token: str


class LogStreams:
    """The streams in one folder. Any number of processes may use the same folder."""

    def __init__(
        self, folder: Path, limits: LogStreamLimits | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._limits = limits or LogStreamLimits()
        self._now = now
        self._secret = _load_secret(folder / "secret")
        self._written = asyncio.Event()

    def __repr__(self) -> str:
        return f"<LogStreams in {self._folder}>"

    async def create(self, parent: str) -> LogStreamNames:
        """Return the names of a new stream below `parent`, which may be empty. Touches no disk."""
        _check_parent(parent)
        plain = f"{int(self._now()):08x}-{secrets.token_hex(8)}"
        stream_id = f"{plain}-{self._mac('id', parent, plain)}"
        name = f"{parent}/{_SEGMENT}/{stream_id}" if parent else f"{_SEGMENT}/{stream_id}"
        return LogStreamNames(name, f"{name}/{self._mac('write', parent, stream_id)}")

    def _mac(self, purpose: str, parent: str, text: str) -> str:
        message = f"{purpose}\0{parent}\0{text}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:16]

    def claims(self, resource_name: str) -> bool:
        """Tell whether a ByteStream resource name is a log stream's."""
        if _SEGMENT not in resource_name:
            return False
        segments = resource_name.split("/")
        return _SEGMENT in (segments[-2:-1] + segments[-3:-2]) and "uploads" not in segments

    def _parse(self, resource_name: str) -> _Parsed:
        """Take a name apart; NotFound when it is none that we gave out, or too old."""
        segments = resource_name.split("/")
        token = segments.pop() if segments[-3:-2] == [_SEGMENT] else ""
        parent, stream_id = "/".join(segments[:-2]), segments[-1]
        plain, _, mac = stream_id.rpartition("-")
        if not hmac.compare_digest(mac.encode(), self._mac("id", parent, plain).encode()):
            raise NotFound(f"resource_name: there is no log stream {'/'.join(segments)!r}")
        return _Parsed(parent, stream_id, token)

    def _parse_read_name(self, resource_name: str) -> _Parsed:
        parsed = self._parse(resource_name)
        if parsed.token:
            raise InvalidResourceName(
                "resource_name: this name of a log stream is for writing; read by the name without its last part",
                field="resource_name",
            )
        return parsed

    def _parse_write_name(self, resource_name: str) -> _Parsed:
        parsed = self._parse(resource_name)
        if not parsed.token:
            raise InvalidResourceName(
                f"resource_name: {resource_name!r} is for reading; writers use the stream's write_resource_name",
                field="resource_name",
            )
        if not hmac.compare_digest(parsed.token.encode(), self._mac("write", parsed.parent, parsed.stream_id).encode()):
            raise PermissionDenied(f"the write token of log stream {parsed.stream_id} is not the right one")
        return parsed

    def _path(self, stream_id: str, suffix: str) -> Path:
        return self._folder / f"{stream_id}.{suffix}"

    async def append(self, resource_name: str, offset: int, data: bytes, *, finish: bool = False) -> int:
        """Add bytes at the stream's end, which must be `offset`, and return the new end.

        Takes the writer's name. Raises FailedPrecondition when the stream is finished, ResourceExhausted,
        which finishes it, when it is too long.
        """
        parsed = self._parse_write_name(resource_name)
        end = await asyncio.to_thread(self._append, parsed.stream_id, offset, data, finish)
        self._wake_readers()
        if end > self._limits.max_stream_bytes:
            raise ResourceExhausted(f"log stream {parsed.stream_id} is over {self._limits.max_stream_bytes} bytes")
        return end

    def _wake_readers(self) -> None:
        self._written.set()
        self._written = asyncio.Event()

    def _append(self, stream_id: str, offset: int, data: bytes, finish: bool) -> int:
        with self._locked(stream_id) as (descriptor, finished):
            size_bytes = os.fstat(descriptor).st_size
            if finished and (data or offset != size_bytes):
                raise FailedPrecondition(f"log stream {stream_id} is finished and takes no more bytes")
            if offset != size_bytes:
                raise InvalidResourceName(
                    f"write_offset: {offset}, but log stream {stream_id} has {size_bytes} bytes", field="write_offset"
                )
            room = max(self._limits.max_stream_bytes - size_bytes, 0)
            _write_all(descriptor, data[:room])
            if (finish or len(data) > room) and not finished:
                self._path(stream_id, "log").rename(self._path(stream_id, "done"))
        return size_bytes + len(data)

    @contextmanager
    def _locked(self, stream_id: str) -> Iterator[tuple[int, bool]]:
        """Open the stream's file, made if need be, for one writer at a time; tell whether it is finished."""
        open_path, done_path = self._path(stream_id, "log"), self._path(stream_id, "done")
        finished = done_path.exists()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | (0 if finished else os.O_CREAT)
        descriptor = os.open(done_path if finished else open_path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not finished and done_path.exists():
                # Finished while we waited; if we came between the look and the rename, we made an empty file anew.
                finished = True
                if os.fstat(descriptor).st_ino != done_path.stat().st_ino:
                    open_path.unlink(missing_ok=True)
                    descriptor = _reopen(descriptor, done_path)
            yield descriptor, finished
        finally:
            os.close(descriptor)

    async def finish(self, resource_name: str) -> None:
        """End a stream by either of its names, whatever has been written; fine if it has ended."""
        parsed = self._parse(resource_name)
        await asyncio.to_thread(self._finish, parsed.stream_id)
        self._wake_readers()

    def _finish(self, stream_id: str) -> None:
        with self._locked(stream_id) as (_, finished):
            if not finished:
                self._path(stream_id, "log").rename(self._path(stream_id, "done"))

    async def status(self, resource_name: str) -> tuple[int, bool]:
        """Return the stream's length and whether it is finished. Takes the writer's name."""
        parsed = self._parse_write_name(resource_name)
        return await asyncio.to_thread(self._status, parsed.stream_id)

    def _status(self, stream_id: str) -> tuple[int, bool]:
        for suffix in ("done", "log", "done"):
            with suppress(FileNotFoundError):
                return self._path(stream_id, suffix).stat().st_size, suffix == "done"
        if self._created(stream_id) + self._limits.kept_seconds < self._now():
            raise NotFound(f"log stream {stream_id} is not kept any more")
        return 0, False

    @staticmethod
    def _created(stream_id: str) -> float:
        return int(stream_id.partition("-")[0], 16)

    async def read(self, resource_name: str, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from `offset` on as they come, until the stream is finished or `limit` is reached.

        Takes the readers' name. Raises OutOfRange for an offset beyond what is written. Use under `aclosing`.
        """
        stream_id = self._parse_read_name(resource_name).stream_id
        size_bytes, finished = await asyncio.to_thread(self._status, stream_id)
        if not 0 <= offset <= size_bytes:
            raise OutOfRange(f"read_offset: {offset} is outside of log stream {stream_id} of {size_bytes} bytes")
        left = limit if limit is not None else 1 << 62
        while left:
            written = self._written
            size_bytes, finished = await asyncio.to_thread(self._status, stream_id)
            while offset < size_bytes and left:
                data = await asyncio.to_thread(self._read, stream_id, offset, min(left, CHUNK_BYTES))
                if not data:
                    return
                offset += len(data)
                left -= len(data)
                yield data
            if finished:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll_seconds):
                    await written.wait()

    def _read(self, stream_id: str, offset: int, length: int) -> bytes:
        for suffix in ("log", "done"):
            with suppress(FileNotFoundError), self._path(stream_id, suffix).open("rb") as file:
                return os.pread(file.fileno(), length, offset)
        raise NotFound(f"log stream {stream_id} is not kept any more")

    async def prune(self) -> int:
        """Remove streams that are too old, and the oldest while all together are too large; return how many."""
        return await asyncio.to_thread(self._prune)

    def _prune(self) -> int:
        streams = []
        for path in self._folder.glob("*-*-*.*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                streams.append((status.st_mtime, status.st_size, path))
        streams.sort(reverse=True)
        kept_bytes = removed = 0
        for written_at, size_bytes, path in streams:
            kept_bytes += size_bytes
            if kept_bytes > self._limits.max_total_bytes or written_at + self._limits.kept_seconds < self._now():
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def _check_parent(parent: str) -> None:
    if len(parent) > 1024 or "\0" in parent:
        raise InvalidResourceName(f"parent: {parent[:100]!r} is too long or has a NUL", field="parent")
    if parent and not all(segment and segment not in (_SEGMENT, "uploads") for segment in parent.split("/")):
        raise InvalidResourceName(
            f"parent: {parent!r} has an empty segment or one called {_SEGMENT!r} or 'uploads'", field="parent"
        )


def _load_secret(path: Path) -> bytes:
    """Return the secret that all processes share; the first one makes it."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    fresh = path.with_name(f"secret.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(32))
        os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.close(descriptor)
        fresh.unlink()
    return path.read_bytes()


def _reopen(descriptor: int, path: Path) -> int:
    os.close(descriptor)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
