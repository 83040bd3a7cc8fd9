"""Uploads: canonical Directories, only what is missing is sent, and files that change are noticed."""

import os
import socket
import subprocess
from collections.abc import AsyncIterable, Iterator, Sequence
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas import upload as upload_module
from tvix.cas.digest import EMPTY, FUNCTIONS, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import directory_digest, parse_directory
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.upload import upload_file, upload_tree
from tvix.errors import FailedPrecondition, InvalidInput, TvixError


class WatchedStore(MemoryBlobStore):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Digest]] = []
        self.streamed: list[Digest] = []

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        self.batches.append([digest for digest, _ in blobs])
        return await super().put_many(blobs)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        self.streamed.append(digest)
        await super().write(digest, chunks)


def make_tree(root: Path) -> None:
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty folder").mkdir()
    (root / "b.txt").write_bytes(b"b")
    (root / "a.sh").write_bytes(b"a")
    (root / "a.sh").chmod(0o755)
    (root / "empty").write_bytes(b"")
    (root / "sub" / "same as b").write_bytes(b"b")
    (root / "sub" / "deep" / "large").write_bytes(bytes(1_500_000))
    (root / "link").symlink_to("../outside")
    (root / "sub" / "to folder").symlink_to("deep")


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_tree_becomes_canonical_directories(tmp_path: Path, function: DigestFunction) -> None:
    make_tree(tmp_path)
    store = WatchedStore()
    done = await upload_tree(store, tmp_path, function)
    root = parse_directory(store.blobs[done.digest], function)
    one, b = digest_of(b"a", function), digest_of(b"b", function)
    assert [(node.name, node.digest, node.is_executable) for node in root.files] == [
        ("a.sh", digest_to_proto(one), True),
        ("b.txt", digest_to_proto(b), False),
        ("empty", digest_to_proto(EMPTY[function]), False),
    ]
    assert [(node.name, node.target) for node in root.symlinks] == [("link", "../outside")]
    assert [node.name for node in root.directories] == ["empty folder", "sub"]
    assert root.directories[0].digest == digest_to_proto(EMPTY[function])
    assert directory_digest(root, function) == done.digest
    sub_node = root.directories[1].digest
    sub = parse_directory(store.blobs[Digest(function, sub_node.hash, sub_node.size_bytes)], function)
    assert sub.symlinks == [re_pb2.SymlinkNode(name="to folder", target="deep")]
    assert (done.files, done.directories, done.total_bytes) == (5, 4, 1_500_003)
    large = digest_of(bytes(1_500_000), function)
    assert store.streamed == [large]
    assert set(store.blobs) >= {large, one, b}
    assert done.sent_blobs == len(store.blobs) == 6


async def test_a_second_upload_sends_nothing_and_a_changed_file_only_what_changed(tmp_path: Path) -> None:
    make_tree(tmp_path)
    store = WatchedStore()
    first = await upload_tree(store, tmp_path)
    store.batches.clear()
    again = await upload_tree(store, tmp_path)
    assert (again.digest, again.sent_blobs, again.sent_bytes) == (first.digest, 0, 0)
    assert store.batches == []
    (tmp_path / "b.txt").write_bytes(b"changed")
    changed = await upload_tree(store, tmp_path)
    assert changed.digest != first.digest
    assert changed.sent_blobs == 2, "the file and the root"


async def test_directories_are_sent_after_the_files(tmp_path: Path) -> None:
    make_tree(tmp_path)
    store = WatchedStore()
    done = await upload_tree(store, tmp_path)
    assert done.digest in store.batches[-1]
    assert digest_of(b"b") in store.batches[0]
    assert len(store.batches) == 2


async def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "_BATCH_BYTES", 10)
    for index in range(5):
        (tmp_path / f"{index}").write_bytes(b"%d" % index * 4)
    store = WatchedStore()
    await upload_tree(store, tmp_path)
    assert sorted(len(batch) for batch in store.batches) == [1, 1, 2, 2]


async def test_one_file_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    store = WatchedStore()
    done = await upload_file(store, tmp_path / "file", "blake3")
    assert store.blobs == {digest_of(b"data", "blake3"): b"data"}
    assert (done.digest, done.files, done.directories) == (digest_of(b"data", "blake3"), 1, 0)
    (tmp_path / "folder").mkdir()
    assert (await upload_tree(store, tmp_path / "folder")).digest == EMPTY["sha256"]


async def test_what_cannot_be_uploaded_is_named(tmp_path: Path) -> None:
    store = WatchedStore()
    with pytest.raises(InvalidInput, match=r"gone: No such file"):
        await upload_tree(store, tmp_path / "gone")
    with pytest.raises(InvalidInput, match=r"gone: No such file"):
        await upload_file(store, tmp_path / "gone")
    with pytest.raises(InvalidInput, match="not a file"):
        await upload_file(store, tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match="Not a directory"):
        await upload_tree(store, tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(InvalidInput, match="socket: neither a file nor a folder nor a symlink"):
            await upload_tree(store, tmp_path)
    os.unlink(tmp_path / "socket")
    os.mkdir(os.fsencode(tmp_path) + b"/bad\xff")
    with pytest.raises(InvalidInput, match=r"bad\\udcff': its name or target is not UTF-8"):
        await upload_tree(store, tmp_path)
    assert store.blobs == {}


class ChangingStore(WatchedStore):
    """Changes a file when it is asked what is missing, as another program might."""

    path: Path

    async def find_missing(self, digests: object) -> set[Digest]:
        self.path.write_bytes(b"X" * self.path.stat().st_size)
        return await super().find_missing(digests)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, size: int) -> None:
    store = ChangingStore()
    store.path = tmp_path / "file"
    store.path.write_bytes(bytes(size))
    with pytest.raises(FailedPrecondition, match="file: changed while it was uploaded"):
        await upload_tree(store, tmp_path)
    assert store.blobs == {}


@pytest.fixture
def deep_tree(tmp_path: Path) -> Iterator[Path]:
    names = "/".join(["d"] * 1200)
    subprocess.run(["mkdir", "-p", names], cwd=tmp_path, check=True)
    yield tmp_path
    subprocess.run(["rm", "-r", "d"], cwd=tmp_path, check=True)


async def test_a_tree_deeper_than_recursion_allows(deep_tree: Path) -> None:
    assert (await upload_tree(WatchedStore(), deep_tree)).directories == 1201
