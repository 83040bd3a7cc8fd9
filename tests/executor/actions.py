"""Helpers for tests that run actions: input trees, actions and recorded output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory, sort_directory
from tvix.cas.memory import MemoryBlobStore
from tvix.executor.interfaces import Output

Tree = Mapping[str, "bytes | str | Executable | Tree"]
"""File contents by name; a str is a symlink's target, a mapping a directory."""


class Executable(bytes):
    """Contents of a file that is executable."""


class Recorded(Output):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    @property
    def text(self) -> str:
        return b"".join(self.chunks).decode()


def add_blob(blobs: MemoryBlobStore, data: bytes, function: DigestFunction = "sha256") -> Digest:
    """Store bytes; return their digest."""
    digest = digest_of(data, function)
    blobs.blobs[digest] = data
    return digest


def add_tree(blobs: MemoryBlobStore, tree: Tree, function: DigestFunction = "sha256") -> Digest:
    """Store a directory tree; return its root's digest."""
    directory = re_pb2.Directory()
    for name, entry in tree.items():
        if isinstance(entry, str):
            directory.symlinks.add(name=name, target=entry)
        elif isinstance(entry, bytes):
            digest = add_blob(blobs, entry, function)
            executable = isinstance(entry, Executable)
            directory.files.add(name=name, digest=digest_to_proto(digest), is_executable=executable)
        else:
            directory.directories.add(name=name, digest=digest_to_proto(add_tree(blobs, entry, function)))
    sort_directory(directory)
    return add_blob(blobs, encode_directory(directory), function)


def make_command(arguments: Sequence[str], **fields: Any) -> re_pb2.Command:
    """Return a Command; `env` is a mapping, `properties` is a mapping of platform properties."""
    environment = fields.pop("env", {})
    properties = fields.pop("properties", {})
    command = re_pb2.Command(arguments=arguments, **fields)
    for name, value in environment.items():
        command.environment_variables.add(name=name, value=value)
    for name, value in properties.items():
        command.platform.properties.add(name=name, value=value)
    return command


def add_action(
    blobs: MemoryBlobStore, command: re_pb2.Command, tree: Tree, function: DigestFunction = "sha256", **fields: Any
) -> Digest:
    """Store an action with its command and inputs; return its digest."""
    command_digest = add_blob(blobs, command.SerializeToString(), function)
    root = add_tree(blobs, tree, function)
    action = re_pb2.Action(
        command_digest=digest_to_proto(command_digest), input_root_digest=digest_to_proto(root), **fields
    )
    return add_blob(blobs, action.SerializeToString(), function)
