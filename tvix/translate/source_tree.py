"""Files and trees of the machine on their way into the store: planned, hashed, copied.

A plan is made first, asking the filter once for each entry; then it is hashed as a NAR, without a copy, and copied
only if the store lacks it. The copy is hashed too while it is made, so that what changes meanwhile gets the path
of what was really copied.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvix.errors import InvalidInput
from tvix.eval.io import Filter, type_of_mode
from tvix.nix import nar
from tvix.nix.hashes import Hash

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be read when its turn comes."""

    name: bytes
    path: str


Planned = PlannedFile | nar.Symlink | nar.DirectoryStart | nar.DirectoryEnd


def plan_tree(path: str, shown: str, keep: Filter | None) -> list[Planned]:
    """Return what makes up the file or tree at `path`, in the order of NARs, without what `keep` refuses.

    `keep` is given paths below `shown`; it is not asked about the root. OSError if something cannot be read,
    InvalidInput for devices, sockets and the like.
    """
    planned: list[Planned] = []
    _plan(planned, b"", path, shown, os.lstat(path).st_mode, keep)
    return planned


def _plan(planned: list[Planned], name: bytes, path: str, shown: str, mode: int, keep: Filter | None) -> None:
    if stat.S_ISREG(mode):
        planned.append(PlannedFile(name, path))
    elif stat.S_ISLNK(mode):
        planned.append(nar.Symlink(name, os.fsencode(os.readlink(path))))
    elif stat.S_ISDIR(mode):
        planned.append(nar.DirectoryStart(name))
        for entry in sorted(os.listdir(path), key=os.fsencode):
            inner, inner_shown = f"{path}/{entry}", f"{shown.rstrip('/')}/{entry}"
            inner_mode = os.lstat(inner).st_mode
            if keep is None or keep(inner_shown, type_of_mode(inner_mode)):
                _plan(planned, os.fsencode(entry), inner, inner_shown, inner_mode, keep)
        planned.append(nar.DirectoryEnd())
    else:
        raise InvalidInput(f"file '{shown}' has an unsupported type")


def hash_tree(planned: list[Planned]) -> Hash:
    """Return the SHA-256 of the NAR."""
    return _hash(_events(planned))


def copy_tree(planned: list[Planned], target: str) -> Hash:
    """Make what was planned at `target`, where nothing is; return the SHA-256 of its NAR."""
    return _hash(_copying(planned, target))


def newest(path: str) -> int:
    """Return when the newest thing in a file or tree was modified, in seconds since 1970. OSError."""
    found = os.lstat(path).st_mtime
    for folder, folders, files in os.walk(path):
        found = max([found, *[os.lstat(f"{folder}/{name}").st_mtime for name in [*folders, *files]]])
    return int(found)


def hash_file(path: str) -> Hash:
    """Return the SHA-256 of a file. OSError if it cannot be read."""
    with open(path, "rb") as file:
        return Hash("sha256", hashlib.file_digest(file, "sha256").digest())


def _hash(events: Iterator[nar.Event]) -> Hash:
    digest = hashlib.sha256()
    for piece in nar.write(events):
        digest.update(piece)
    return Hash("sha256", digest.digest())


def _events(planned: list[Planned]) -> Iterator[nar.Event]:
    for item in planned:
        if isinstance(item, PlannedFile):
            yield from _file(item, None)
        else:
            yield item


def _file(planned: PlannedFile, write: Callable[[bytes], object] | None) -> Iterator[nar.Event]:
    with open(planned.path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        left = status.st_size
        yield nar.File(planned.name, bool(status.st_mode & stat.S_IXUSR), left)
        while left:
            block = file.read(min(left, _BLOCK_BYTES))
            if not block:
                raise InvalidInput(f"file '{planned.path}' became shorter while it was read")
            left -= len(block)
            if write is not None:
                write(block)
            yield block


def _copying(planned: list[Planned], target: str) -> Iterator[nar.Event]:
    folders: list[str] = []
    for item in planned:
        if isinstance(item, nar.DirectoryEnd):
            folders.pop()
            yield item
            continue
        path = f"{folders[-1]}/{os.fsdecode(item.name)}" if folders else target
        if isinstance(item, PlannedFile):
            yield from _copying_file(item, path)
            continue
        if isinstance(item, nar.DirectoryStart):
            os.mkdir(path)
            folders.append(path)
        else:
            os.symlink(os.fsdecode(item.target), path)
        yield item


def _copying_file(item: PlannedFile, path: str) -> Iterator[nar.Event]:
    with open(path, "xb") as copy:
        for event in _file(item, copy.write):
            if isinstance(event, nar.File):
                os.fchmod(copy.fileno(), 0o555 if event.executable else 0o444)
            yield event
