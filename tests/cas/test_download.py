"""Downloads: what was uploaded comes back; nothing is written of what cannot be whole."""

import os
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.test_upload import make_tree
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory
from tvix.cas.download import download_file, download_tree
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.upload import upload_tree
from tvix.errors import (
    AlreadyExists,
    BlobNotFound,
    FailedPrecondition,
    InvalidDirectory,
    MissingBlobs,
    ResourceExhausted,
)


def listing(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


async def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.mkdir()
    make_tree(source)
    store = MemoryBlobStore()
    root = (await upload_tree(store, source)).digest
    done = await download_tree(store, root, target)
    assert listing(target) == listing(source)
    assert (done.files, done.directories, done.symlinks, done.total_bytes) == (5, 4, 2, 1_500_003)
    assert (await upload_tree(store, target)).digest == root


async def test_all_that_is_missing_is_told_and_nothing_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_tree(source)
    store = MemoryBlobStore()
    root = (await upload_tree(store, source)).digest
    gone = {digest_of(b"a"), digest_of(bytes(1_500_000))}
    for digest in gone:
        del store.blobs[digest]
    with pytest.raises(MissingBlobs) as caught:
        await download_tree(store, root, tmp_path / "target")
    assert set(caught.value.digests) == gone
    with pytest.raises(MissingBlobs):
        await download_tree(store, digest_of(b"no root"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    store = MemoryBlobStore()
    root = digest_of(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "full/file", "link"):
        with pytest.raises(AlreadyExists, match=name):
            await download_tree(store, root, tmp_path / name)
    (tmp_path / "empty").mkdir()
    await download_tree(store, root, tmp_path / "empty")
    assert (tmp_path / "full" / "file").read_bytes() == b"precious"


def add(store: MemoryBlobStore, directory: re_pb2.Directory) -> Digest:
    data = encode_directory(directory)
    store.blobs[digest_of(data)] = data
    return digest_of(data)


@pytest.mark.parametrize("name", ["..", "a/b", ""])
async def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    store = MemoryBlobStore()
    store.blobs[digest_of(b"x")] = b"x"
    node = re_pb2.FileNode(name=name, digest=digest_to_proto(digest_of(b"x")))
    with pytest.raises(InvalidDirectory):
        await download_tree(store, add(store, re_pb2.Directory(files=[node])), tmp_path / "target")
    assert os.listdir(tmp_path) == []


async def test_a_bomb_of_shared_directories_is_refused(tmp_path: Path) -> None:
    store = MemoryBlobStore()
    digest = add(store, re_pb2.Directory())
    for _ in range(40):
        nodes = [re_pb2.DirectoryNode(name=name, digest=digest_to_proto(digest)) for name in "ab"]
        digest = add(store, re_pb2.Directory(directories=nodes))
    with pytest.raises(ResourceExhausted, match="more than 1000 entries"):
        await download_tree(store, digest, tmp_path / "target", max_entries=1000)
    assert os.listdir(tmp_path) == []


async def test_one_file_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    store = MemoryBlobStore()
    store.blobs[digest_of(b"new")] = b"new"
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(BlobNotFound):
        await download_file(store, digest_of(b"absent"), path)
    assert path.read_bytes() == b"old"
    await download_file(store, digest_of(b"new"), path, executable=True)
    assert path.read_bytes() == b"new"
    assert os.access(path, os.X_OK)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(FailedPrecondition, match="nowhere"):
        await download_file(store, digest_of(b"new"), tmp_path / "nowhere" / "file")
