"""The file system that a worker's mount shows: all input trees, by name, content on demand. Knows no FUSE.

The root folder shows the tree of each root Directory under `<function>-<hash>-<size>`. Nothing is ever changed, so
the kernel may keep names, attributes and pages for ever, and does, across actions:

- A file's node is found by (path inside the tree, content, mode, time). Actions that use the same file at the
  same place, however different their trees, share its pages. Equal contents at two places of one tree remain two
  files, as anywhere else: sharing a node there makes overlayfs change both when one is written to, `cp` refuse
  to copy one over the other, and `tar` record links.
- A directory's node belongs to one place in one tree. The kernel allows a directory a single name: with a node per
  Directory digest, two trees that hold the same Directory would steal it from each other for ever, failing with
  ESTALE when they do so at the same time.

Nodes live until the kernel forgets them. Parsed Directories and prefetched contents are in bounded caches.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, TypeVar

from tvix.cas.digest import EMPTY, Digest
from tvix.cas.interfaces import BlobStore
from tvix.errors import BlobNotFound, MissingBlobs
from tvix.executor.blob_cache import BlobCache, CacheConfig, LruCache
from tvix.executor.input_tree import (
    DEFAULT_MTIME_NS,
    SYMLINK_MODE,
    DirectoryEntry,
    Entry,
    FileEntry,
    Level,
    SymlinkEntry,
    digest_from_tree_name,
    level_from_bytes,
    tree_name,
)

ROOT_ID = 1


class Wait(enum.Enum):
    """The one value says: not in memory, ask again with the async method."""

    WAIT = enum.auto()


WAIT: Final = Wait.WAIT
N = TypeVar("N", bound="Node")
_EMPTY_LEVEL = level_from_bytes(b"", "sha256", "")


@dataclass(frozen=True, slots=True)
class VfsConfig:
    """Bounds."""

    cache: CacheConfig = field(default_factory=CacheConfig)
    level_entries: int = 500_000
    """Entries of parsed Directories kept in memory; some 300 bytes each."""
    prefetch_directories: int = 64
    first_window: int = 8
    """Small files fetched along with the first one read in a directory; doubled with each further fetch."""
    max_window: int = 256


def _weight(level: Level) -> int:
    return len(level) + 1


class Node:
    """Something the kernel knows by number. `lookups` counts how often it was told."""

    __slots__ = ("key", "lookups", "mode", "mtime_ns", "node_id", "size_bytes")

    def __init__(self, node_id: int, key: object, mode: int, size_bytes: int, mtime_ns: int) -> None:
        self.node_id = node_id
        self.key = key
        self.mode = mode
        self.size_bytes = size_bytes
        self.mtime_ns = mtime_ns
        self.lookups = 0


class FileNode(Node):
    """A file. `folder` is the directory by which it was found first, for its neighbours."""

    __slots__ = ("digest", "folder", "path")

    digest: Digest
    folder: DirectoryNode
    path: bytes

    def __repr__(self) -> str:
        return f"<FileNode {self.path.decode()} {self.digest}>"


class SymlinkNode(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    target: bytes


class DirectoryNode(Node):
    """A directory at one place of one tree; the folder of all trees has no tree."""

    __slots__ = ("digest", "path", "tree", "window")

    digest: Digest
    tree: Digest | None
    path: bytes
    window: int

    def __repr__(self) -> str:
        return f"<DirectoryNode {self.path.decode()} {self.digest}>"


class Vfs:
    """Nodes, Directories and contents. Methods without `async` never wait: they answer from memory."""

    def __init__(self, blobs: BlobStore, config: VfsConfig | None = None) -> None:
        self._config = config or VfsConfig()
        self._cache = BlobCache(blobs, self._config.cache)
        self._levels: LruCache[Digest, Level] = LruCache(self._config.level_entries, _weight)
        self._nodes: dict[int, Node] = {}
        self._by_key: dict[object, Node] = {}
        self._next_id = ROOT_ID
        self.open_trees: dict[int, Digest] = {}
        root = self._new_node(DirectoryNode, (), stat.S_IFDIR | 0o755, 0, DEFAULT_MTIME_NS)
        root.digest, root.tree, root.path, root.window = EMPTY["sha256"], None, b"", 0

    def __repr__(self) -> str:
        return f"<Vfs {len(self._nodes)} nodes, {len(self.open_trees)} open trees>"

    def node(self, node_id: int) -> Node:
        """Return a node by number; KeyError if the kernel was never told of it."""
        return self._nodes[node_id]

    @property
    def node_count(self) -> int:
        """How many nodes the kernel knows."""
        return len(self._nodes)

    # Trees in use

    async def open_tree(self, handle: int, root: Digest) -> None:
        """Say that an action, from now on `handle`, uses a tree.

        Raises MissingBlobs if its root Directory is absent, InvalidDirectory if malformed.
        """
        if self._level_now(root) is None:
            try:
                await self._load_level(root)
            except BlobNotFound as error:
                raise MissingBlobs([error.digest]) from error
        self.open_trees[handle] = root

    def close_tree(self, handle: int) -> None:
        """Say that an action has ended; unknown handles are fine."""
        self.open_trees.pop(handle, None)

    def users(self, node: Node) -> list[int]:
        """Return the handles of the open trees that hold `node`: those whom a fault of it concerns."""
        return [handle for handle, root in self.open_trees.items() if self._holds(root, node)]

    def _holds(self, root: Digest, node: Node) -> bool:
        if isinstance(node, DirectoryNode):
            return node.tree == root
        if not isinstance(node, FileNode):
            return False
        digest = root
        *folders, name = node.path.split(b"/")
        for folder in folders:
            entry = self._entry_now(digest, folder)
            if not isinstance(entry, DirectoryEntry):
                return False
            digest = entry.digest
        entry = self._entry_now(digest, name)
        return isinstance(entry, FileEntry) and entry.digest == node.digest

    def _entry_now(self, directory: Digest, name: bytes) -> Entry | None:
        level = self._level_now(directory)
        return level.get(name) if level is not None else None

    # Names

    def lookup_now(self, parent: DirectoryNode, name: bytes) -> Node | Literal[Wait.WAIT] | None:
        """Return the node, None when there is no such name, WAIT when only `lookup` can tell."""
        if parent.tree is None:
            return self._lookup_tree_now(name)
        level = self._level_now(parent.digest)
        if level is None:
            return WAIT
        entry = level.get(name)
        if entry is None:
            return None
        if isinstance(entry, FileEntry):
            return self._file_node(parent, name, entry)
        if isinstance(entry, SymlinkEntry):
            return self._symlink_node(parent, name, entry)
        child = self._level_now(entry.digest)
        return WAIT if child is None else self._directory_node(parent, name, entry.digest, child)

    async def lookup(self, parent: DirectoryNode, name: bytes) -> Node | None:
        """Return the node, None if there is no such name. Raises what keeps a Directory from being read."""
        if parent.tree is None:
            return await self._lookup_tree(name)
        level = await self._level(parent.digest)
        entry = level.get(name)
        if isinstance(entry, DirectoryEntry):
            child = self._level_now(entry.digest) or await self._load_level(entry.digest, siblings=level)
            return self._directory_node(parent, name, entry.digest, child)
        found = self.lookup_now(parent, name)
        return found if isinstance(found, Node) else None

    def _lookup_tree_now(self, name: bytes) -> Node | Literal[Wait.WAIT] | None:
        digest = digest_from_tree_name(name.decode(errors="replace"))
        if digest is None:
            return None
        level = self._level_now(digest)
        return WAIT if level is None else self._tree_node(name, digest, level)

    async def _lookup_tree(self, name: bytes) -> Node | None:
        digest = digest_from_tree_name(name.decode(errors="replace"))
        if digest is None:
            return None
        try:
            level = await self._level(digest)
        except BlobNotFound:
            return None
        return self._tree_node(name, digest, level)

    def level_now(self, directory: DirectoryNode) -> Level | None:
        """Return the directory's entries, None when `load` must come first. The folder of all trees lists none."""
        return _EMPTY_LEVEL if directory.tree is None else self._level_now(directory.digest)

    async def load(self, directory: DirectoryNode) -> None:
        """Have the directory's entries in memory."""
        await self._level(directory.digest)

    def forget(self, node_id: int, lookups: int) -> None:
        """Take back that the kernel was told of a node so many times."""
        node = self._nodes.get(node_id)
        if node is None or node_id == ROOT_ID:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._nodes[node_id]
            self._by_key.pop(node.key, None)

    # Contents

    def read_now(self, file: FileNode, offset: int, size_bytes: int) -> bytes | None:
        """Return the bytes if they are in memory."""
        if offset >= file.size_bytes:
            return b""
        if file.size_bytes > self._config.cache.small_file_bytes:
            return self._cache.read_now(file.digest, offset, size_bytes)
        if offset == 0 and size_bytes >= file.size_bytes:
            return self._cache.take(file.digest)
        return None

    async def read(self, file: FileNode, offset: int, size_bytes: int) -> bytes:
        """Return a part of the file, cut at its end. Raises BlobNotFound, Unavailable and the store's errors."""
        if file.size_bytes > self._config.cache.small_file_bytes:
            return await self._cache.read(file.digest, offset, size_bytes)
        data = await self._cache.small(file.digest, self._neighbours(file))
        return data if offset == 0 and size_bytes >= len(data) else data[offset : offset + size_bytes]

    def _neighbours(self, file: FileNode) -> list[Digest]:
        """Return small files that stand behind `file` in its directory: more, the more of it was read."""
        folder = file.folder
        level = self._level_now(folder.digest)
        number = level.number(file.path.rpartition(b"/")[2]) if level is not None else None
        if level is None or number is None or not self._cache.lacks(file.digest):
            return []
        window = folder.window
        folder.window = min(window * 2, self._config.max_window)
        limit = self._config.cache.small_file_bytes
        behind = islice(level.files_from(number + 1), 4 * window)
        return list(islice((digest for digest in behind if digest.size_bytes <= limit), window))

    async def close(self) -> None:
        """Stop fetching."""
        await self._cache.close()

    # Directories

    def _level_now(self, digest: Digest) -> Level | None:
        return self._levels.get(digest) if digest.size_bytes else _EMPTY_LEVEL

    async def _level(self, digest: Digest) -> Level:
        return self._level_now(digest) or await self._load_level(digest)

    async def _load_level(self, digest: Digest, *, siblings: Level | None = None) -> Level:
        nearby = self._subdirectories(siblings) if siblings is not None else ()
        data = await self._cache.small(digest, nearby)
        level = self._level_now(digest)
        if level is None:
            level = level_from_bytes(data, digest.function, f"directory {digest}")
            self._levels.put(digest, level)
            self._cache.prefetch(self._subdirectories(level))
        return level

    def _subdirectories(self, level: Level) -> list[Digest]:
        wanted = (digest for digest in level.directories() if digest not in self._levels)
        return list(islice(wanted, self._config.prefetch_directories))

    # Nodes

    def _new_node(
        self, kind: Callable[[int, object, int, int, int], N], key: object, mode: int, size_bytes: int, mtime_ns: int
    ) -> N:
        node = kind(self._next_id, key, mode, size_bytes, mtime_ns)
        self._nodes[node.node_id] = node
        self._by_key[key] = node
        self._next_id += 1
        return node

    def _file_node(self, parent: DirectoryNode, name: bytes, entry: FileEntry) -> Node:
        path = parent.path + b"/" + name if parent.path else name
        key = (path, entry)
        node = self._by_key.get(key)
        if node is None:
            mode = stat.S_IFREG | entry.mode
            file = self._new_node(FileNode, key, mode, entry.digest.size_bytes, entry.mtime_ns)
            file.digest, file.folder, file.path = entry.digest, parent, path
            return file
        return node

    def _symlink_node(self, parent: DirectoryNode, name: bytes, entry: SymlinkEntry) -> Node:
        key = (parent.path, name, entry)
        node = self._by_key.get(key)
        if node is None:
            mode = stat.S_IFLNK | SYMLINK_MODE
            symlink = self._new_node(SymlinkNode, key, mode, len(entry.target), entry.mtime_ns)
            symlink.target = entry.target
            return symlink
        return node

    def _tree_node(self, name: bytes, digest: Digest, level: Level) -> DirectoryNode:
        key = (ROOT_ID, name)
        node = self._by_key.get(key) or self._new_directory(key, digest, level, digest, b"")
        assert isinstance(node, DirectoryNode)
        return node

    def _directory_node(self, parent: DirectoryNode, name: bytes, digest: Digest, level: Level) -> Node:
        key = (parent.node_id, name)
        node = self._by_key.get(key)
        if node is None:
            path = parent.path + b"/" + name if parent.path else name
            return self._new_directory(key, digest, level, parent.tree, path)
        return node

    def _new_directory(
        self, key: object, digest: Digest, level: Level, tree: Digest | None, path: bytes
    ) -> DirectoryNode:
        mode = stat.S_IFDIR | level.mode
        node = self._new_node(DirectoryNode, key, mode, len(level), level.mtime_ns)
        node.digest, node.tree, node.path, node.window = digest, tree, path, self._config.first_window
        return node

    def unused_trees(self) -> list[bytes]:
        """Return the names of trees that the kernel knows and no action uses, the longest known first."""
        used = {tree_name(root).encode() for root in self.open_trees.values()}
        nodes = (node.key for node in self._nodes.values() if isinstance(node, DirectoryNode))
        names = (key[1] for key in nodes if isinstance(key, tuple) and key[:1] == (ROOT_ID,))
        return [name for name in names if name not in used]
