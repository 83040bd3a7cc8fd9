"""Copied build roots."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.trees import Absent, Exec, Link, Tree, store_tree
from tvix.cas.digest import EMPTY, Digest, digest_of, digest_to_proto
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import InvalidDirectory, MissingBlobs
from tvix.executor.copied_root import CopiedBuildRoot, CopiedConfig
from tvix.executor.input_tree import DEFAULT_MTIME_NS

TREE: Tree = {
    "a": {"empty": {}, "file": b"contents", "deep": {"er": {"same": b"contents"}}},
    "run": Exec(b"#!/bin/sh\necho ran\n"),
    "link": Link("a/file"),
    "big": bytes(range(256)) * 12_000,
    "ünï:code": b"",
}


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore()


async def test_the_tree_is_there_as_described(store: MemoryBlobStore, tmp_path: Path) -> None:
    root = await store_tree(store, TREE)
    async with CopiedBuildRoot(store, tmp_path / "scratch").open(root) as opened:
        path = opened.path
        assert sorted(os.listdir(path)) == ["a", "big", "link", "run", "ünï:code"]
        assert (path / "a/file").read_bytes() == (path / "a/deep/er/same").read_bytes() == b"contents"
        assert list((path / "a/empty").iterdir()) == []
        assert os.readlink(path / "link") == "a/file"
        assert (path / "big").read_bytes() == TREE["big"]
        assert (path / "ünï:code").read_bytes() == b""
        ran = await asyncio.to_thread(subprocess.run, [path / "run"], capture_output=True, check=True)
        assert ran.stdout == b"ran\n"
        status = (path / "a/file").stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_nlink) == (0o444, DEFAULT_MTIME_NS, 1)
        assert (path / "run").stat().st_mode & 0o7777 == 0o555
        assert (path / "a").stat().st_mode & 0o7777 == 0o777
        (path / "a/output").write_bytes(b"new")


async def test_nothing_is_left_afterwards(store: MemoryBlobStore, tmp_path: Path) -> None:
    root = await store_tree(store, TREE)
    roots = CopiedBuildRoot(store, tmp_path / "scratch")
    async with roots.open(root) as opened:
        (opened.path / "a/empty/new").mkdir()
        (opened.path / "a/empty/new").chmod(0)
    assert not opened.path.exists()
    with pytest.raises(ZeroDivisionError):
        async with roots.open(root):
            raise ZeroDivisionError
    await roots.close()
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_node_properties_are_applied(store: MemoryBlobStore, tmp_path: Path) -> None:
    inner = re_pb2.Directory()
    inner.node_properties.unix_mode.value = 0o555
    inner.node_properties.mtime.seconds = 77
    file = inner.files.add(name="f", digest=digest_to_proto(digest_of(b"x")))
    file.node_properties.unix_mode.value = 0o640
    file.node_properties.mtime.FromNanoseconds(1_234_567_890_123_456_789)
    link = inner.symlinks.add(name="l", target="f")
    link.node_properties.mtime.seconds = 5
    outer = re_pb2.Directory()
    outer.directories.add(name="d", digest=digest_to_proto(digest_of(inner.SerializeToString())))
    blobs = [inner.SerializeToString(), outer.SerializeToString(), b"x"]
    await store.put_many([(digest_of(blob), blob) for blob in blobs])
    async with CopiedBuildRoot(store, tmp_path / "scratch").open(digest_of(blobs[1])) as opened:
        status = (opened.path / "d/f").stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)
        assert (opened.path / "d").stat().st_mode & 0o7777 == 0o555
        assert (opened.path / "d").stat().st_mtime == 77
        assert (opened.path / "d/l").lstat().st_mtime == 5


async def test_every_missing_file_is_named(store: MemoryBlobStore, tmp_path: Path) -> None:
    root = await store_tree(store, {"a": {"x": Absent(b"x")}, "y": Absent(b"y"), "z": b"z"})
    with pytest.raises(MissingBlobs) as caught:
        async with CopiedBuildRoot(store, tmp_path / "scratch").open(root):
            raise AssertionError("opened")
    assert set(caught.value.digests) == {digest_of(b"x"), digest_of(b"y")}


async def test_every_missing_directory_is_named(store: MemoryBlobStore, tmp_path: Path) -> None:
    root = await store_tree(store, {"a": {"x": b"x"}, "b": {"y": b"y"}, "c": {"d": {"z": b"z"}}})
    gone = [digest for digest, data in store.blobs.items() if b"\n\x01x" in data or b"\n\x01z" in data]
    for digest in gone:
        del store.blobs[digest]
    with pytest.raises(MissingBlobs) as caught:
        async with CopiedBuildRoot(store, tmp_path / "scratch").open(root):
            raise AssertionError("opened")
    assert set(caught.value.digests) == set(gone)


async def test_the_empty_directory_needs_no_blob(store: MemoryBlobStore, tmp_path: Path) -> None:
    async with CopiedBuildRoot(store, tmp_path / "scratch").open(EMPTY["blake3"]) as opened:
        assert list(opened.path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\0b"])
async def test_names_that_leave_the_root_are_refused(store: MemoryBlobStore, tmp_path: Path, name: str) -> None:
    root = await store_tree(store, {name: b"evil"})
    with pytest.raises(InvalidDirectory):
        async with CopiedBuildRoot(store, tmp_path / "scratch").open(root):
            raise AssertionError("opened")


async def test_a_name_too_long_for_the_file_system_is_the_callers_fault(store: MemoryBlobStore, tmp_path: Path) -> None:
    root = await store_tree(store, {"n" * 300: b""})
    roots = CopiedBuildRoot(store, tmp_path / "scratch")
    with pytest.raises(InvalidDirectory, match="too long"):
        async with roots.open(root):
            raise AssertionError("opened")
    await roots.close()
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_tree_that_expands_without_end_is_refused(store: MemoryBlobStore, tmp_path: Path) -> None:
    digest: Digest = await store_tree(store, {"leaf": b""})
    for _ in range(40):
        directory = re_pb2.Directory()
        for name in ("a", "b"):
            directory.directories.add(name=name, digest=digest_to_proto(digest))
        data = directory.SerializeToString()
        digest = digest_of(data)
        await store.put_many([(digest, data)])
    config = CopiedConfig(max_entries=10_000)
    with pytest.raises(InvalidDirectory, match="10000 entries"):
        async with CopiedBuildRoot(store, tmp_path / "scratch", config).open(digest):
            raise AssertionError("opened")


async def test_leftovers_of_a_killed_predecessor_are_cleared(store: MemoryBlobStore, tmp_path: Path) -> None:
    stale = tmp_path / "scratch/copied-1/root/dir"
    stale.mkdir(parents=True)
    (stale / "file").touch()
    root = await store_tree(store, TREE)
    async with CopiedBuildRoot(store, tmp_path / "scratch").open(root):
        assert not stale.exists()


async def test_actions_do_not_see_each_other(store: MemoryBlobStore, tmp_path: Path) -> None:
    root = await store_tree(store, TREE)
    roots = CopiedBuildRoot(store, tmp_path / "scratch", CopiedConfig(concurrency=2, batch_files=2))

    async def act(number: int) -> None:
        async with roots.open(root) as opened:
            (opened.path / "mine").write_text(str(number))
            os.unlink(opened.path / "a/file")
            await asyncio.sleep(0)
            assert (opened.path / "mine").read_text() == str(number)

    await asyncio.gather(*[act(number) for number in range(16)])
    await roots.close()
    assert list((tmp_path / "scratch").iterdir()) == []
