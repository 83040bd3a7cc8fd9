"""The worker's scratch folder."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from tests.executor.mounting import enter_namespace
from tvix.executor.mounts import mount
from tvix.executor.scratch import Scratch, remove_tree, run_blocking


def test_claiming_makes_the_folder_and_clears_what_a_predecessor_made(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "deep/scratch", "action", "mount")
    scratch.claim()
    first, second = scratch.new("action"), scratch.new("action")
    assert first != second
    (first / "file").touch()
    (scratch.folder / "mount-7").mkdir()
    (scratch.folder / "output").mkdir()
    scratch.claim()
    assert [path.name for path in (tmp_path / "deep/scratch").iterdir()] == ["output"], "not made by a Scratch"


def test_trees_go_whatever_their_modes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").touch()
    (tree / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    (tree / "a/b").chmod(0)
    (tree / "a").chmod(0o500)
    remove_tree(tree)
    assert not tree.exists()
    assert (tmp_path / "outside/kept").exists()
    remove_tree(tree)


async def test_a_cancelled_call_ends_first() -> None:
    started, release, ended = asyncio.Event(), threading.Event(), False
    loop = asyncio.get_running_loop()

    def work() -> None:
        nonlocal ended
        loop.call_soon_threadsafe(started.set)
        release.wait(10)
        ended = True

    task = asyncio.create_task(run_blocking(work))
    await started.wait()
    task.cancel()
    loop.call_later(0.01, release.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_errors_and_results_pass_through() -> None:
    assert await run_blocking(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run_blocking(divmod, 7, 0)


async def test_discarded_folders_are_out_of_the_way_at_once_and_gone_later(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, "action")
    for _ in range(5):
        folder = scratch.new("action")
        (folder / "sub").mkdir(mode=0)
        await scratch.discard(folder)
        assert not folder.exists()
    await scratch.settle(at_most=2)
    await scratch.settle()
    assert os.listdir(tmp_path) == []


async def test_what_cannot_be_removed_is_logged_and_tried_again_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    enter_namespace()
    scratch = Scratch(tmp_path, "action")
    folder = scratch.new("action")
    (folder / "busy").mkdir()
    mount("busy", folder / "busy", "tmpfs")
    await scratch.discard(folder)
    await scratch.settle()
    assert "scratch_not_removed" in caplog.text
    scratch.claim()
    assert os.listdir(tmp_path) == []
