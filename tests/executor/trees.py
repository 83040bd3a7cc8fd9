"""Input trees for tests: from nested dicts to Directory blobs in a store."""

from __future__ import annotations

from collections.abc import Mapping

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory, sort_directory
from tvix.cas.interfaces import BlobStore


class Exec(bytes):
    """An executable file's contents."""


class Link(str):
    """A symbolic link's target."""

    __slots__ = ()


class Absent(bytes):
    """A file whose contents are not uploaded."""


Tree = Mapping[str, "bytes | Link | Tree"]


def tree_blobs(tree: Tree) -> tuple[Digest, dict[Digest, bytes]]:
    """Return the root's digest and all blobs but the `Absent` ones."""
    blobs: dict[Digest, bytes] = {}
    return _encode(tree, blobs), blobs


async def store_tree(store: BlobStore, tree: Tree) -> Digest:
    """Write a tree; return its root's digest."""
    root, blobs = tree_blobs(tree)
    assert set(await store.put_many(list(blobs.items()))) <= {None}
    return root


def _encode(tree: Tree, blobs: dict[Digest, bytes]) -> Digest:
    directory = re_pb2.Directory()
    for name, node in tree.items():
        if isinstance(node, Link):
            directory.symlinks.add(name=name, target=str(node))
        elif isinstance(node, bytes):
            digest = digest_of(node)
            if not isinstance(node, Absent):
                blobs[digest] = bytes(node)
            directory.files.add(name=name, digest=digest_to_proto(digest), is_executable=isinstance(node, Exec))
        else:
            directory.directories.add(name=name, digest=digest_to_proto(_encode(node, blobs)))
    sort_directory(directory)
    data = encode_directory(directory)
    blobs[digest_of(data)] = data
    return digest_of(data)
