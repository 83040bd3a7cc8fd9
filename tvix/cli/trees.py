"""Trees of a server, read for people: listing, finding a path, writing to disk, guessing what a blob is."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_from_proto, function_to_wire
from tvix.cas.directory import directories_from_tree, parse_directory
from tvix.cas.interfaces import BlobStore, read_whole
from tvix.errors import InvalidDirectory, InvalidInput, NotFound, TvixError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Larger blobs are not taken for messages."""


class Entry(NamedTuple):
    """One name in a tree."""

    path: str
    kind: str
    """`f` file, `x` executable file, `d` directory, `l` symbolic link."""
    digest: Digest | None
    """None for a symbolic link."""
    target: str = ""


@dataclass(frozen=True)
class OpenTree:
    """A directory, and the directories that came with it when it is the root of a Tree message."""

    root: Digest
    known: Mapping[Digest, bytes] = field(default_factory=dict)


class TreeReader:
    """Reads Directories and Trees of one store."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs

    async def open(self, digest: Digest) -> OpenTree:
        """Return the tree that a Directory or Tree is the root of; InvalidDirectory when the blob is neither."""
        if digest.size_bytes > MAX_MESSAGE_BYTES:
            raise InvalidDirectory(f"{digest} is too large to be a Directory or a Tree")
        data = await read_whole(self.blobs, digest)
        try:
            parse_directory(data, digest.function, where=str(digest), strict=False)
            return OpenTree(digest)
        except InvalidDirectory:
            root, known = directories_from_tree(data, digest.function)
            for content in known.values():
                parse_directory(content, digest.function, where=f"tree {digest}", strict=False)
            return OpenTree(root, known)

    async def is_directory(self, digest: Digest) -> bool:
        """Whether a blob can be read as a Directory or a Tree that is not empty."""
        if not digest.size_bytes:
            return False
        try:
            await self.open(digest)
        except InvalidInput:
            return False
        return True

    async def directory(self, tree: OpenTree) -> re_pb2.Directory:
        """Return the message of a tree's root."""
        data = tree.known.get(tree.root)
        if data is None:
            data = await read_whole(self.blobs, tree.root)
        return parse_directory(data, tree.root.function, where=str(tree.root), strict=False)

    async def entries(self, tree: OpenTree, prefix: str = "") -> list[Entry]:
        """Return what a directory holds, by name; paths begin with `prefix`."""
        directory = await self.directory(tree)
        function = function_to_wire(tree.root.function)

        def digest_of(node: re_pb2.FileNode | re_pb2.DirectoryNode) -> Digest:
            return digest_from_proto(node.digest, function, field=node.name)

        files = (
            Entry(prefix + node.name, "x" if node.is_executable else "f", digest_of(node)) for node in directory.files
        )
        folders = (Entry(prefix + node.name, "d", digest_of(node)) for node in directory.directories)
        links = (Entry(prefix + node.name, "l", None, node.target) for node in directory.symlinks)
        return sorted([*files, *folders, *links])

    async def walk(self, tree: OpenTree, *, recursive: bool) -> AsyncGenerator[Entry, None]:
        """Yield a directory's entries, those of its directories after each when `recursive`."""
        waiting = (await self.entries(tree))[::-1]
        while waiting:
            entry = waiting.pop()
            yield entry
            if recursive and entry.kind == "d" and entry.digest:
                below = await self.entries(OpenTree(entry.digest, tree.known), f"{entry.path}/")
                waiting += below[::-1]

    async def _lookup(self, tree: OpenTree, path: str) -> tuple[OpenTree, Entry | None]:
        """Return the entry at a path and the directory that holds it; None for the root itself."""
        entry: Entry | None = None
        for name in [part for part in path.split("/") if part not in ("", ".")]:
            if entry is not None:
                if entry.kind != "d" or entry.digest is None:
                    raise NotFound(f"{path}: {entry.path} is not a directory")
                tree = OpenTree(entry.digest, tree.known)
            prefix = f"{entry.path}/" if entry else ""
            entry = next((it for it in await self.entries(tree, prefix) if it.path == prefix + name), None)
            if entry is None:
                raise NotFound(f"{prefix}{name}: no such file or directory in {tree.root}")
        return tree, entry

    async def find(self, tree: OpenTree, path: str) -> OpenTree:
        """Return the directory at a path; NotFound when there is none."""
        holder, entry = await self._lookup(tree, path)
        if entry is None:
            return holder
        if entry.kind != "d" or entry.digest is None:
            raise NotFound(f"{path} is not a directory")
        return OpenTree(entry.digest, tree.known)

    async def file(self, tree: OpenTree, path: str) -> Digest:
        """Return the digest of the file at a path; NotFound when there is none."""
        _, entry = await self._lookup(tree, path)
        if entry is None or entry.kind not in "fx" or entry.digest is None:
            raise NotFound(f"{path} is not a file")
        return entry.digest


def format_entry(entry: Entry) -> str:
    """Return the line of an entry: kind, digest, path."""
    mark = {"f": "-", "x": "-x", "d": "d", "l": "l"}[entry.kind]
    name = f"{entry.path} -> {entry.target}" if entry.kind == "l" else entry.path + "/" * (entry.kind == "d")
    return f"{mark:<2}  {entry.digest or '-'!s:<75}  {name}"


async def write_file(blobs: BlobStore, digest: Digest, destination: Path, *, executable: bool = False) -> None:
    """Write a blob to a new file; nothing is left when that fails."""
    try:
        with destination.open("xb") as file:
            async with aclosing(blobs.read(digest)) as chunks:
                async for chunk in chunks:
                    file.write(chunk)
            if executable:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                os.fchmod(file.fileno(), mode | (mode & 0o444) >> 2)
    except TvixError:
        destination.unlink(missing_ok=True)
        raise


async def write_tree(reader: TreeReader, tree: OpenTree, destination: Path) -> int:
    """Write a tree to a new folder; return the number of files."""
    destination.mkdir()
    count = 0
    async with aclosing(reader.walk(tree, recursive=True)) as entries:
        async for entry in entries:
            path = destination / entry.path
            if entry.kind == "d":
                path.mkdir()
            elif entry.kind == "l":
                path.symlink_to(entry.target)
            elif entry.digest:
                await write_file(reader.blobs, entry.digest, path, executable=entry.kind == "x")
                count += 1
    return count


def _as_message(kind: Callable[[], Message], data: bytes) -> Any:
    """Return the message if the bytes are just what it serializes to, with no unknown fields; else None."""
    message: Any = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    known: Any = kind()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return message if known.SerializeToString(deterministic=True) == data else None


async def describe(blobs: BlobStore, digest: Digest) -> str:
    """Return what a blob looks like, in a few words: a guess, for blobs do not say."""
    if not digest.size_bytes:
        return "empty file, or empty directory"
    if digest.size_bytes > MAX_MESSAGE_BYTES:
        return "large file"
    data = await read_whole(blobs, digest)
    action = _as_message(re_pb2.Action, data)
    if action and action.command_digest.hash and action.input_root_digest.hash:
        return "Action"
    command = _as_message(re_pb2.Command, data)
    if command and command.arguments:
        return f"Command: {' '.join(command.arguments)[:60]}"
    return _describe_directory(digest, data) or _describe_file(data)


def _describe_directory(digest: Digest, data: bytes) -> str:
    """Return empty when the blob is neither a Directory nor a Tree."""
    with contextlib.suppress(InvalidDirectory):
        directory = parse_directory(data, digest.function, strict=False)
        if _as_message(re_pb2.Directory, data):
            return f"Directory: {len(directory.files)} files, {len(directory.directories)} directories"
    with contextlib.suppress(InvalidInput):
        _, directories = directories_from_tree(data, digest.function)
        for content in directories.values():
            parse_directory(content, digest.function, strict=False)
        if _as_message(re_pb2.Tree, data):
            return f"Tree: {len(directories)} directories"
    return ""


def _describe_file(data: bytes) -> str:
    for magic, name in ((b"\x7fELF", "ELF file"), (b"!<arch>\n", "static library"), (b"#!", "script")):
        if data.startswith(magic):
            return name
    try:
        data[:4096].decode()
    except UnicodeDecodeError as error:
        if error.start < len(data[:4096]) - 4:
            return "binary file"
    return "text file"
