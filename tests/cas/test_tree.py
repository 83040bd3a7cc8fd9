"""Walks: complete, each Directory once, bounded, and quick the second time."""

import time
from collections.abc import Collection, Sequence, Set
from contextlib import aclosing

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas import tree as tree_module
from tvix.cas.digest import EMPTY, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.tree import Closure, TreeWalker
from tvix.errors import InvalidDirectory


class CountingStore(MemoryBlobStore):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        self.batches.append(len(digests))
        return await super().get_many(digests)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        assert isinstance(digests, set), "one question about distinct digests"
        return await super().find_missing(digests)

    def add(self, data: bytes, function: DigestFunction = "sha256") -> Digest:
        digest = digest_of(data, function)
        self.blobs[digest] = data
        return digest

    def add_directory(
        self, directories: dict[str, Digest], files: dict[str, Digest], function: DigestFunction = "sha256"
    ) -> Digest:
        message = re_pb2.Directory(
            files=[re_pb2.FileNode(name=name, digest=digest_to_proto(digest)) for name, digest in files.items()],
            directories=[
                re_pb2.DirectoryNode(name=name, digest=digest_to_proto(digest)) for name, digest in directories.items()
            ],
        )
        return self.add(encode_directory(message), function)


def closure_of(directories: set[Digest], files: set[Digest], missing: Set[Digest] = frozenset()) -> Closure:
    return Closure(frozenset(directories), frozenset(files), frozenset(missing))


@pytest.mark.parametrize("function", ["sha256", "blake3", "sha1"])
async def test_the_closure_holds_every_directory_and_file_of_a_shared_graph(function: DigestFunction) -> None:
    store = CountingStore()
    one, two = store.add(b"one", function), store.add(b"two", function)
    leaf = store.add_directory({}, {"f": one}, function)
    middle = store.add_directory({"x": leaf, "y": leaf}, {"g": two}, function)
    root = store.add_directory({"a": leaf, "b": middle, "e": EMPTY[function]}, {"f": one}, function)
    walker = TreeWalker(store)
    closure = await walker.closure(root)
    assert closure == closure_of({root, middle, leaf, EMPTY[function]}, {one, two})
    assert store.batches == [1, 3], "one batch for each level, each directory once"
    assert await walker.closure(root) == closure
    assert store.batches == [1, 3]


async def test_missing_directories_are_told_and_not_remembered_as_such() -> None:
    store = CountingStore()
    gone = digest_of(b"gone")
    leaf = store.add_directory({"gone": gone}, {})
    root = store.add_directory({"gone": gone, "leaf": leaf}, {})
    walker = TreeWalker(store)
    assert await walker.closure(root) == closure_of({root, leaf, gone}, set(), {gone})
    found = store.add_directory({}, {"f": digest_of(b"f")})
    other = store.add_directory({"leaf": found}, {})
    del store.blobs[found]
    assert (await walker.closure(other)).missing == {found}
    store.add_directory({}, {"f": digest_of(b"f")})
    assert await walker.closure(other) == closure_of({other, found}, {digest_of(b"f")})


async def test_missing_inputs_are_all_that_are_missing_also_after_eviction() -> None:
    store = CountingStore()
    present, absent = store.add(b"present"), digest_of(b"absent")
    leaf = store.add_directory({}, {"absent": absent, "present": present})
    root = store.add_directory({"leaf": leaf}, {"absent": absent})
    action, command = store.add(b"action"), digest_of(b"command")
    walker = TreeWalker(store)
    assert await walker.missing_inputs({action, command}, [root]) == {command, absent}
    del store.blobs[leaf]
    assert await walker.missing_inputs([action, command], [root]) == {command, absent, leaf}
    assert await walker.missing_inputs([], [digest_of(b"no root")]) == {digest_of(b"no root")}
    assert await walker.missing_inputs([], [EMPTY["sha256"]]) == set()


async def test_levels_yield_encoded_directories_once_parents_first() -> None:
    store = CountingStore()
    leaf = store.add_directory({}, {"f": digest_of(b"not needed")})
    gone = digest_of(b"gone")
    root = store.add_directory({"a": leaf, "b": leaf, "gone": gone}, {})
    walker = TreeWalker(store)
    async with aclosing(walker.levels(root)) as levels:
        assert [level async for level in levels] == [[(root, store.blobs[root])], [(leaf, store.blobs[leaf])]]
    assert await walker.directories(root) == {root: store.blobs[root], leaf: store.blobs[leaf]}
    assert await walker.directories(gone) == {}
    assert await walker.directories(EMPTY["sha256"]) == {EMPTY["sha256"]: b""}


async def test_a_malformed_directory_is_named() -> None:
    store = CountingStore()
    bad = store.add(re_pb2.Directory(files=[re_pb2.FileNode(name="..")]).SerializeToString())
    root = store.add_directory({"bad": bad}, {})
    with pytest.raises(InvalidDirectory, match=f"directory {bad}: the name '..' is reserved"):
        await TreeWalker(store).closure(root)


async def test_order_matters_only_when_strict() -> None:
    store = CountingStore()
    root = store.add_directory({}, {"b": digest_of(b"b"), "a": digest_of(b"a")})
    with pytest.raises(InvalidDirectory, match="not sorted"):
        await TreeWalker(store).closure(root)
    assert len((await TreeWalker(store, strict=False).closure(root)).files) == 2


async def test_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CountingStore()
    root = store.add_directory({}, {})
    for _ in range(12):
        root = store.add_directory({"d": root}, {})
    monkeypatch.setattr(tree_module, "MAX_DEPTH", 10)
    with pytest.raises(InvalidDirectory, match="more than 10 directories deep"):
        await TreeWalker(store).closure(root)
    monkeypatch.setattr(tree_module, "MAX_DEPTH", 100)
    monkeypatch.setattr(tree_module, "MAX_TREE_DIGESTS", 5)
    with pytest.raises(InvalidDirectory, match="more than 5 entries"):
        await TreeWalker(store).closure(root)
    huge = digest_of(b"")._replace(size_bytes=2**40)
    with pytest.raises(InvalidDirectory, match="is larger than"):
        await TreeWalker(store).closure(huge)


async def test_levels_are_fetched_in_batches_of_bounded_count_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "BATCH_DIRECTORIES", 4)
    store = CountingStore()
    leaves = {f"{index:02}": store.add_directory({}, {f"{index}": digest_of(b"f")}) for index in range(10)}
    root = store.add_directory(leaves, {})
    await TreeWalker(store).closure(root)
    assert store.batches == [1, 4, 4, 2]
    monkeypatch.setattr(tree_module, "BATCH_BYTES", 1)
    store.batches.clear()
    await TreeWalker(store).closure(root)
    assert store.batches == [1] * 11


async def test_the_memory_is_bounded_and_forgets_the_least_recently_used() -> None:
    store = CountingStore()
    roots = [store.add_directory({}, {f"{index}": digest_of(b"%d" % index)}) for index in range(4)]
    walker = TreeWalker(store, max_remembered=6)  # each weighs two
    for root in roots[:3]:
        await walker.closure(root)
    await walker.closure(roots[0])
    await walker.closure(roots[3])
    assert store.batches == [1] * 4
    await walker.closure(roots[0])
    assert store.batches == [1] * 4
    assert repr(walker).endswith("3 directories remembered>")
    for root in (*roots[1:], roots[0]):
        await walker.closure(root)
    assert len(store.batches) > 4


async def test_a_tree_of_fifty_thousand_files_is_quick_and_then_free() -> None:
    store = CountingStore()
    folders = {}
    for folder in range(500):
        files = {f"file-{file:03}": Digest("sha256", f"{folder:032x}{file:032x}", file) for file in range(100)}
        folders[f"folder-{folder:03}"] = store.add_directory({}, files)
    root = store.add_directory(folders, {})
    walker = TreeWalker(store)
    start = time.process_time()
    assert len((await walker.closure(root)).files) == 50_000
    assert time.process_time() - start < 1, "0.1 s on the machine it was written on"
    start = time.process_time()
    await walker.closure(root)
    assert time.process_time() - start < 0.01
