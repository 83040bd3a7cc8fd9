from __future__ import annotations

from pathlib import Path

import pytest

from tvix.eval.errors import EvalError
from tvix.nix.derivation import Derivation, Output
from tvix.nix.derivation_hashes import DerivationHashes
from tvix.nix.hashes import hash_of
from tvix.translate.eval_io import StoreIO
from tvix.translate.folder_store import FolderStore


@pytest.fixture
def io(tmp_path: Path) -> StoreIO:
    return StoreIO(FolderStore(tmp_path / "store"))


def made(io: StoreIO) -> tuple[str, str]:
    """A derivation in the store; returns its path and its output's."""
    found = DerivationHashes(lambda path: pytest.fail(path)).instantiate("n", Derivation({"out": Output()}))
    io.add_derivation(found.path, found.derivation, found.contents)
    return found.path, found.derivation.outputs["out"].path


def test_copies_are_read_back_by_their_store_paths(io: StoreIO, tmp_path: Path) -> None:
    (tmp_path / "src" / "d").mkdir(parents=True)
    (tmp_path / "src" / "d" / "f").write_text("text")
    (tmp_path / "src" / "link").symlink_to("d")
    path = io.import_path("src", str(tmp_path / "src"), None)
    assert path.startswith("/nix/store/")
    assert io.read_file(f"{path}/d/f") == b"text"
    assert io.read_dir(path) == {"d": "directory", "link": "symlink"}
    assert (io.file_type(f"{path}/link"), io.file_type(f"{path}/nothing")) == ("symlink", None)
    assert io.resolve(f"{path}/link/f") == f"{path}/d/f"
    assert io.import_path("src", str(tmp_path / "src"), None) == path


def test_links_to_other_store_paths_are_followed(io: StoreIO, tmp_path: Path) -> None:
    target = io.add_text("t", b"target", [])
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "l").symlink_to(target)
    tree = io.import_path("tree", str(tmp_path / "tree"), None)
    assert io.resolve(f"{tree}/l") == target
    assert io.read_file(f"{tree}/l") == b"target"
    assert io.resolve(str(tmp_path / "link")) == target


def test_links_in_circles_are_an_error(io: StoreIO, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a").symlink_to("b")
    (tmp_path / "t" / "b").symlink_to("a")
    tree = io.import_path("t", str(tmp_path / "t"), None)
    with pytest.raises(EvalError, match="too many symbolic links"):
        io.resolve(f"{tree}/a")


def test_missing_things_are_named_by_the_path_asked_for(io: StoreIO, tmp_path: Path) -> None:
    tree = io.add_text("t", b"", [])
    for path in (f"{tree}/x", "/nix/store/nothing", str(tmp_path / "none")):
        with pytest.raises(EvalError, match=path):
            io.read_file(path)
        with pytest.raises(EvalError, match=path):
            io.import_path("n", path, None)


def test_a_promised_hash_is_checked(io: StoreIO, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    path = io.import_path("f", str(tmp_path / "f"), None, recursive=False, expected=hash_of(b"x"))
    assert io.read_file(path) == b"x"
    with pytest.raises(EvalError, match="store path mismatch"):
        io.import_path("f", str(tmp_path / "f"), None, recursive=False, expected=hash_of(b"y"))
    (tmp_path / "f").unlink()  # what is there is not read again
    assert io.import_path("f", str(tmp_path / "f"), None, recursive=False, expected=hash_of(b"x")) == path


def test_copies_out_of_the_store_keep_its_references(io: StoreIO) -> None:
    inner = io.add_text("inner", b"i", [])
    outer = io.add_text("outer", inner.encode(), [inner])
    copy = io.import_path("outer", outer, None)
    assert io.references(copy) == {inner}


def test_only_files_are_added_flat(io: StoreIO, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="only files"):
        io.import_path("d", str(tmp_path), None, recursive=False)


def test_realise_builds_what_is_not_there(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    asked: list[tuple[str, frozenset[str]]] = []

    def build(drv_path: str, outputs: frozenset[str]) -> None:
        asked.append((drv_path, outputs))
        store.add_file(Path(output).name, b"built")

    io = StoreIO(store, build=build)
    drv_path, output = made(io)
    for _ in range(2):
        io.realise({drv_path: frozenset(["out"])})
    assert asked == [(drv_path, frozenset(["out"]))]
    assert io.read_file(output) == b"built"


def test_realise_without_a_builder_says_so(io: StoreIO) -> None:
    drv_path, _ = made(io)
    io.realise({drv_path: frozenset()})
    with pytest.raises(EvalError, match="nothing here builds"):
        io.realise({drv_path: frozenset(["out"])})
    with pytest.raises(EvalError, match="does not have an output 'dev'"):
        io.realise({drv_path: frozenset(["dev"])})
    with pytest.raises(EvalError, match="is not in the store"):
        io.realise({"/nix/store/nothing": frozenset()})
