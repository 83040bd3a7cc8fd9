"""Records are shown only while every blob they refer to is there.

A client that gets an action result will not run the action, and may never fetch the outputs until much
later; so a result whose blobs are gone must look absent (REAPI, GetActionResult). Asking `find_missing`
also counts as a use of every blob, which extends their lives as the specification wishes.

A repeated hit costs one lookup and one `find_missing`: the digests of a record are remembered as long as
the record stays what it was. Trees are content-addressed, what is in them is remembered by digest.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from typing import Generic, NamedTuple

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import EMPTY, Digest, DigestFunction, make_digest
from tvix.cas.directory import children, directories_from_tree
from tvix.cas.forwarding import ForwardingRecordStore
from tvix.cas.interfaces import ActionKey, BlobStore, K, RecordStore, V, read_whole
from tvix.cas.tree import TreeWalker
from tvix.errors import InvalidInput, MissingBlobs, NotFound

log = logging.getLogger(__name__)

DigestsOf = Callable[[K, V], Awaitable[Collection[Digest]]]
"""Tells which blobs a record needs. Raises InvalidInput for a malformed record, NotFound or MissingBlobs
when that cannot be known because blobs are missing."""

MAX_TREE_BYTES = 256 * 1024 * 1024
_BATCH_BYTES = 8 * 1024 * 1024


class _Known(NamedTuple, Generic[V]):
    value: V
    digests: frozenset[Digest]


class CompleteRecords(ForwardingRecordStore[K, V]):
    """Shows a record while all its blobs are in `blobs`, else None; a malformed record is None, and logged."""

    def __init__(
        self, inner: RecordStore[K, V], blobs: BlobStore, digests_of: DigestsOf[K, V], max_remembered: int = 500_000
    ) -> None:
        """`max_remembered` bounds the number of digests kept for repeated hits."""
        super().__init__(inner)
        self._blobs = blobs
        self._digests_of = digests_of
        self._known: OrderedDict[Hashable, _Known[V]] = OrderedDict()
        self._room = max_remembered

    async def get(self, key: K) -> V | None:
        value = await self._inner.get(key)
        if value is None:
            return None
        known = self._known.get(key)
        # A cache below gives the same object again, which saves the comparison.
        if known is not None and (known.value is value or known.value == value):
            digests = known.digests
            self._known.move_to_end(key)
        else:
            found = await self._ask(key, value)
            if found is None:
                return None
            digests = found
        if digests and await self._blobs.find_missing(digests):
            return None
        return value

    async def _ask(self, key: K, value: V) -> frozenset[Digest] | None:
        try:
            digests = frozenset(await self._digests_of(key, value))
        except (NotFound, MissingBlobs):
            return None
        except InvalidInput as error:
            log.warning("record=%s malformed, shown as absent: %s", key, error)
            return None
        self._forget(key)
        self._known[key] = _Known(value, digests)
        self._room -= len(digests) + 1
        while self._room < 0:
            self._forget(next(iter(self._known)))
        return digests

    def _forget(self, key: Hashable) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._room += len(known.digests) + 1

    async def put(self, key: K, value: V) -> None:
        await self._inner.put(key, value)
        self._forget(key)

    async def delete(self, key: K) -> None:
        await self._inner.delete(key)
        self._forget(key)


class ActionResultDigests:
    """The `digests_of` of action results: output files, stdout, stderr, Trees and every file in each, and
    below a `root_directory_digest` every Directory and file. Empty blobs and data that is only inlined
    need nothing. All digests are under the function of the action's digest.
    """

    def __init__(self, blobs: BlobStore, walker: TreeWalker, max_remembered: int = 500_000) -> None:
        self._blobs = blobs
        self._walker = walker
        self._files_of: OrderedDict[Digest, frozenset[Digest]] = OrderedDict()
        self._room = max_remembered

    async def __call__(self, key: ActionKey, result: re_pb2.ActionResult) -> set[Digest]:
        needed: set[Digest] = set()
        trees: list[Digest] = []
        roots: list[Digest] = []
        function = key.action_digest.function
        for kind, digest in _named_digests(result, function):
            needed.add(digest)
            if kind == "tree_digest":
                trees.append(digest)
            elif kind == "root_directory_digest":
                roots.append(digest)
        for files in await self._trees(trees):
            needed |= files
        for root in roots:
            closure = await self._walker.closure(root)
            if closure.missing:
                raise MissingBlobs(closure.missing)
            needed |= closure.directories
            needed |= closure.files
        needed.discard(EMPTY[function])
        return needed

    async def _trees(self, trees: list[Digest]) -> list[frozenset[Digest]]:
        """Return the files of each Tree, reading those that are not remembered."""
        wanted = [digest for digest in dict.fromkeys(trees) if digest not in self._files_of]
        found: dict[Digest, frozenset[Digest]] = {}
        small = [digest for digest in wanted if digest.size_bytes <= _BATCH_BYTES // len(wanted)]
        if small:
            for digest, tree in zip(small, await self._blobs.get_many(small), strict=True):
                if tree is None:
                    raise MissingBlobs([digest])
                found[digest] = _files_in_tree(digest, tree)
        for digest in wanted:
            if digest not in found:
                found[digest] = _files_in_tree(digest, await self._read(digest))
        result = [found[digest] if digest in found else self._files_of[digest] for digest in trees]
        for digest, files in found.items():
            self._remember(digest, files)
        return result

    async def _read(self, digest: Digest) -> bytes:
        if digest.size_bytes > MAX_TREE_BYTES:
            raise InvalidInput(f"the Tree {digest} is larger than {MAX_TREE_BYTES} bytes", field="tree_digest")
        return await read_whole(self._blobs, digest)

    def _remember(self, tree: Digest, files: frozenset[Digest]) -> None:
        if tree in self._files_of:
            return
        self._files_of[tree] = files
        self._room -= len(files) + 1
        while self._room < 0:
            _, gone = self._files_of.popitem(last=False)
            self._room += len(gone) + 1


def _files_in_tree(digest: Digest, tree: bytes) -> frozenset[Digest]:
    _, directories = directories_from_tree(tree, digest.function)
    files: set[Digest] = set()
    for data in directories.values():
        # Names don't matter: only clients will ever look at this Tree.
        files.update(children(data, digest.function, where=f"a directory of tree {digest}", check_names=False).files)
    return frozenset(files)


def _named_digests(result: re_pb2.ActionResult, function: DigestFunction) -> Iterator[tuple[str, Digest]]:
    """Yield all digests that stand in the message itself, each with the name of its field."""
    for file in result.output_files:
        yield from _digest(file, "digest", function)
    for directory in result.output_directories:
        yield from _digest(directory, "tree_digest", function)
        yield from _digest(directory, "root_directory_digest", function)
    yield from _digest(result, "stdout_digest", function)
    yield from _digest(result, "stderr_digest", function)


def _digest(
    message: re_pb2.ActionResult | re_pb2.OutputFile | re_pb2.OutputDirectory, field: str, function: DigestFunction
) -> Iterator[tuple[str, Digest]]:
    if not message.HasField(field):  # type: ignore[arg-type]
        return
    digest: re_pb2.Digest = getattr(message, field)
    if digest.hash or digest.size_bytes:
        yield field, make_digest(function, digest.hash, digest.size_bytes, field=field)
