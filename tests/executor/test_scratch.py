"""The worker's scratch folder."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

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
