"""Mounts and namespaces."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executor.mounting import enter_namespace
from tvix.executor.mounts import (
    detach,
    device_of_mount,
    in_user_namespace,
    mount,
    mount_bind,
    mount_overlay,
    mounts_below,
    probe,
)


@pytest.fixture(autouse=True)
def _namespace() -> None:
    enter_namespace()


def _folders(parent: Path, *names: str) -> list[Path]:
    folders = [parent / name for name in names]
    for folder in folders:
        folder.mkdir()
    return folders


def test_mounts_are_listed_last_first_and_detached(tmp_path: Path) -> None:
    (outer,) = _folders(tmp_path, "a b\t,c")
    mount("one", outer, "tmpfs")
    (inner,) = _folders(outer, "inner")
    mount("two", inner, "tmpfs")
    assert mounts_below(tmp_path) == [inner, outer]
    status = inner.stat()
    assert device_of_mount(inner) == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    detach(inner)
    detach(outer)
    assert mounts_below(tmp_path) == []
    detach(outer)
    detach(tmp_path / "never was")


def test_a_sibling_with_the_same_beginning_is_not_below(tmp_path: Path) -> None:
    scratch, other = _folders(tmp_path, "scratch", "scratch2")
    mount("x", other, "tmpfs")
    assert mounts_below(scratch) == []
    detach(other)


def test_overlay_paths_may_hold_separators(tmp_path: Path) -> None:
    lower, upper, work, merged = _folders(tmp_path, "lo,wer:1", "up\\per", "wo rk", "mer,ged")
    (lower / "below").write_text("below")
    (lower / "gone").touch()
    mount_overlay(lower, upper, work, merged)
    (merged / "above").write_text("above")
    (merged / "gone").unlink()
    assert sorted(os.listdir(merged)) == ["above", "below"]
    assert (upper / "above").read_text() == "above"
    assert stat.S_ISCHR((upper / "gone").lstat().st_mode)
    detach(merged)


def test_bind_mounts_can_be_read_only(tmp_path: Path) -> None:
    source, target = _folders(tmp_path, "source", "target")
    mount_bind(source, target, read_only=True)
    (source / "file").touch()
    assert os.listdir(target) == ["file"]
    with pytest.raises(OSError, match="Read-only") as caught:
        (target / "other").touch()
    assert caught.value.errno == errno.EROFS
    detach(target)


def test_errors_say_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"mount nosuchfs on {tmp_path}") as caught:
        mount("x", tmp_path, "nosuchfs")
    assert caught.value.errno == errno.ENODEV


def test_the_probe_tells_what_works(tmp_path: Path) -> None:
    features = probe(tmp_path)
    assert (features.fuse, features.overlay) == (True, True)
    assert list(tmp_path.iterdir()) == []
    assert mounts_below(tmp_path) == []


def test_mounts_in_a_private_namespace_are_not_seen_outside(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tvix.executor.mounts import *\n"
        "enter_private_namespace(); mount('x', Path(sys.argv[1]), 'tmpfs'); print(mounts_below(Path(sys.argv[1])))\n"
    )
    output = subprocess.check_output([sys.executable, "-c", program, str(tmp_path)], text=True)
    assert str(tmp_path) in output
    assert mounts_below(tmp_path) == []


def test_unprivileged_the_namespace_makes_us_root(tmp_path: Path) -> None:
    if in_user_namespace():
        pytest.skip("is in a user namespace already")
    program = (
        "import os, sys; os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from tvix.executor.mounts import *\n"
        "import ctypes; ctypes.CDLL(None).prctl(4, 1)  # dumpable again, as after an exec\n"
        "enter_private_namespace(); print(os.geteuid(), os.getegid(), in_user_namespace())\n"
    )
    # The interpreter may lie where nobody else can read, so all that is needed is imported first.
    program = "import tvix.executor.mounts\n" + program
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.split() == ["0", "0", "True"]
