"""From a blob store onto a local file system: files and whole trees.

Small files are fetched in batches, large ones streamed. A tree is checked before it is written; whatever is
missing from the store is told all at once. Directories that several parents share are written each time, so
the number of entries is bounded: a few small Directories can name more than any disk holds.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tvix.cas.concurrently import all_of
from tvix.cas.digest import Digest
from tvix.cas.directory import parse_directory
from tvix.cas.interfaces import BlobStore
from tvix.cas.tree import TreeWalker
from tvix.errors import AlreadyExists, FailedPrecondition, MissingBlobs, ResourceExhausted

MAX_ENTRIES = 5_000_000
_SMALL_BYTES = 1024 * 1024
_BATCH_BYTES = 8 * 1024 * 1024
_BATCH_BLOBS = 1000
_STREAMS = 4


@dataclass(frozen=True, slots=True)
class Download:
    """What a download wrote."""

    files: int
    directories: int
    symlinks: int
    total_bytes: int


@dataclass(slots=True)
class _Plan:
    """All that is to be made; parents come before what is in them."""

    folders: list[Path] = field(default_factory=list)
    files: list[tuple[Digest, Path, bool]] = field(default_factory=list)
    symlinks: list[tuple[Path, str]] = field(default_factory=list)


async def download_file(blobs: BlobStore, digest: Digest, path: Path, *, executable: bool = False) -> None:
    """Write one blob to `path`, replacing what is there at once, when it is whole.

    Raises BlobNotFound; FailedPrecondition, naming the path, when it cannot be written.
    """
    try:
        await _stream(blobs, digest, path, executable)
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or path}: {error.strerror}") from error


async def download_tree(blobs: BlobStore, root: Digest, path: Path, *, max_entries: int = MAX_ENTRIES) -> Download:
    """Write the tree of a root Directory to `path`, which must not exist, or be an empty folder.

    Raises MissingBlobs with all that the store lacks and InvalidDirectory for a malformed tree, both before
    anything is written; AlreadyExists; FailedPrecondition when something cannot be written.
    """
    encoded = await TreeWalker(blobs, strict=False).directories(root)
    plan = _plan(root, encoded, path, max_entries)
    await _check_there(blobs, root, encoded, plan)
    try:
        await asyncio.to_thread(_make_folders, path, plan)
        for batch in _batches(plan.files):
            await _write_batch(blobs, batch)
        large = [entry for entry in plan.files if entry[0].size_bytes > _SMALL_BYTES]
        await all_of([_stream(blobs, *entry) for entry in large], limit=_STREAMS)
        # Last, so that nothing is ever written through one.
        await asyncio.to_thread(_make_symlinks, plan)
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or path}: {error.strerror}") from error
    return Download(
        files=len(plan.files),
        directories=len(plan.folders),
        symlinks=len(plan.symlinks),
        total_bytes=sum(digest.size_bytes for digest, _, _ in plan.files),
    )


def _plan(root: Digest, encoded: dict[Digest, bytes], path: Path, max_entries: int) -> _Plan:
    plan = _Plan([path])
    messages = {
        digest: parse_directory(data, digest.function, where=f"directory {digest}", strict=False)
        for digest, data in encoded.items()
    }
    waiting = [(root, path)]
    while waiting:
        digest, folder = waiting.pop()
        message = messages.get(digest)
        if message is None:
            continue  # missing; told by _check_there
        for file in message.files:
            blob = Digest(digest.function, file.digest.hash, file.digest.size_bytes)
            plan.files.append((blob, folder / file.name, file.is_executable))
        for link in message.symlinks:
            plan.symlinks.append((folder / link.name, link.target))
        for node in message.directories:
            plan.folders.append(folder / node.name)
            waiting.append((Digest(digest.function, node.digest.hash, node.digest.size_bytes), folder / node.name))
        if len(plan.folders) + len(plan.files) + len(plan.symlinks) > max_entries:
            raise ResourceExhausted(f"the tree {root} has more than {max_entries} entries")
    return plan


async def _check_there(blobs: BlobStore, root: Digest, encoded: dict[Digest, bytes], plan: _Plan) -> None:
    needed = {digest for digest, _, _ in plan.files} | {root}
    for digest, data in encoded.items():
        for node in parse_directory(data, digest.function, strict=False).directories:
            needed.add(Digest(digest.function, node.digest.hash, node.digest.size_bytes))
    missing = await blobs.find_missing(needed)
    if missing:
        raise MissingBlobs(missing)


def _make_folders(path: Path, plan: _Plan) -> None:
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise AlreadyExists(f"{path}: is there already; name a new or empty folder")
    path.mkdir(parents=True, exist_ok=True)
    for folder in plan.folders[1:]:
        folder.mkdir()


def _make_symlinks(plan: _Plan) -> None:
    for path, target in plan.symlinks:
        path.symlink_to(target)


Entry = tuple[Digest, Path, bool]


def _batches(files: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size_bytes = 0
    for entry in files:
        if entry[0].size_bytes > _SMALL_BYTES:
            continue
        if batch and (len(batch) == _BATCH_BLOBS or size_bytes + entry[0].size_bytes > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(entry)
        size_bytes += entry[0].size_bytes
    if batch:
        yield batch


async def _write_batch(blobs: BlobStore, batch: Sequence[Entry]) -> None:
    wanted = list(dict.fromkeys(digest for digest, _, _ in batch))
    found = dict(zip(wanted, await blobs.get_many(wanted), strict=True))
    missing = [digest for digest, data in found.items() if data is None]
    if missing:
        raise MissingBlobs(missing)
    await asyncio.to_thread(_write_files, batch, found)


def _write_files(batch: Sequence[Entry], found: dict[Digest, bytes | None]) -> None:
    for digest, path, executable in batch:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o777 if executable else 0o666)
        with open(descriptor, "wb") as file:
            file.write(found[digest] or b"")


async def _stream(blobs: BlobStore, digest: Digest, path: Path, executable: bool) -> None:
    descriptor, name = await asyncio.to_thread(tempfile.mkstemp, dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with await asyncio.to_thread(os.fdopen, descriptor, "wb") as file:
            async with aclosing(blobs.read(digest)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(_finish, name, path, executable)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _finish(name: str, path: Path, executable: bool) -> None:
    umask = _umask()
    os.chmod(name, (0o777 if executable else 0o666) & ~umask)
    os.rename(name, path)


def _umask() -> int:
    """Return the process's umask without setting it, which other threads would see."""
    with open("/proc/self/status") as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)
