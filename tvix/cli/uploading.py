"""Uploads files and folders from this disk. Only what the server lacks is sent, and each file is read twice:
once for its digest, once when it is sent. A file that changes in between is refused by the server."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, DigestFunction, digest_of, digest_of_chunks, digest_to_proto
from tvix.cas.directory import check_name, encode_directory, sort_directory
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore
from tvix.errors import InvalidInput

BATCH_BYTES = 2 * 1024 * 1024
BATCH_BLOBS = 1000


@dataclass(slots=True)
class Scanned:
    """What is to be had by the server: contents by digest, in files or in memory."""

    function: DigestFunction
    files: dict[Digest, Path] = field(default_factory=dict)
    messages: dict[Digest, bytes] = field(default_factory=dict)

    def add(self, path: Path) -> Digest:
        """Take in a file or a whole folder; return its digest. Special files are InvalidInput."""
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return self._add_folder(path)
        return self._add_file(path, mode)

    def _add_file(self, path: Path, mode: int) -> Digest:
        if not stat.S_ISREG(mode):
            raise InvalidInput(f"{path} is neither a file nor a folder nor a symbolic link")
        digest = digest_of_chunks(_chunks(path), self.function)
        self.files[digest] = path
        return digest

    def _add_folder(self, folder: Path) -> Digest:
        directory = re_pb2.Directory()
        for path in sorted(folder.iterdir()):
            _check_utf8(path.name, folder)
            check_name(path.name, str(folder))
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                target = os.readlink(path)
                _check_utf8(target, folder)
                directory.symlinks.add(name=path.name, target=target)
            elif stat.S_ISDIR(mode):
                directory.directories.add(name=path.name, digest=digest_to_proto(self._add_folder(path)))
            else:
                file = digest_to_proto(self._add_file(path, mode))
                directory.files.add(name=path.name, digest=file, is_executable=bool(mode & 0o100))
        sort_directory(directory)
        data = encode_directory(directory)
        digest = digest_of(data, self.function)
        self.messages[digest] = data
        return digest


def _check_utf8(name: str, folder: Path) -> None:
    """Raise InvalidInput for a name that is not text: the API has no way to say it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{folder}: the name {os.fsencode(name)!r} is not UTF-8") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    for chunk in _chunks(path):
        yield chunk


async def upload(blobs: BlobStore, path: Path, function: DigestFunction) -> tuple[Digest, int]:
    """Store a file or folder; return its digest and how many bytes had to be sent."""
    scanned = Scanned(function)
    digest = scanned.add(path)
    missing = await blobs.find_missing([*scanned.files, *scanned.messages])
    batch: list[tuple[Digest, bytes]] = []
    for wanted in sorted(missing, key=lambda digest: digest.size_bytes):
        if wanted.size_bytes > BATCH_BYTES // 2:
            await blobs.write(wanted, _read(scanned.files[wanted]))
            continue
        data = scanned.messages.get(wanted)
        batch.append((wanted, scanned.files[wanted].read_bytes() if data is None else data))
        if len(batch) >= BATCH_BLOBS or sum(item[0].size_bytes for item in batch) > BATCH_BYTES:
            await _put(blobs, batch)
            batch = []
    await _put(blobs, batch)
    return digest, sum(wanted.size_bytes for wanted in missing)


async def _put(blobs: BlobStore, batch: list[tuple[Digest, bytes]]) -> None:
    for refusal in await blobs.put_many(batch):
        if refusal is not None:
            raise refusal
