"""Directories as build roots show them: names, modes and times. Pure.

What an input tree leaves open is fixed here, so that an action sees the same whether its root is mounted or
copied: files are 0444 or 0555, directories 0777 (any user an action runs as must be able to put outputs
beside inputs), times are 2000-01-01 (1980 is the earliest that zip files can hold). The node properties
`unix_mode` and `mtime` override this.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, DigestFunction, make_digest
from tvix.cas.directory import parse_directory
from tvix.errors import InvalidDigest

DEFAULT_MTIME_NS = 946_684_800 * 1_000_000_000
DIRECTORY_MODE = 0o777
FILE_MODE = 0o444
EXECUTABLE_MODE = 0o555
SYMLINK_MODE = 0o777

_PERMISSIONS = 0o7777


class FileEntry(NamedTuple):
    """A file. `mode` holds permission bits only."""

    digest: Digest
    mode: int
    mtime_ns: int


class DirectoryEntry(NamedTuple):
    """A subdirectory; its own mode and time stand in its Directory."""

    digest: Digest


class SymlinkEntry(NamedTuple):
    """A symbolic link, target in UTF-8."""

    target: bytes
    mtime_ns: int


Entry = FileEntry | DirectoryEntry | SymlinkEntry


class Level:
    """One Directory. Entries are numbered: files first, then directories, then symlinks, each in their own order.

    They are made when asked for, since of a directory of 50,000 files an action may want three.
    """

    __slots__ = ("_directory", "_function", "_names", "_numbers", "directory_count", "file_count", "mode", "mtime_ns")

    def __init__(self, directory: re_pb2.Directory, function: DigestFunction) -> None:
        self._directory = directory
        self._function: DigestFunction = function
        self._names = [
            *[node.name for node in directory.files],
            *[node.name for node in directory.directories],
            *[node.name for node in directory.symlinks],
        ]
        self._numbers = dict(zip(self._names, range(len(self._names)), strict=True))
        self.file_count = len(directory.files)
        self.directory_count = len(directory.directories)
        self.mode = _mode(directory.node_properties, DIRECTORY_MODE)
        self.mtime_ns = _mtime_ns(directory.node_properties)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<Level {self.file_count} files, {self.directory_count} directories, {len(self)} entries>"

    def get(self, name: bytes) -> Entry | None:
        """Return the entry of that name, or None."""
        number = self.number(name)
        return None if number is None else self.entry(number)

    def number(self, name: bytes) -> int | None:
        """Return the number of the entry of that name, or None."""
        try:
            return self._numbers.get(name.decode())
        except UnicodeDecodeError:
            return None

    def name(self, number: int) -> bytes:
        """Return the name of an entry."""
        return self._names[number].encode()

    def entry(self, number: int) -> Entry:
        """Return an entry by number; IndexError beyond the last."""
        if number < self.file_count:
            return _file_entry(self._directory.files[number], self._function)
        number -= self.file_count
        if number < self.directory_count:
            digest = self._directory.directories[number].digest
            return DirectoryEntry(Digest(self._function, digest.hash, digest.size_bytes))
        symlink = self._directory.symlinks[number - self.directory_count]
        return SymlinkEntry(symlink.target.encode(), _mtime_ns(symlink.node_properties))

    def file_type(self, number: int) -> int:
        """Return the type bits of an entry's mode."""
        if number < self.file_count:
            return stat.S_IFREG
        return stat.S_IFDIR if number < self.file_count + self.directory_count else stat.S_IFLNK

    def files_from(self, number: int) -> Iterator[Digest]:
        """Yield the digests of the files from that number on."""
        for index in range(number, self.file_count):
            digest = self._directory.files[index].digest
            yield Digest(self._function, digest.hash, digest.size_bytes)

    def directories(self) -> Iterator[Digest]:
        """Yield the digests of the subdirectories."""
        for node in self._directory.directories:
            yield Digest(self._function, node.digest.hash, node.digest.size_bytes)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Yield all names and entries."""
        for number, name in enumerate(self._names):
            yield name, self.entry(number)


def level_from_bytes(data: bytes, function: DigestFunction, where: str) -> Level:
    """Return the checked contents of an encoded Directory; InvalidDirectory names `where`."""
    return Level(parse_directory(data, function, where=where, strict=False), function)


def _file_entry(file: re_pb2.FileNode, function: DigestFunction) -> FileEntry:
    digest = Digest(function, file.digest.hash, file.digest.size_bytes)
    mode = EXECUTABLE_MODE if file.is_executable else FILE_MODE
    if not file.HasField("node_properties"):
        return FileEntry(digest, mode, DEFAULT_MTIME_NS)
    return FileEntry(digest, _mode(file.node_properties, mode), _mtime_ns(file.node_properties))


def _mode(properties: re_pb2.NodeProperties, default: int) -> int:
    return properties.unix_mode.value & _PERMISSIONS if properties.HasField("unix_mode") else default


def _mtime_ns(properties: re_pb2.NodeProperties) -> int:
    if not properties.HasField("mtime"):
        return DEFAULT_MTIME_NS
    return properties.mtime.seconds * 1_000_000_000 + properties.mtime.nanos


def tree_name(root: Digest) -> str:
    """Return the name under which a mount shows the tree below the Directory `root`."""
    return f"{root.function}-{root.hash}-{root.size_bytes}"


def digest_from_tree_name(name: str) -> Digest | None:
    """Return the root's digest, or None when `name` names no tree."""
    function, _, rest = name.partition("-")
    hash_hex, _, size = rest.partition("-")
    if not size.isdecimal() or not size.isascii():
        return None
    try:
        digest = make_digest(function, hash_hex, int(size))  # type: ignore[arg-type]
    except (InvalidDigest, KeyError, ValueError):
        return None
    return digest if tree_name(digest) == name else None
