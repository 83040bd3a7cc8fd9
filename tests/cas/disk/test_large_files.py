"""Files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.blob_store import random_bytes, text_bytes
from tvix.cas.digest import Digest, digest_of
from tvix.cas.disk.large_files import LargeWriter, path_of, read_blob, read_frames, read_plain, read_table
from tvix.cas.disk.location import IDENTITY, OWN_FILE, ZSTD, pack_location, unpack_location
from tvix.cas.disk.packs import OpenFile
from tvix.errors import CorruptData, DigestMismatch

MIB = 1024 * 1024


def stored(tmp_path: Path, data: bytes, level: int | None) -> tuple[OpenFile, Digest, int]:
    digest = digest_of(data)
    writer = LargeWriter(tmp_path / "blobs", tmp_path / "temp", digest, level)
    writer.add([data[: MIB + 5], data[MIB + 5 : MIB + 6]])
    writer.add([data[MIB + 6 :]])
    location = writer.finish()
    return OpenFile(path_of(tmp_path / "blobs", digest, location)), digest, location


@pytest.mark.parametrize("data", [random_bytes(2 * MIB), text_bytes(2 * MIB), text_bytes(2 * MIB + 1)])
@pytest.mark.parametrize("level", [None, 1])
def test_written_blob_is_read_back(tmp_path: Path, data: bytes, level: int | None) -> None:
    file, digest, location = stored(tmp_path, data, level)
    assert b"".join(read_blob(file, digest, location)) == data
    assert not (tmp_path / "temp").exists()
    assert unpack_location(location).codec == (ZSTD if level and data[:4] == b"line" else IDENTITY)


def test_ranges_of_frames(tmp_path: Path) -> None:
    data = text_bytes(2 * MIB + 100)
    file, digest, location = stored(tmp_path, data, 1)
    table = read_table(file, digest, unpack_location(location).stored_bytes)
    for start, end in ((0, 1), (MIB - 1, MIB + 1), (2 * MIB, 2 * MIB + 100), (5, 2 * MIB + 99)):
        assert b"".join(read_frames(file, table, start, end)) == data[start:end]


def test_plain_pieces_are_no_more_than_asked_for(tmp_path: Path) -> None:
    data = random_bytes(3 * MIB)
    file, _, _ = stored(tmp_path, data, None)
    assert read_plain(file, 7, len(data), 2) == [data[7 : MIB + 7], data[MIB + 7 : 2 * MIB + 7]]
    assert read_plain(file, 7, 9, 2) == [data[7:9]]
    assert read_plain(file, 7, 7, 2) == []


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    writer = LargeWriter(tmp_path / "blobs", tmp_path / "temp", digest_of(b"x" * 100), None)
    writer.abort()
    writer.add([b"x" * 50])
    assert (tmp_path / "temp").exists()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_too_many_bytes_are_refused_at_once_and_too_few_at_the_end(tmp_path: Path) -> None:
    digest = digest_of(b"x" * 100)
    with pytest.raises(DigestMismatch) as caught:
        LargeWriter(tmp_path / "blobs", tmp_path / "long", digest, 3).add([b"x" * 60, b"x" * 41])
    assert caught.value.actual == digest_of(b"x" * 101)
    short = LargeWriter(tmp_path / "blobs", tmp_path / "short", digest, 3)
    short.add([b"x" * 99])
    with pytest.raises(DigestMismatch):
        short.finish()


def test_damaged_frame_is_corrupt(tmp_path: Path) -> None:
    data = text_bytes(2 * MIB)
    file, digest, location = stored(tmp_path, data, 1)
    path = Path(path_of(tmp_path / "blobs", digest, location))
    path.write_bytes(b"damage" + path.read_bytes()[6:])
    with pytest.raises(CorruptData, match="zstd frame"):
        list(read_blob(file, digest, location))


def test_names_say_function_hash_size_and_number() -> None:
    digest = Digest("blake3", "ab" * 32, 77)
    assert path_of(Path("blobs"), digest, pack_location(OWN_FILE, 0xBEEF, 77, IDENTITY)) == (
        f"blobs/blake3/ab/{digest.hash}-77.beef"
    )
    assert path_of(Path("blobs"), digest, pack_location(OWN_FILE, 1, 50, ZSTD)).endswith("-77.1.zst")
