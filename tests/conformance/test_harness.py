"""Programs are started, watched and ended with everything below them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from conformance.harness import (
    NotStarted,
    Program,
    free_port,
    remove_tree,
    scratch_folder,
    wait_until,
)

FOREVER = "import time; time.sleep(60)"


def _start(folder: Path, script: str) -> Program:
    return Program.start("program", [sys.executable, "-c", script], folder / "log")


def test_kill_takes_the_children_too(tmp_path: Path) -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOREVER!r}])"
    program = _start(tmp_path, script)
    wait_until(lambda: len(program.tree()) == 2, 10, "the child")
    child = program.find(FOREVER)[-1]
    left = program.kill(grace_seconds=0)
    # The child has no reason to end by itself: it is reported, and killed.
    assert [FOREVER in name for name in left] == [True]
    assert not Path(f"/proc/{child}").exists()


def test_a_polite_program_leaves_nothing(tmp_path: Path) -> None:
    program = _start(tmp_path, FOREVER)
    assert program.stop() == []
    assert program.process.returncode == -15


def test_a_program_that_dies_early_is_not_started(tmp_path: Path) -> None:
    program = _start(tmp_path, "print('cannot go on'); raise SystemExit(3)")
    with pytest.raises(NotStarted, match=r"exit code 3(?s:.*)cannot go on"):
        program.wait_ready(lambda: False)
    program.kill()


def test_strays_are_what_lives_on_outside_the_tree(tmp_path: Path) -> None:
    middle = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); time.sleep(60)"
    outer = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {middle!r}]); time.sleep(60)"
    program = _start(tmp_path, outer)
    wait_until(lambda: len(program.tree()) == 3, 10, "the grandchild")
    assert program.strays(grace_seconds=0) == []
    os.kill(program.tree()[1], 9)
    wait_until(lambda: bool(program.strays(grace_seconds=0)), 10, "the stray")
    assert len(program.kill(grace_seconds=0)) == 1


def test_scratch_folders_go_even_when_read_only() -> None:
    with scratch_folder("test") as folder:
        inner = folder / "inner"
        inner.mkdir()
        (inner / "file").touch()
        inner.chmod(0o500)
    assert not folder.exists()


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "absent")


def test_free_ports_differ() -> None:
    assert len({free_port() for _ in range(5)}) > 1
