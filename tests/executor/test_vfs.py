"""The file system behind the mount, without a kernel."""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.test_blob_cache import CountingStore
from tests.executor.trees import Absent, Exec, Link, store_tree
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.errors import BlobNotFound, InvalidDirectory, MissingBlobs
from tvix.executor.input_tree import tree_name
from tvix.executor.vfs import ROOT_ID, WAIT, DirectoryNode, FileNode, Node, SymlinkNode, Vfs, VfsConfig


async def find(vfs: Vfs, root: Digest, path: str) -> Node | None:
    """Look a path up as the kernel does, counting lookups."""
    node: Node | None = vfs.node(ROOT_ID)
    for name in (tree_name(root), *PurePosixPath(path).parts):
        assert isinstance(node, DirectoryNode)
        node = await vfs.lookup(node, name.encode())
        if node is None:
            return None
        node.lookups += 1
    return node


async def find_file(vfs: Vfs, root: Digest, path: str) -> FileNode:
    """Look a file up."""
    node = await find(vfs, root, path)
    assert isinstance(node, FileNode)
    return node


async def test_nodes_have_types_modes_and_contents() -> None:
    store = CountingStore()
    root = await store_tree(store, {"d": {"f": b"file"}, "x": Exec(b"#!"), "l": Link("d/f")})
    vfs = Vfs(store)
    file = await find_file(vfs, root, "d/f")
    assert (file.mode, file.size_bytes) == (stat.S_IFREG | 0o444, 4)
    assert await vfs.read(file, 0, 4096) == b"file"
    assert await vfs.read(file, 1, 2) == b"il"
    assert (await find_file(vfs, root, "x")).mode == stat.S_IFREG | 0o555
    link = await find(vfs, root, "l")
    assert isinstance(link, SymlinkNode)
    assert link.target == b"d/f"
    assert await find(vfs, root, "d/g") is None
    assert await find(vfs, root, "y") is None
    await vfs.close()


async def test_trees_that_share_a_file_at_one_path_share_its_node() -> None:
    store = CountingStore()
    one = await store_tree(store, {"d": {"f": b"file", "g": b"file"}, "one": b""})
    two = await store_tree(store, {"d": {"f": b"file", "g": b"file"}, "two": b""})
    three = await store_tree(store, {"d": {"f": Exec(b"file")}})
    vfs = Vfs(store)
    node = await find(vfs, one, "d/f")
    assert await find(vfs, two, "d/f") is node
    assert await find(vfs, one, "d/g") is not node, "equal contents at two places are two files"
    assert await find(vfs, three, "d/f") is not node
    assert await find(vfs, one, "d") is not await find(vfs, two, "d"), "a directory has one place"
    assert await find(vfs, one, "d") is await find(vfs, one, "d")
    await vfs.close()


async def test_forgotten_nodes_are_gone() -> None:
    store = CountingStore()
    root = await store_tree(store, {f"d{number}": {"f": b"file"} for number in range(50)})
    vfs = Vfs(store)
    nodes = [await find_file(vfs, root, f"d{number}/f") for number in range(50)]
    assert vfs.node_count == 1 + 1 + 100
    for node in nodes:
        vfs.forget(node.node_id, 1)
    assert vfs.node_count == 52
    with pytest.raises(KeyError):
        vfs.node(nodes[0].node_id)
    vfs.forget(nodes[0].node_id, 1)
    vfs.forget(ROOT_ID, 1)
    assert isinstance(vfs.node(ROOT_ID), DirectoryNode)
    again = await find_file(vfs, root, "d0/f")
    assert again.node_id != nodes[0].node_id, "numbers are not used twice"
    await vfs.close()


async def test_memory_answers_what_is_known() -> None:
    store = CountingStore()
    root = await store_tree(store, {"d": {"f": b"file"}})
    vfs = Vfs(store)
    top = vfs.node(ROOT_ID)
    assert isinstance(top, DirectoryNode)
    assert vfs.lookup_now(top, tree_name(root).encode()) is WAIT
    assert vfs.lookup_now(top, b"no tree") is None
    await vfs.open_tree(1, root)
    tree = vfs.lookup_now(top, tree_name(root).encode())
    assert isinstance(tree, DirectoryNode)
    assert vfs.lookup_now(tree, b"absent") is None
    assert vfs.lookup_now(tree, b"\xff") is None
    assert isinstance(await vfs.lookup(tree, b"d"), DirectoryNode)
    assert isinstance(vfs.lookup_now(tree, b"d"), DirectoryNode)
    await vfs.close()


async def test_reading_a_directory_in_order_fetches_ever_larger_batches() -> None:
    store = CountingStore()
    files = {f"f{number:04}": b"%04d" % number for number in range(1000)}
    root = await store_tree(store, {"d": files})
    vfs = Vfs(store)
    nodes = [await find_file(vfs, root, f"d/{name}") for name in files]
    store.batches.clear()
    for node, data in zip(nodes, files.values(), strict=True):
        ready = vfs.read_now(node, 0, 4096)
        assert (await vfs.read(node, 0, 4096) if ready is None else ready) == data
    assert [len(batch) for batch in store.batches] == [9, 17, 33, 65, 129, 257, 257, 233]
    await vfs.close()


async def test_opening_touches_nothing_below_the_first_subdirectories() -> None:
    store = CountingStore()
    tree = {f"a{i}": {f"b{j}": {f"f{k}": b"%d" % k for k in range(5)} for j in range(5)} for i in range(200)}
    root = await store_tree(store, tree)
    vfs = Vfs(store, VfsConfig(prefetch_directories=16))
    await vfs.open_tree(1, root)
    await find_file(vfs, root, "a7/b3/f2")
    assert sum(map(len, store.batches)) < 100
    await vfs.close()


async def test_faults_concern_those_whose_tree_holds_the_file() -> None:
    store = CountingStore()
    gone = Absent(b"gone")
    one = await store_tree(store, {"d": {"f": gone}})
    two = await store_tree(store, {"d": {"f": gone}, "more": b""})
    other = await store_tree(store, {"d": {"f": b"other"}, "f": gone})
    vfs = Vfs(store)
    for handle, root in enumerate((one, two, other, one), 1):
        await vfs.open_tree(handle, root)
    file = await find_file(vfs, one, "d/f")
    await find_file(vfs, two, "d/f")
    with pytest.raises(BlobNotFound):
        await vfs.read(file, 0, 10)
    assert vfs.users(file) == [1, 2, 4]
    vfs.close_tree(1)
    vfs.close_tree(77)
    assert vfs.users(file) == [2, 4]
    directory = await find(vfs, two, "d")
    assert directory is not None
    assert vfs.users(directory) == [2]
    await vfs.close()


async def test_trees_that_cannot_be_opened() -> None:
    store = CountingStore()
    vfs = Vfs(store)
    absent = digest_of(b"absent")
    with pytest.raises(MissingBlobs) as caught:
        await vfs.open_tree(1, absent)
    assert caught.value.digests == (absent,)
    bad = await store_tree(store, {"a/b": b""})
    with pytest.raises(InvalidDirectory):
        await vfs.open_tree(2, bad)
    assert vfs.open_trees == {}
    assert await find(vfs, absent, "") is None
    await vfs.close()


async def test_parsed_directories_are_bounded() -> None:
    store = CountingStore()
    root = await store_tree(store, {f"d{i}": {f"f{i}-{k}": b"" for k in range(10)} for i in range(20)})
    vfs = Vfs(store, VfsConfig(level_entries=50, prefetch_directories=4))
    for _ in range(2):
        for number in range(20):
            assert (await find_file(vfs, root, f"d{number}/f{number}-3")).size_bytes == 0
    await vfs.close()


async def test_trees_nobody_uses_can_be_dropped() -> None:
    store = CountingStore()
    one, two = await store_tree(store, {"a": b"1"}), await store_tree(store, {"a": b"2"})
    vfs = Vfs(store)
    await vfs.open_tree(1, two)
    await find_file(vfs, one, "a")
    await find_file(vfs, two, "a")
    assert vfs.unused_trees() == [tree_name(one).encode()]
    vfs.close_tree(1)
    assert vfs.unused_trees() == [tree_name(one).encode(), tree_name(two).encode()]
    await vfs.close()


async def test_children_have_their_parents_function() -> None:
    store = CountingStore()
    inner = re_pb2.Directory()
    inner.files.add(name="f", digest=digest_to_proto(digest_of(b"x", "blake3")))
    outer = re_pb2.Directory()
    outer.directories.add(name="d", digest=digest_to_proto(digest_of(inner.SerializeToString(), "blake3")))
    blobs = [b"x", inner.SerializeToString(), outer.SerializeToString()]
    store.blobs.update({digest_of(blob, "blake3"): blob for blob in blobs})
    vfs = Vfs(store)
    file = await find_file(vfs, digest_of(blobs[2], "blake3"), "d/f")
    assert await vfs.read(file, 0, 10) == b"x"
    await vfs.close()
