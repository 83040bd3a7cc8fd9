"""Pack files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tvix.cas.disk.packs import OpenFile, PackReader, PackWriter, lock_pack, read_cached, read_exactly
from tvix.errors import CorruptData


def read(folder: Path, pack: int, size: int, offset: int) -> bytes:
    file = PackReader(folder).get(pack)
    return read_exactly(file.fd, size, offset)


def test_blobs_of_one_batch_lie_side_by_side(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path, 1000)
    assert writer.append([b"one", b"", b"two"]) == (writer.open_pack, [0, 3, 3])
    assert writer.append([b"three"]) == (writer.open_pack, [6])
    assert read(tmp_path, writer.open_pack, 11, 0) == b"onetwothree"


def test_more_blobs_than_one_system_call_takes(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path, 1000)
    blobs = [b"%04d" % number for number in range(3000)]
    pack, offsets = writer.append(blobs)
    assert offsets == list(range(0, 12000, 4))
    assert read(tmp_path, pack, 12000, 0) == b"".join(blobs)


def test_full_pack_is_sealed_and_another_begun(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path, 10)
    first, _ = writer.append([b"x" * 10])
    second, offsets = writer.append([b"y"])
    assert first != second
    assert offsets == [0]


def test_two_writers_have_a_pack_each_and_a_left_one_is_adopted(tmp_path: Path) -> None:
    one, two = PackWriter(tmp_path, 1000), PackWriter(tmp_path, 1000)
    first, _ = one.append([b"one"])
    second, _ = two.append([b"two"])
    assert first != second
    one.close()
    three = PackWriter(tmp_path, 1000)
    assert three.append([b"three"]) == (first, [3])


def test_pack_deleted_by_hand_is_not_written_to(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path / "packs", 1000)
    first, _ = writer.append([b"one"])
    (tmp_path / "packs" / str(first)).unlink()
    (tmp_path / "packs").rmdir()
    second, offsets = writer.append([b"two"])
    assert read(tmp_path / "packs", second, 3, offsets[0]) == b"two"


def test_lock_says_who_may_free_a_pack(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path, 1000)
    pack, _ = writer.append([b"one"])
    assert lock_pack(tmp_path / str(pack)) is None
    assert lock_pack(tmp_path / "999") is None
    writer.seal()
    assert lock_pack(tmp_path / str(pack)) is not None


def test_reader_keeps_a_pack_that_is_gone_until_told(tmp_path: Path) -> None:
    writer, reader = PackWriter(tmp_path, 1000), PackReader(tmp_path)
    pack, _ = writer.append([b"one"])
    reader.get(pack)
    (tmp_path / str(pack)).unlink()
    assert read_exactly(reader.get(pack).fd, 3, 0) == b"one"
    reader.forget(pack)
    with pytest.raises(FileNotFoundError):
        reader.get(pack)


def test_reader_closes_what_it_used_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvix.cas.disk.packs._MAX_OPEN_PACKS", 2)
    for name in ("1", "2", "3"):
        (tmp_path / name).write_bytes(name.encode())
    reader = PackReader(tmp_path)
    files = [reader.get(pack) for pack in (1, 2, 3)]
    assert reader.get(3) is files[2]
    assert reader.get(1) is not files[0]
    assert read_exactly(files[0].fd, 1, 0) == b"1"  # still open for whoever holds it


def test_short_file_is_corrupt_or_not_cached(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    file = OpenFile(tmp_path / "file")
    assert read_exactly(file.fd, 5, 0) == b"12345"
    assert read_cached(file.fd, 5, 0) == bytearray(b"12345")
    assert read_cached(file.fd, 6, 0) is None
    with pytest.raises(CorruptData, match="ends 1 bytes early"):
        read_exactly(file.fd, 6, 0)


def test_failed_append_leaves_the_pack_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PackWriter(tmp_path, 1000)
    pack, _ = writer.append([b"one"])
    write = os.writev

    def full(fd: int, buffers: list[bytes]) -> int:
        write(fd, [b"half"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space"):
        writer.append([b"half a blob"])
    monkeypatch.undo()
    assert writer.append([b"two"]) == (pack, [3])
    assert read(tmp_path, pack, 6, 0) == b"onetwo"
