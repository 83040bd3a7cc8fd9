"""From a local file system into a blob store: files and whole trees.

Files are hashed by several threads, off the event loop; then one question tells what the store lacks, and
only that is sent: small blobs in batches, large ones streamed, Directories last, so that an upload that
breaks off leaves no Directory whose contents were never sent. Symlinks are kept as they are. Of the mode only
the executable bit is kept.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.concurrently import all_of
from tvix.cas.digest import FUNCTIONS, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory, sort_directory
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore
from tvix.errors import DigestMismatch, FailedPrecondition, InvalidInput

SMALL_BYTES = 1024 * 1024
"""Files up to this size are sent in batches."""
_BATCH_BYTES = 8 * 1024 * 1024
_BATCH_BLOBS = 1000
_STREAMS = 4


@dataclass(frozen=True, slots=True)
class Upload:
    """What an upload did."""

    digest: Digest
    """Of the root Directory, or of the file."""
    files: int
    directories: int
    """Distinct Directories."""
    total_bytes: int
    """Of all files, duplicates included."""
    sent_blobs: int
    sent_bytes: int


@dataclass(slots=True)
class _Found:
    """What is to be uploaded."""

    function: DigestFunction
    files: dict[Digest, Path] = field(default_factory=dict)
    directories: dict[Digest, bytes] = field(default_factory=dict)
    file_count: int = 0
    total_bytes: int = 0


async def upload_file(blobs: BlobStore, path: Path, function: DigestFunction = "sha256") -> Upload:
    """Store one file. Raises InvalidInput when it cannot be read, FailedPrecondition when it changes meanwhile."""
    found = _Found(function)
    digest = await asyncio.to_thread(_hash_one, path, found)
    return await _send(blobs, digest, found)


async def upload_tree(blobs: BlobStore, path: Path, function: DigestFunction = "sha256") -> Upload:
    """Store a folder and all below it; the digest is that of its Directory.

    Raises InvalidInput, naming the path, for what cannot be read or is neither file, folder nor symlink or has
    a name that is not UTF-8; FailedPrecondition when a file changes meanwhile.
    """
    found = _Found(function)
    digest = await asyncio.to_thread(_hash_tree, path, found)
    return await _send(blobs, digest, found)


def _hash_one(path: Path, found: _Found) -> Digest:
    with _naming(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidInput(f"{path}: not a file", field="path")
    digest = _hash_file(path, found.function)
    found.files[digest] = path
    found.file_count, found.total_bytes = 1, digest.size_bytes
    return digest


def _hash_file(path: Path, function: DigestFunction) -> Digest:
    hasher = FUNCTIONS[function].new()
    size_bytes = 0
    with _naming(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
            size_bytes += len(chunk)
    return Digest(function, hasher.hexdigest(), size_bytes)


@dataclass(slots=True)
class _Folder:
    """One folder: its message so far, and what waits to be known for it."""

    message: re_pb2.Directory = field(default_factory=re_pb2.Directory)
    files: list[tuple[re_pb2.FileNode, Path]] = field(default_factory=list)
    folders: list[tuple[re_pb2.DirectoryNode, int]] = field(default_factory=list)
    """Nodes, and where their folders stand in the list of all."""


def _hash_tree(root: Path, found: _Found) -> Digest:
    folders = _scan(root)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting = [(node, path) for folder in folders for node, path in folder.files]
        digests = pool.map(lambda item: _hash_file(item[1], found.function), waiting, chunksize=16)
        for (node, path), digest in zip(waiting, digests, strict=True):
            node.digest.CopyFrom(digest_to_proto(digest))
            found.files[digest] = path
            found.total_bytes += digest.size_bytes
    found.file_count = len(waiting)
    # A folder stands after its parent in the list, so that from the end all children are known in time.
    known: dict[int, Digest] = {}
    for index in range(len(folders) - 1, -1, -1):
        folder = folders[index]
        for directory_node, child in folder.folders:
            directory_node.digest.CopyFrom(digest_to_proto(known[child]))
        sort_directory(folder.message)
        encoded = encode_directory(folder.message)
        known[index] = digest_of(encoded, found.function)
        found.directories[known[index]] = encoded
    return known[0]


def _scan(root: Path) -> list[_Folder]:
    """List all folders, parents first."""
    folders = [_Folder()]
    paths = [root]
    for index, path in enumerate(paths):  # grows while we go
        with _naming(path), os.scandir(path) as entries:
            for entry in entries:
                _take(entry, folders, index, paths)
    return folders


def _take(entry: os.DirEntry[str], folders: list[_Folder], index: int, paths: list[Path]) -> None:
    folder, path = folders[index], Path(entry.path)
    name = _text(entry.name, path)
    if entry.is_symlink():
        folder.message.symlinks.add(name=name, target=_text(os.readlink(path), path))
    elif entry.is_dir(follow_symlinks=False):
        paths.append(path)
        folders.append(_Folder())
        folder.folders.append((folder.message.directories.add(name=name), len(folders) - 1))
    elif entry.is_file(follow_symlinks=False):
        executable = bool(entry.stat(follow_symlinks=False).st_mode & 0o111)
        folder.files.append((folder.message.files.add(name=name, is_executable=executable), path))
    else:
        raise InvalidInput(f"{path}: neither a file nor a folder nor a symlink", field="path")


def _text(name: str, path: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{str(path)!r}: its name or target is not UTF-8", field="path") from error
    return name


class _naming:
    """Turns the system's errors into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise InvalidInput(f"{error.filename or self._path}: {error.strerror}", field="path") from error


async def _send(blobs: BlobStore, digest: Digest, found: _Found) -> Upload:
    missing = await blobs.find_missing({*found.files, *found.directories})
    files = [(absent, found.files[absent]) for absent in missing if absent in found.files]
    small = [(absent, path) for absent, path in files if absent.size_bytes <= SMALL_BYTES]
    large = [(absent, path) for absent, path in files if absent.size_bytes > SMALL_BYTES]
    for batch in _batches(small):
        await _put(blobs, await asyncio.to_thread(_read_all, batch))
    await all_of([_stream(blobs, absent, path) for absent, path in large], limit=_STREAMS)
    directories = [(absent, data) for absent, data in found.directories.items() if absent in missing]
    for parts in _batches(directories):
        await _put(blobs, parts)
    return Upload(
        digest=digest,
        files=found.file_count,
        directories=len(found.directories),
        total_bytes=found.total_bytes,
        sent_blobs=len(missing),
        sent_bytes=sum(absent.size_bytes for absent in missing),
    )


T = TypeVar("T")


def _batches(blobs: Iterable[tuple[Digest, T]]) -> Iterator[list[tuple[Digest, T]]]:
    batch: list[tuple[Digest, T]] = []
    size_bytes = 0
    for digest, what in blobs:
        if batch and (len(batch) == _BATCH_BLOBS or size_bytes + digest.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append((digest, what))
        size_bytes += digest.size_bytes
    if batch:
        yield batch


def _read_all(batch: Sequence[tuple[Digest, Path]]) -> list[tuple[Digest, bytes]]:
    blobs = []
    for digest, path in batch:
        with _naming(path):
            blobs.append((digest, path.read_bytes()))
        if digest_of(blobs[-1][1], digest.function) != digest:
            raise _changed(path)
    return blobs


async def _put(blobs: BlobStore, batch: Sequence[tuple[Digest, bytes]]) -> None:
    for refused in await blobs.put_many(batch):
        if refused is not None:
            raise refused


async def _stream(blobs: BlobStore, digest: Digest, path: Path) -> None:
    try:
        async with aclosing(_chunks(path)) as chunks:
            await blobs.write(digest, chunks)
    except DigestMismatch as error:
        raise _changed(path) from error


async def _chunks(path: Path) -> AsyncGenerator[bytes, None]:
    with _naming(path), path.open("rb", buffering=0) as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _changed(path: Path) -> FailedPrecondition:
    return FailedPrecondition(f"{path}: changed while it was uploaded; try again when nobody writes to it")
