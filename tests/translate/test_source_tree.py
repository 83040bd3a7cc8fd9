"""Hashes are those that real Nix computes (`nix-hash --type sha256 --sri`)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tvix.errors import InvalidInput
from tvix.translate.source_tree import copy_tree, hash_file, hash_tree, newest, plan_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "d" / "b").write_text("x\n")
    (root / "d" / "b").chmod(0o755)
    (root / "a").write_text("hi\n")
    (root / "empty").touch()
    (root / "l").symlink_to("a")
    return root


HASH = "sha256-Z7rgoq1rErIq63LwFO8zsWvyj+LqIwlNg0ok8c+Kqe0="


def test_hash_is_that_of_nix(tree: Path) -> None:
    assert hash_tree(plan_tree(str(tree), str(tree), None)).sri == HASH


def test_copies_have_the_same_hash_and_are_read_only(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert copy_tree(plan_tree(str(tree), str(tree), None), str(copy)).sri == HASH
    assert hash_tree(plan_tree(str(copy), "/shown", None)).sri == HASH
    assert (copy / "d" / "b").stat().st_mode & 0o777 == 0o555
    assert (copy / "a").stat().st_mode & 0o777 == 0o444
    assert os.readlink(copy / "l") == "a"


def test_filter_sees_shown_paths_in_order_and_not_the_root(tree: Path) -> None:
    asked: list[tuple[str, str]] = []

    def keep(path: str, kind: str) -> bool:
        asked.append((path, kind))
        return path != "/s/d"

    planned = plan_tree(str(tree), "/s", keep)
    assert asked == [("/s/a", "regular"), ("/s/d", "directory"), ("/s/empty", "regular"), ("/s/l", "symlink")]
    assert len(planned) == 5  # root's start and end, and three entries


def test_order_of_entries_is_that_of_bytes(tmp_path: Path) -> None:
    for name in ("é", "z", "Z", "a-b", "a"):
        (tmp_path / name).touch()
    names = [item.name for item in plan_tree(str(tmp_path), "/s", None)[1:-1] if hasattr(item, "name")]
    assert names == [b"Z", b"a", b"a-b", b"z", "é".encode()]


def test_sockets_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(InvalidInput, match="'/shown/s' has an unsupported type"):
            plan_tree(str(tmp_path), "/shown", None)


def test_large_files_are_copied_in_blocks(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(3 << 20))
    copied = copy_tree(plan_tree(str(file), str(file), None), str(tmp_path / "copy"))
    assert copied == hash_tree(plan_tree(str(file), str(file), None))


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert hash_file(str(tmp_path / "f")).base16.startswith("e3b0c442")


def test_newest_looks_into_the_tree(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (1000, 1000), follow_symlinks=False)
    os.utime(tree / "d" / "b", (2000, 2000))
    assert newest(str(tree)) == 2000
    assert newest(str(tree / "a")) == 1000
