"""Output that is kept."""

from __future__ import annotations

from pathlib import Path

from tests.executor.actions import Recorded
from tvix.cas.digest import digest_of
from tvix.executor import capture
from tvix.executor.capture import Capture


def test_what_is_small_stays_in_memory(tmp_path: Path) -> None:
    also = Recorded()
    kept = Capture(tmp_path, also)
    kept.write(b"ab")
    kept.write(b"c")
    assert kept.in_memory == b"abc"
    assert kept.digest("sha256") == digest_of(b"abc")
    assert also.chunks == [b"ab", b"c"]


def test_what_is_large_goes_to_a_file_without_a_name(tmp_path: Path) -> None:
    kept = Capture(tmp_path)
    piece = b"x" * 300_000
    for _ in range(5):
        kept.write(piece)
    assert kept.size_bytes > capture.MAX_MEMORY_BYTES
    assert kept.in_memory is None
    assert b"".join(kept.chunks()) == piece * 5
    kept.write(b"end")
    assert kept.digest("blake3") == digest_of(piece * 5 + b"end", "blake3")
    assert list(tmp_path.iterdir()) == []
    kept.close()


def test_a_flood_is_cut_off_with_a_note(tmp_path: Path) -> None:
    kept = Capture(tmp_path, max_bytes=10)
    kept.write(b"12345678")
    kept.write(b"90abc")
    kept.write(b"more")
    assert kept.in_memory == b"1234567890\n[tvix: output over 10 bytes is cut off here]\n"
    assert kept.truncated
    assert kept.size_bytes == len(kept.in_memory)
