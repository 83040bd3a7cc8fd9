"""What of the host is shown."""

from __future__ import annotations

import os
from pathlib import Path

from tvix.executor.host_tools import shown_paths


def test_system_folders_are_shown_and_secrets_are_not() -> None:
    shown = {path: target for path, target in shown_paths()}
    assert "/usr" in shown
    assert all(os.path.lexists(path) for path in shown)
    assert shown.keys().isdisjoint({"/etc", "/etc/shadow", "/etc/ssh", "/home", "/root", "/var", "/run"})


def test_symlinks_are_made_anew() -> None:
    for path, target in shown_paths():
        assert (target is not None) == (os.path.islink(path) and not path.startswith("/etc/")), path


def test_more_can_be_shown(tmp_path: Path) -> None:
    shown = [path for path, _ in shown_paths([str(tmp_path), "/no/such/folder"])]
    assert str(tmp_path) in shown
    assert "/no/such/folder" not in shown
