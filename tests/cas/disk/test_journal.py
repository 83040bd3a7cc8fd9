"""The journal: its record format, and what crashes and compaction do to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.cas.digest import FUNCTIONS, MAX_SIZE_BYTES, Digest, digest_of
from tvix.cas.disk import journal
from tvix.cas.disk.journal import BROKEN, RECORD_BYTES, Journal, Record, decode, decode_header, encode, encode_note
from tvix.errors import CorruptData

digests = st.sampled_from(sorted(FUNCTIONS)).flatmap(
    lambda name: st.builds(
        Digest,
        st.just(name),
        st.binary(min_size=FUNCTIONS[name].hex_length // 2, max_size=FUNCTIONS[name].hex_length // 2).map(bytes.hex),
        st.integers(0, MAX_SIZE_BYTES),
    )
)
ONE, TWO, THREE = (digest_of(data) for data in (b"1", b"2", b"3"))


def put(digest: Digest) -> bytes:
    return encode(journal.PUT, digest, 7, 1.5)


def news(file: Journal) -> list[Record]:
    return list(decode(file.read_new()))


@given(st.integers(1, 9), digests, st.integers(0, 2**128 - 1), st.floats(allow_nan=False))
def test_record_round_trip(op: int, digest: Digest, location: int, time: float) -> None:
    record = encode(op, digest, location, time)
    assert len(record) == RECORD_BYTES == 104
    assert list(decode(record)) == [(op, digest, location, time)]


@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES))
def test_noise_is_broken(noise: bytes) -> None:
    assert list(decode(noise)) == [BROKEN]


@given(st.integers(0, RECORD_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_breaks_the_record(position: int, change: int) -> None:
    record = bytearray(put(ONE))
    record[position] ^= change
    assert list(decode(bytes(record) + put(TWO))) == [BROKEN, (journal.PUT, TWO, 7, 1.5)]


def test_note_round_trip() -> None:
    assert list(decode(encode_note(journal.DROP_PACK, 2**100, 2.0))) == [(journal.DROP_PACK, None, 2**100, 2.0)]


def test_appends_are_seen_by_another_at_once(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    assert not two.has_news()
    one.append(put(ONE) + put(TWO))
    assert two.has_news()
    assert [record.digest for record in news(two)] == [ONE, TWO]
    assert not two.has_news()
    two.append(put(THREE))
    assert [record.digest for record in news(one)] == [ONE, TWO, THREE]
    one.close()
    two.close()


@pytest.mark.parametrize("torn_bytes", [1, 50, 71])
def test_torn_tail_is_waited_for_then_skipped(tmp_path: Path, torn_bytes: int) -> None:
    file = Journal(tmp_path / "journal")
    file.append(put(ONE))
    with (tmp_path / "journal").open("ab") as raw:
        raw.write(put(TWO)[:torn_bytes])
    assert [record.digest for record in news(file)] == [ONE]
    assert news(file) == []
    file.append(put(THREE))
    assert news(file) == [BROKEN, (journal.PUT, THREE, 7, 1.5)]
    file.close()


def test_torn_header_of_a_new_journal_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"torn")
    file = Journal(tmp_path / "journal")
    file.append(put(ONE))
    assert [record.digest for record in news(file)] == [ONE]
    file.close()


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"x" * 1000)
    with pytest.raises(CorruptData, match="does not begin with a journal header"):
        Journal(tmp_path / "journal")


def test_unknown_version_is_refused() -> None:
    record = journal._encode(journal.HEADER, 0, 99, 0, 0.0, b"")
    with pytest.raises(CorruptData, match="format version 99"):
        decode_header(record)


def snapshot(path: Path, *digests: Digest) -> Path:
    path.write_bytes(bytes(RECORD_BYTES) + b"".join(map(put, digests)))
    return path


def test_reader_follows_to_the_successor_without_reading_the_snapshot(tmp_path: Path) -> None:
    file, other = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    file.append(put(ONE))
    position = file.position + RECORD_BYTES
    file.append(put(TWO))  # after the snapshot was taken
    file.replace(snapshot(tmp_path / "new", ONE), position, 1.0)
    other.append(put(THREE))  # goes to the successor although `other` has not looked yet
    assert [record.op for record in news(other)] == [journal.PUT, journal.PUT, journal.MOVED]
    assert other.follow()
    assert [record.digest for record in news(other)] == [THREE]
    late = Journal(tmp_path / "journal")
    assert [record.digest for record in news(late)] == [ONE, TWO, THREE]
    for journal_file in (file, other, late):
        journal_file.close()


def test_reader_that_missed_a_generation_has_to_begin_anew(tmp_path: Path) -> None:
    file, sleeper = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    for _ in range(2):
        file.replace(snapshot(tmp_path / "new", ONE), file.size_bytes, 1.0)
        assert [record.op for record in news(file)] == [journal.MOVED]
        assert file.follow()
    assert [record.op for record in news(sleeper)] == [journal.MOVED]
    assert not sleeper.follow()
    assert [record.digest for record in news(sleeper)] == [ONE]
    file.close()
    sleeper.close()


def test_moved_without_successor_is_void(tmp_path: Path) -> None:
    file = Journal(tmp_path / "journal")
    file.append(encode_note(journal.MOVED, 0, 1.0))  # then the compacting process died
    assert [record.op for record in news(file)] == [journal.MOVED]
    assert file.follow()
    file.append(put(ONE))
    assert [record.digest for record in news(file)] == [ONE]
    file.close()


def test_journal_deleted_by_hand_begins_anew(tmp_path: Path) -> None:
    file = Journal(tmp_path / "journal")
    file.append(put(ONE))
    news(file)
    (tmp_path / "journal").unlink()
    file.append(put(TWO))
    assert file.was_removed()
    assert not file.follow()
    assert [record.digest for record in news(file)] == [TWO]
    file.close()


def test_last_record(tmp_path: Path) -> None:
    file = Journal(tmp_path / "journal")
    assert file.last_record().op == journal.HEADER
    file.append(put(ONE) + put(TWO))
    assert file.last_record().digest == TWO
    file.close()
