"""Directories as build roots show them: names, modes and times. Pure.

What an input tree leaves open is fixed here, so that an action sees the same whether its root is mounted or
copied: files are 0444 or 0555, directories 0777 (any user an action runs as must be able to put outputs
beside inputs), times are 2000-01-01 (1980 is the earliest that zip files can hold). The node properties
`unix_mode` and `mtime` override this.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class Level(NamedTuple):
    """One Directory: entries by name (UTF-8), and the attributes of the directory itself."""

    entries: Mapping[bytes, Entry]
    mode: int
    mtime_ns: int


def level_from_bytes(data: bytes, function: DigestFunction, where: str) -> Level:
    """Return the checked contents of an encoded Directory; InvalidDirectory names `where`."""
    directory = parse_directory(data, function, where=where, strict=False)
    entries: dict[bytes, Entry] = {}
    for file in directory.files:
        digest = Digest(function, file.digest.hash, file.digest.size_bytes)
        mode = EXECUTABLE_MODE if file.is_executable else FILE_MODE
        if file.HasField("node_properties"):
            properties = file.node_properties
            entries[file.name.encode()] = FileEntry(digest, _mode(properties, mode), _mtime_ns(properties))
        else:
            entries[file.name.encode()] = FileEntry(digest, mode, DEFAULT_MTIME_NS)
    for child in directory.directories:
        entries[child.name.encode()] = DirectoryEntry(Digest(function, child.digest.hash, child.digest.size_bytes))
    for symlink in directory.symlinks:
        entries[symlink.name.encode()] = SymlinkEntry(symlink.target.encode(), _mtime_ns(symlink.node_properties))
    properties = directory.node_properties
    return Level(entries, _mode(properties, DIRECTORY_MODE), _mtime_ns(properties))


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
