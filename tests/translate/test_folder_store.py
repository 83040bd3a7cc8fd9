from __future__ import annotations

import os
from pathlib import Path

from tvix.translate.folder_store import FolderStore

NAME = "0" * 32 + "-x"


def test_files_are_kept_with_their_references(tmp_path: Path) -> None:
    FolderStore(tmp_path).add_file(NAME, b"contents", ["/nix/store/b", "/nix/store/a"])
    again = FolderStore(tmp_path)
    assert again.has(NAME)
    assert Path(again.locate(NAME)).read_bytes() == b"contents"
    assert again.references(NAME) == {"/nix/store/a", "/nix/store/b"}
    assert again.references("other") == frozenset()


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.add_file(NAME, b"first")
    store.add_file(NAME, b"second")
    assert Path(store.locate(NAME)).read_bytes() == b"first"


def test_what_another_process_adds_is_seen(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert not store.has(NAME)
    FolderStore(tmp_path).add_file(NAME, b"x")
    assert store.has(NAME)


def test_trees_are_adopted_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    other = FolderStore(tmp_path)
    for adopting in (store, other):  # the second comes too late
        temporary = adopting.new_temporary()
        (Path(temporary) / "copy").mkdir()
        (Path(temporary) / "copy" / "file").write_text("x")
        adopting.adopt(NAME, f"{temporary}/copy")
        adopting.discard(temporary)
    assert os.listdir(store.locate(NAME)) == ["file"]
    assert os.listdir(tmp_path / ".tmp") == []


def test_own_folders_are_no_entries(tmp_path: Path) -> None:
    assert not FolderStore(tmp_path / "new").has(".nothing")


def test_derivations_refer_to_their_inputs(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    drv = b'Derive([("out","","","")],[("/nix/store/i.drv",["out"])],["/nix/store/s"],"x","b",[],[])'
    store.add_file(f"{NAME}.drv", drv, ["/ignored"])
    assert store.references(f"{NAME}.drv") == {"/nix/store/i.drv", "/nix/store/s"}
