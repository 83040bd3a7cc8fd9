"""Files as the evaluator sees them."""

from pathlib import Path

import pytest

from tvix.eval.errors import EvalError
from tvix.eval.io import FileSystem


def test_files_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    files = FileSystem()
    assert files.read_dir(str(tmp_path)) == {"file": "regular", "folder": "directory", "link": "symlink"}
    assert files.read_file(f"{tmp_path}/file") == b"\xff"
    assert files.file_type(f"{tmp_path}/link") == "symlink"
    assert files.file_type(f"{tmp_path}/none") is None
    assert files.file_type(f"{tmp_path}/file/below") is None


def test_failures_name_the_path(tmp_path: Path) -> None:
    files = FileSystem()
    with pytest.raises(EvalError, match=r"opening file '.*/none': No such file"):
        files.read_file(f"{tmp_path}/none")
    with pytest.raises(EvalError, match=r"reading directory '.*/none'"):
        files.read_dir(f"{tmp_path}/none")


def test_there_is_no_store() -> None:
    files = FileSystem()
    with pytest.raises(EvalError, match="has none"):
        files.import_path("x", "/x", None)
    with pytest.raises(EvalError, match="has none"):
        files.add_text("x", b"", [])
    with pytest.raises(EvalError, match="no store"):
        files.realise({"/nix/store/x.drv": frozenset({"out"})})
    files.realise({})


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVIX_TEST_VARIABLE", "v")
    assert FileSystem().get_env("TVIX_TEST_VARIABLE") == "v"
    assert FileSystem().get_env("TVIX_TEST_UNSET") == ""
