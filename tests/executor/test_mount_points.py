"""Folders to mount on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvix.errors import FailedPrecondition
from tvix.executor.mount_points import mount_points


def test_what_is_made_is_removed_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    with mount_points(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dev", "proc", "tmp"]
    assert [path.name for path in tmp_path.iterdir()] == ["dev"]


def test_what_somebody_filled_stays(tmp_path: Path) -> None:
    with mount_points(tmp_path):
        (tmp_path / "tmp" / "f").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    with pytest.raises(FailedPrecondition, match="'proc' is not a directory"), mount_points(tmp_path):
        pass


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="'dev' is not there and cannot be made: No such file"):
        mount_points(tmp_path / "absent").__enter__()
