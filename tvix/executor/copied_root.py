"""Build roots that are copied to disk, for machines without FUSE.

The whole tree is fetched before an action starts: Directories level by level, then files, small ones in
batches and large ones as streams. Files of the store are never hard-linked: an action that runs as their owner
could change them for everybody.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tvix.cas.digest import Digest
from tvix.cas.interfaces import BlobStore
from tvix.errors import BlobNotFound, InvalidDirectory, MissingBlobs, ResourceExhausted, Unavailable
from tvix.executor.input_tree import (
    DEFAULT_MTIME_NS,
    DIRECTORY_MODE,
    DirectoryEntry,
    FileEntry,
    Level,
    SymlinkEntry,
    level_from_bytes,
)
from tvix.executor.interfaces import BuildRoot, OpenRoot
from tvix.executor.scratch import Scratch, run_blocking


@dataclass(frozen=True, slots=True)
class CopiedConfig:
    """Bounds of copying."""

    small_file_bytes: int = 64 * 1024
    """Files up to this size are fetched in batches."""
    batch_bytes: int = 4 * 1024 * 1024
    batch_files: int = 512
    concurrency: int = 4
    """Batches and streams under way at a time, over all actions."""
    removals: int = 4
    """Copies that may await their removal; an action that ends later waits, so that the disk does not fill."""
    max_entries: int = 4_000_000
    """A tree that names one Directory many times can be huge; beyond this it is refused."""


class CopiedRoot(OpenRoot):
    """A copied tree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<CopiedRoot {self.path}>"


class _File(NamedTuple):
    path: str
    entry: FileEntry


@dataclass(slots=True)
class _Plan:
    """What to make below the root, paths relative to it, parents before children."""

    directories: list[tuple[str, Level]] = field(default_factory=list)
    files: list[_File] = field(default_factory=list)
    symlinks: list[tuple[str, SymlinkEntry]] = field(default_factory=list)

    def add(self, path: str, level: Level) -> list[tuple[str, Digest]]:
        """Add one directory's contents; return its subdirectories."""
        self.directories.append((path, level))
        below: list[tuple[str, Digest]] = []
        for name, entry in level.items():
            child = f"{path}/{name}" if path else name
            if isinstance(entry, FileEntry):
                self.files.append(_File(child, entry))
            elif isinstance(entry, DirectoryEntry):
                below.append((child, entry.digest))
            else:
                self.symlinks.append((child, entry))
        return below

    @property
    def entries(self) -> int:
        return len(self.directories) + len(self.files) + len(self.symlinks)


class CopiedBuildRoot(BuildRoot):
    """Copies input trees into subfolders `copied-N` of a scratch folder; clears it of a predecessor's first."""

    def __init__(self, blobs: BlobStore, scratch: Path, config: CopiedConfig | None = None) -> None:
        self._blobs = blobs
        self._scratch = Scratch(scratch, "copied")
        self._config = config or CopiedConfig()
        self._slots = asyncio.Semaphore(self._config.concurrency)
        self._claim = asyncio.Lock()
        self._claimed = False

    def __repr__(self) -> str:
        return f"<CopiedBuildRoot {self._scratch.folder}>"

    @asynccontextmanager
    async def open(self, input_root: Digest) -> AsyncGenerator[CopiedRoot, None]:
        """Copy the tree. Raises MissingBlobs with every absent Directory, or else every absent file."""
        plan = await self._plan(input_root)
        await self._check_present(plan)
        await self._claim_scratch()
        folder = await run_blocking(self._scratch.new, "copied")
        try:
            root = folder / "root"
            try:
                await self._copy(plan, root)
            except OSError as error:
                raise _translated(error, input_root) from error
            yield CopiedRoot(root)
        finally:
            await self._scratch.discard(folder)
            await self._scratch.settle(self._config.removals)

    async def close(self) -> None:
        """Remove all copies."""
        await self._scratch.settle()
        if self._claimed:
            await run_blocking(self._scratch.claim)

    async def _claim_scratch(self) -> None:
        async with self._claim:
            if not self._claimed:
                await run_blocking(self._scratch.claim)
                self._claimed = True

    async def _plan(self, root: Digest) -> _Plan:
        plan = _Plan()
        levels: dict[Digest, Level] = {}
        missing: set[Digest] = set()
        front: list[tuple[str, Digest]] = [("", root)]
        while front:
            missing |= await self._load({digest for _, digest in front} - levels.keys() - missing, levels)
            front = [
                below
                for path, digest in front
                if digest in levels
                for below in self._bounded(plan, path, levels[digest])
            ]
        if missing:
            raise MissingBlobs(missing)
        return plan

    def _bounded(self, plan: _Plan, path: str, level: Level) -> list[tuple[str, Digest]]:
        below = plan.add(path, level)
        if plan.entries > self._config.max_entries:
            raise InvalidDirectory(f"the input tree has more than {self._config.max_entries} entries, too many to copy")
        return below

    async def _load(self, digests: set[Digest], levels: dict[Digest, Level]) -> set[Digest]:
        """Put the Directories into `levels`; return those that are absent."""
        missing: set[Digest] = set()
        for batch in _batches(sorted(digests), self._config):
            for digest, data in zip(batch, await self._blobs.get_many(batch), strict=True):
                if data is None:
                    missing.add(digest)
                else:
                    levels[digest] = level_from_bytes(data, digest.function, f"directory {digest}")
        return missing

    async def _check_present(self, plan: _Plan) -> None:
        missing = await self._blobs.find_missing({file.entry.digest for file in plan.files})
        if missing:
            raise MissingBlobs(missing)

    async def _copy(self, plan: _Plan, root: Path) -> None:
        await run_blocking(_make_directories, plan, root)
        by_digest: dict[Digest, list[_File]] = {}
        for file in plan.files:
            by_digest.setdefault(file.entry.digest, []).append(file)
        small = [digest for digest in by_digest if digest.size_bytes <= self._config.small_file_bytes]
        try:
            async with asyncio.TaskGroup() as tasks:
                for batch in _batches(small, self._config):
                    tasks.create_task(self._copy_batch(batch, by_digest, root))
                for digest, files in by_digest.items():
                    if digest.size_bytes > self._config.small_file_bytes:
                        tasks.create_task(self._copy_large(digest, files, root))
        except BaseExceptionGroup as group:
            raise _first(group) from group
        await run_blocking(_finish_directories, plan, root)

    async def _copy_batch(self, digests: list[Digest], files: dict[Digest, list[_File]], root: Path) -> None:
        async with self._slots:
            contents = await self._blobs.get_many(digests)
            missing = [digest for digest, data in zip(digests, contents, strict=True) if data is None]
            if missing:
                raise MissingBlobs(missing)
            await run_blocking(_write_files, digests, contents, files, root)

    async def _copy_large(self, digest: Digest, files: list[_File], root: Path) -> None:
        for file in files:
            async with self._slots:
                fd = _create(root, file)
                try:
                    async with aclosing(self._blobs.read(digest)) as chunks:
                        async for chunk in chunks:
                            await run_blocking(_write_all, fd, chunk)
                    _finish_file(fd, file.entry)
                except BlobNotFound as error:
                    raise MissingBlobs([digest]) from error
                finally:
                    os.close(fd)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that the others followed from; blobs missing in several batches become one error."""
    errors = list(group.exceptions)
    missing = [digest for error in errors if isinstance(error, MissingBlobs) for digest in error.digests]
    return MissingBlobs(missing) if missing else errors[0]


def _batches(digests: Iterable[Digest], config: CopiedConfig) -> Iterable[list[Digest]]:
    batch: list[Digest] = []
    size_bytes = 0
    for digest in digests:
        if batch and (len(batch) >= config.batch_files or size_bytes + digest.size_bytes > config.batch_bytes):
            yield batch
            batch, size_bytes = [], 0
        batch.append(digest)
        size_bytes += digest.size_bytes
    if batch:
        yield batch


def _make_directories(plan: _Plan, root: Path) -> None:
    # Names are single segments and unique in their directory, so no path leads through a symlink.
    for path, _ in plan.directories:
        folder = root / path
        folder.mkdir()
        folder.chmod(DIRECTORY_MODE)
    for path, symlink in plan.symlinks:
        os.symlink(symlink.target, os.fsencode(root / path))
        if symlink.mtime_ns != DEFAULT_MTIME_NS:
            os.utime(root / path, ns=(symlink.mtime_ns, symlink.mtime_ns), follow_symlinks=False)


def _finish_directories(plan: _Plan, root: Path) -> None:
    # Children first: making an entry changes the time of the folder, and may be forbidden by its mode.
    for path, level in reversed(plan.directories):
        folder = root / path
        if level.mode != DIRECTORY_MODE:
            folder.chmod(level.mode)
        os.utime(folder, ns=(level.mtime_ns, level.mtime_ns))


def _write_files(
    digests: Sequence[Digest], contents: Sequence[bytes | None], files: dict[Digest, list[_File]], root: Path
) -> None:
    for digest, data in zip(digests, contents, strict=True):
        for file in files[digest]:
            fd = _create(root, file)
            try:
                _write_all(fd, data or b"")
                _finish_file(fd, file.entry)
            finally:
                os.close(fd)


def _create(root: Path, file: _File) -> int:
    return os.open(f"{root}/{file.path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _finish_file(fd: int, entry: FileEntry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _translated(error: OSError, input_root: Digest) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"no room on disk for a copy of input root {input_root}")
    if error.errno == errno.ENAMETOOLONG:
        return InvalidDirectory(f"input root {input_root}: a name or path is too long for this machine's file system")
    return Unavailable(f"input root {input_root} cannot be copied: {error.strerror or error}")
