"""Directories as build roots show them."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import FUNCTIONS, DigestFunction, digest_of, digest_to_proto
from tvix.errors import InvalidDirectory
from tvix.executor.input_tree import (
    DEFAULT_MTIME_NS,
    DirectoryEntry,
    FileEntry,
    SymlinkEntry,
    digest_from_tree_name,
    level_from_bytes,
    tree_name,
)


@given(st.sampled_from(sorted(FUNCTIONS)), st.binary(max_size=20))
def test_tree_names_round_trip(function: DigestFunction, data: bytes) -> None:
    digest = digest_of(data, function)
    assert digest_from_tree_name(tree_name(digest)) == digest


@given(st.text())
def test_other_names_are_no_trees(name: str) -> None:
    digest = digest_from_tree_name(name)
    assert digest is None or tree_name(digest) == name


@pytest.mark.parametrize("size", ["", "-1", "+1", "01", "1_0", "²", "9" * 30, "1 "])
def test_sizes_have_one_spelling(size: str) -> None:
    assert digest_from_tree_name(f"sha256-{digest_of(b'').hash}-{size}") is None


def test_entries_by_name_and_number() -> None:
    directory = re_pb2.Directory()
    file_digest = digest_of(b"file")
    directory.files.add(name="a", digest=digest_to_proto(file_digest))
    directory.files.add(name="ü", digest=digest_to_proto(file_digest), is_executable=True)
    directory.directories.add(name="d", digest=digest_to_proto(digest_of(b"")))
    directory.symlinks.add(name="l", target="ü/x")
    level = level_from_bytes(directory.SerializeToString(), "sha256", "here")
    assert len(level) == 4
    assert level.get(b"a") == FileEntry(file_digest, 0o444, DEFAULT_MTIME_NS)
    assert level.get("ü".encode()) == FileEntry(file_digest, 0o555, DEFAULT_MTIME_NS)
    assert level.get(b"d") == DirectoryEntry(digest_of(b""))
    assert level.get(b"l") == SymlinkEntry("ü/x".encode(), DEFAULT_MTIME_NS)
    assert level.get(b"x") is None
    assert level.get(b"\xff") is None
    assert [level.name(number) for number in range(4)] == [b"a", "ü".encode(), b"d", b"l"]
    assert [level.file_type(number) for number in range(4)] == [stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK]
    assert dict(level.items())["d"] == DirectoryEntry(digest_of(b""))
    assert list(level.files_from(1)) == [file_digest]
    assert list(level.directories()) == [digest_of(b"")]
    assert (level.mode, level.mtime_ns) == (0o777, DEFAULT_MTIME_NS)


def test_unix_mode_keeps_permission_bits_only() -> None:
    directory = re_pb2.Directory()
    file = directory.files.add(name="a", digest=digest_to_proto(digest_of(b"")), is_executable=True)
    file.node_properties.unix_mode.value = 0o120644
    entry = level_from_bytes(directory.SerializeToString(), "sha256", "here").get(b"a")
    assert isinstance(entry, FileEntry)
    assert entry.mode == 0o644


def test_malformed_directories_name_the_place() -> None:
    with pytest.raises(InvalidDirectory, match="directory x/1"):
        level_from_bytes(b"\xff", "sha256", "directory x/1")
