"""Trees read for people, on a store in memory."""

from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.memory import MemoryBlobStore
from tvix.cli.trees import Entry, OpenTree, TreeReader, describe, format_entry, write_file, write_tree
from tvix.errors import BlobNotFound, InvalidDirectory, NotFound


async def put(blobs: MemoryBlobStore, data: bytes) -> Digest:
    digest = digest_of(data)
    await blobs.put_many([(digest, data)])
    return digest


async def make(blobs: MemoryBlobStore) -> tuple[re_pb2.Directory, re_pb2.Directory]:
    """A root with a file, a link, and a directory with a file; nothing but the file's content is stored."""
    file = digest_to_proto(await put(blobs, b"content"))
    below = re_pb2.Directory(files=[re_pb2.FileNode(name="f", digest=file, is_executable=True)])
    root = re_pb2.Directory(
        directories=[re_pb2.DirectoryNode(name="d", digest=digest_to_proto(digest_of(below.SerializeToString())))],
        symlinks=[re_pb2.SymlinkNode(name="l", target="d/f")],
    )
    return root, below


async def walk(reader: TreeReader, tree: OpenTree) -> list[str]:
    return [entry.path async for entry in reader.walk(tree, recursive=True)]


async def test_a_tree_message_is_read_without_its_directories_being_stored() -> None:
    blobs = MemoryBlobStore()
    root, below = await make(blobs)
    tree = await put(blobs, re_pb2.Tree(root=root, children=[below]).SerializeToString())
    reader = TreeReader(blobs)
    assert await walk(reader, await reader.open(tree)) == ["d", "d/f", "l"]
    assert await reader.file(await reader.open(tree), "./d//f") == digest_of(b"content")


async def test_a_directory_that_is_not_stored_is_named() -> None:
    blobs = MemoryBlobStore()
    root, below = await make(blobs)
    reader = TreeReader(blobs)
    tree = await reader.open(await put(blobs, root.SerializeToString()))
    with pytest.raises(BlobNotFound, match=digest_of(below.SerializeToString()).hash):
        await walk(reader, tree)


@pytest.mark.parametrize("path", ["x", "d/x", "l/x", "d/f/x"])
async def test_paths_that_lead_nowhere(path: str) -> None:
    blobs = MemoryBlobStore()
    root, below = await make(blobs)
    await put(blobs, below.SerializeToString())
    reader = TreeReader(blobs)
    tree = await reader.open(await put(blobs, root.SerializeToString()))
    with pytest.raises(NotFound):
        await reader.file(tree, path)


async def test_a_tree_is_written_and_a_name_that_leads_out_is_not(tmp_path: Path) -> None:
    blobs = MemoryBlobStore()
    root, below = await make(blobs)
    await put(blobs, below.SerializeToString())
    reader = TreeReader(blobs)
    assert await write_tree(reader, await reader.open(await put(blobs, root.SerializeToString())), tmp_path / "t") == 1
    assert (tmp_path / "t" / "l").read_bytes() == b"content"
    root.symlinks[0].name = "../evil"
    with pytest.raises(InvalidDirectory):
        await reader.open(await put(blobs, root.SerializeToString()))


async def test_a_file_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BlobNotFound):
        await write_file(MemoryBlobStore(), digest_of(b"absent"), tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"plain words\n", "text file"),
        (b"#!/bin/sh\n", "script"),
        (b"\x7fELF\x02", "ELF file"),
        (b"!<arch>\nx", "static library"),
        (bytes(range(128, 256)), "binary file"),
        (re_pb2.Command(arguments=["ls", "-l"]).SerializeToString(), "Command: ls -l"),
    ],
)
async def test_what_blobs_look_like(data: bytes, words: str) -> None:
    blobs = MemoryBlobStore()
    assert (await describe(blobs, await put(blobs, data))).startswith(words)


def test_entries_are_lines() -> None:
    digest = digest_of(b"x")
    assert format_entry(Entry("a/b", "x", digest)).split() == ["-x", str(digest), "a/b"]
    assert format_entry(Entry("d", "d", digest)).endswith("  d/")
    assert format_entry(Entry("l", "l", None, "t")).endswith("  l -> t")
