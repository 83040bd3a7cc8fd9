"""Nothing leads out of the root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvix.executor.safe_paths import make_directories, open_below, opened_directory, opened_root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    return tmp_path / "root"


@pytest.fixture
def root(folder: Path) -> Iterator[int]:
    with opened_root(folder) as descriptor:
        yield descriptor


@pytest.mark.parametrize("path", ["way", "..", "../outside", "way/..", "up/outside"])
def test_outside_is_not_reached(root: int, folder: Path, path: str) -> None:
    (folder / "way").symlink_to(folder.parent / "outside")
    (folder / "up").symlink_to("..")
    inode_outside = {os.stat(folder.parent).st_ino, os.stat(folder.parent / "outside").st_ino}
    with contextlib.suppress(FileNotFoundError), opened_directory(root, path) as descriptor:
        assert os.fstat(descriptor).st_ino not in inode_outside


def test_symlinks_inside_are_followed(root: int, folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "way").symlink_to("/real")
    with opened_directory(root, "way") as descriptor:
        assert os.fstat(descriptor).st_ino == (folder / "real").stat().st_ino


def test_directories_are_made(root: int, folder: Path) -> None:
    make_directories(root, "a/b/c")
    make_directories(root, "a/b/c")
    assert (folder / "a/b/c").is_dir()


def test_directories_are_not_made_outside(root: int, folder: Path) -> None:
    (folder / "way").symlink_to(folder.parent / "outside")
    with pytest.raises(FileNotFoundError):
        make_directories(root, "way/x")
    assert list((folder.parent / "outside").iterdir()) == []


def test_a_file_in_the_way_is_an_error(root: int, folder: Path) -> None:
    (folder / "f").write_text("")
    with pytest.raises(NotADirectoryError):
        make_directories(root, "f/x")
    with pytest.raises(NotADirectoryError):
        make_directories(root, "f")


def test_errors_name_the_path(root: int) -> None:
    with pytest.raises(FileNotFoundError, match="no/such"):
        open_below(root, "no/such", os.O_RDONLY)
