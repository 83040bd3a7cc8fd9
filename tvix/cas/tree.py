"""Walks over trees of Directories in a store.

A tree is a graph without cycles (a digest cannot contain itself), so that each Directory is fetched once
however often it is used. Walks go level by level, each level in few `get_many` calls. What was learned of
a Directory stays true for ever, since it is named by its content: it is remembered, up to a bound; whether
blobs are *present* is asked anew each time. Checks Directories as tvix/cas/directory.py does.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

from tvix.cas.digest import Digest
from tvix.cas.directory import Children, children
from tvix.cas.interfaces import BlobStore
from tvix.errors import InvalidDirectory

MAX_DEPTH = 10_000
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
"""About half a million entries."""
MAX_TREE_DIGESTS = 20_000_000
BATCH_DIRECTORIES = 1024
BATCH_BYTES = 8 * 1024 * 1024
_PAUSE_BYTES = 128 * 1024
"""Directories parsed between two turns of the event loop: some 2 ms."""
_OFF_LOOP_BYTES = 512 * 1024
"""A single Directory of this size (5,000 files, 8 ms) is parsed in a thread, for the sake of others on the loop."""


class Closure(NamedTuple):
    """All that a tree consists of."""

    directories: frozenset[Digest]
    """Every Directory, the root included, also those that are missing."""
    files: frozenset[Digest]
    missing: frozenset[Digest]
    """Directories that the store lacked; what is below them is unknown."""


class TreeWalker:
    """Walks the trees of one store, remembering up to `max_remembered` digests (about 0.3 KiB each)."""

    def __init__(self, blobs: BlobStore, max_remembered: int = 500_000, *, strict: bool = True) -> None:
        """Unless `strict`, Directories need not be sorted."""
        self._blobs = blobs
        self._strict = strict
        self._children: _Remembered[Children] = _Remembered(max_remembered)
        self._closures: _Remembered[Closure] = _Remembered(max_remembered)

    def __repr__(self) -> str:
        return f"<TreeWalker of {self._blobs!r}, {len(self._children)} directories remembered>"

    async def closure(self, root: Digest) -> Closure:
        """Return all digests of a tree. Missing Directories are told, not fatal.

        A remembered Directory counts as there even if it was evicted since; ask `find_missing` about the
        digests, as `missing_inputs` does, to know. Raises InvalidDirectory, naming the Directory, for one
        that is malformed or too large, and for a tree that is too deep or too large.
        """
        known = self._closures.get(root)
        if known is not None:
            return known
        directories, files, missing = {root}, set[Digest](), set[Digest]()
        level, depth = [root], 0
        while level:
            _check_bounds(root, depth, len(directories) + len(files))
            below: dict[Digest, None] = {}
            for found, lacking in await self._level(level):
                missing.update(lacking)
                for entry in found:
                    files.update(entry.files)
                    below.update(dict.fromkeys(entry.directories))
            level = [digest for digest in below if digest not in directories]
            directories.update(level)
            depth += 1
        closure = Closure(frozenset(directories), frozenset(files), frozenset(missing))
        if not missing:
            self._closures.put(root, closure, len(directories) + len(files))
        return closure

    async def _level(self, level: list[Digest]) -> list[tuple[list[Children], list[Digest]]]:
        remembered = [self._children.get(digest) for digest in level]
        known = [entry for entry in remembered if entry is not None]
        unknown = [digest for digest, entry in zip(level, remembered, strict=True) if entry is None]
        results: list[tuple[list[Children], list[Digest]]] = [(known, [])]
        for batch in _batches(unknown):
            results.append(await self._fetch(batch))
        return results

    async def _fetch(self, batch: list[Digest]) -> tuple[list[Children], list[Digest]]:
        blobs = await self._blobs.get_many(batch)
        present = [(digest, data) for digest, data in zip(batch, blobs, strict=True) if data is not None]
        found = await self._parse_all(present)
        for (digest, _), entry in zip(present, found, strict=True):
            self._children.put(digest, entry, 1 + len(entry.files) + len(entry.directories))
        return found, [digest for digest, data in zip(batch, blobs, strict=True) if data is None]

    async def _parse_all(self, present: list[tuple[Digest, bytes]]) -> list[Children]:
        """Parse on the event loop, with pauses: a thread would only fight it for the interpreter."""
        found: list[Children] = []
        since_pause = 0
        for digest, data in present:
            since_pause += len(data)
            if len(data) > _OFF_LOOP_BYTES:
                found.append(await asyncio.to_thread(self._parse, digest, data))
            else:
                found.append(self._parse(digest, data))
            if since_pause > _PAUSE_BYTES:
                since_pause = 0
                await asyncio.sleep(0)
        return found

    def _parse(self, digest: Digest, data: bytes) -> Children:
        try:
            return children(data, digest.function, strict=self._strict)
        except InvalidDirectory:
            # Once more, with its name; which is too dear to be made for each of thousands.
            return children(data, digest.function, where=f"directory {digest}", strict=self._strict)

    async def levels(self, root: Digest) -> AsyncGenerator[list[tuple[Digest, bytes]], None]:
        """Yield the encoded Directories of a tree in batches, parents before children unless a Directory
        stands at several depths; each once. Missing ones are left out with what is below them, so that no
        batch at all means that the root is missing. Use under `aclosing`. Raises as `closure` does.
        """
        seen, level, depth = {root}, [root], 0
        while level:
            _check_bounds(root, depth, len(seen))
            below: dict[Digest, None] = {}
            for batch in _batches(level):
                blobs = await self._blobs.get_many(batch)
                present = [(digest, data) for digest, data in zip(batch, blobs, strict=True) if data is not None]
                for entry in await self._parse_all(present):
                    below.update(dict.fromkeys(entry.directories))
                if present:
                    yield present
            level = [digest for digest in below if digest not in seen]
            seen.update(level)
            depth += 1

    async def missing_inputs(self, roots: Collection[Digest], trees: Collection[Digest]) -> set[Digest]:
        """Return every blob that the store lacks among `roots` and all that is reachable from the root
        Directories `trees`: what an action needs before it can run. Present ones count as used.
        """
        needed = set(roots)
        missing: set[Digest] = set()
        for tree in trees:
            closure = await self.closure(tree)
            needed |= closure.directories
            needed |= closure.files
            missing |= closure.missing
        return missing | await self._blobs.find_missing(needed)

    async def directories(self, root: Digest) -> dict[Digest, bytes]:
        """Return the encoded Directories of a tree by digest, without those that are missing."""
        async with aclosing(self.levels(root)) as batches:
            return {digest: data async for batch in batches for digest, data in batch}


def _check_bounds(root: Digest, depth: int, digests: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidDirectory(f"the tree {root} is more than {MAX_DEPTH} directories deep")
    if digests > MAX_TREE_DIGESTS:
        raise InvalidDirectory(f"the tree {root} has more than {MAX_TREE_DIGESTS} entries")


def _batches(digests: list[Digest]) -> Iterator[list[Digest]]:
    batch: list[Digest] = []
    size = 0
    for digest in digests:
        if digest.size_bytes > MAX_DIRECTORY_BYTES:
            raise InvalidDirectory(f"directory {digest} is larger than {MAX_DIRECTORY_BYTES} bytes")
        if batch and (len(batch) == BATCH_DIRECTORIES or size + digest.size_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(digest)
        size += digest.size_bytes
    if batch:
        yield batch


T = TypeVar("T")


class _Remembered(Generic[T]):
    """A map that forgets the least recently used when the weights of its values exceed a bound."""

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._entries: OrderedDict[Digest, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: Digest) -> T | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        self._entries.move_to_end(digest)
        return entry[0]

    def put(self, digest: Digest, value: T, weight: int) -> None:
        if weight > self._max_weight or digest in self._entries:
            return
        self._entries[digest] = (value, weight)
        self._weight += weight
        while self._weight > self._max_weight:
            _, (_, gone) = self._entries.popitem(last=False)
            self._weight -= gone
