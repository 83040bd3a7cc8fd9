"""The state folder: who has it, where it is, what is cleaned."""

import os
from pathlib import Path

import pytest

from tvix.errors import FailedPrecondition
from tvix.server.state import StateDir, default_state_dir, locked


def test_a_folder_is_held_by_one_server_and_the_other_is_told_by_whom(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    refused = pytest.raises(FailedPrecondition, match=f"in use by the server with process id {os.getpid()};")
    with locked(state), refused, locked(state):
        pytest.fail("locked twice")
    with locked(state):
        pass


def test_counters_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with locked(state):
        (state.metrics / "counter_1.db").write_bytes(b"")
    with locked(state):
        assert list(state.metrics.iterdir()) == []


def test_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with locked(state):
        assert (state.root.stat().st_mode & 0o077, state.cas.stat().st_mode & 0o077) == (0, 0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(FailedPrecondition, match=r"--state-dir .*file/state: Not a directory")
    with refused, locked(StateDir(tmp_path / "file" / "state")):
        pytest.fail("locked")


def test_the_socket_is_in_the_folder_unless_its_path_is_too_long(tmp_path: Path) -> None:
    short, long = StateDir(Path("/s")), StateDir(tmp_path / ("d" * 100))
    assert short.scheduler_socket == Path("/s/scheduler.sock")
    assert len(os.fsencode(long.scheduler_socket)) < 100
    assert long.scheduler_socket == StateDir(long.root).scheduler_socket
    assert long.scheduler_target == f"unix:{long.scheduler_socket}"


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TVIX_STATE_DIR", raising=False)
    assert default_state_dir() == tmp_path / "tvix"
    monkeypatch.setenv("TVIX_STATE_DIR", str(tmp_path / "other"))
    assert default_state_dir() == tmp_path / "other"
    monkeypatch.delenv("TVIX_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_state_dir() == tmp_path / ".local/state/tvix"


def test_a_worker_keeps_its_name(tmp_path: Path) -> None:
    state, other = StateDir(tmp_path / "a"), StateDir(tmp_path / "b")
    with locked(state), locked(other):
        assert state.worker_id() == StateDir(state.root).worker_id()
        assert state.worker_id() != other.worker_id()
