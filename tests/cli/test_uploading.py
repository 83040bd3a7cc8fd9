"""Uploads, on a store in memory."""

from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import EMPTY, digest_of
from tvix.cas.memory import MemoryBlobStore
from tvix.cli.uploading import BATCH_BYTES, upload
from tvix.errors import InvalidInput


async def test_a_file_has_its_own_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    blobs = MemoryBlobStore()
    assert await upload(blobs, tmp_path / "f", "sha256") == (digest_of(b"data"), 4)
    assert await upload(blobs, tmp_path / "f", "sha256") == (digest_of(b"data"), 0)


async def test_a_folder_becomes_canonical_directories(tmp_path: Path) -> None:
    for name in ("b", "a", "B"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "sub").mkdir()
    blobs = MemoryBlobStore()
    digest, _ = await upload(blobs, tmp_path, "sha256")
    root = re_pb2.Directory.FromString(blobs.blobs[digest])
    assert [node.name for node in root.files] == ["B", "a", "b"]
    assert root.directories[0].digest.hash == EMPTY["sha256"].hash


async def test_large_files_and_many_small_ones(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (BATCH_BYTES + 1))
    for number in range(50):
        (tmp_path / f"{number}").write_bytes(b"%d" % number * 50_000)
    blobs = MemoryBlobStore()
    _, sent_bytes = await upload(blobs, tmp_path, "blake3")
    assert sent_bytes == sum(digest.size_bytes for digest in blobs.blobs)
    assert len(blobs.blobs) == 52


async def test_an_empty_folder_is_the_empty_blob(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert await upload(MemoryBlobStore(), tmp_path / "empty", "sha256") == (EMPTY["sha256"], 0)


async def test_devices_are_refused() -> None:
    with pytest.raises(InvalidInput, match="/dev/null is neither"):
        await upload(MemoryBlobStore(), Path("/dev/null"), "sha256")


async def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / b"\xff".decode(errors="surrogateescape")).write_bytes(b"")
    with pytest.raises(InvalidInput):
        await upload(MemoryBlobStore(), tmp_path, "sha256")
