"""The worker's side of the mount: starting, talking, noticing the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.executor.mounting import COMMAND, enter_namespace, make_store
from tests.executor.trees import store_tree
from tvix.cas.digest import digest_of
from tvix.errors import BlobNotFound, InvalidDirectory, MissingBlobs, TvixError, Unavailable
from tvix.executor.fuse_process import error_to_json
from tvix.executor.mount_process import FuseConfig, MountProcess, error_from_json
from tvix.executor.mounts import mounts_below


def descriptors() -> set[str]:
    """Return the open file descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MissingBlobs([digest_of(b"a"), digest_of(b"b")]), MissingBlobs, "2 blob"),
        (BlobNotFound(digest_of(b"a")), MissingBlobs, digest_of(b"a").hash),
        (InvalidDirectory("directory x: bad"), InvalidDirectory, "directory x: bad"),
        (Unavailable("later"), Unavailable, "later"),
        (ZeroDivisionError(), Unavailable, "ZeroDivisionError"),
    ],
)
def test_errors_survive_the_way(error: Exception, kind: type[TvixError], text: str) -> None:
    back = error_from_json(error_to_json(error))
    assert type(back) is kind
    assert text in str(back)


async def test_a_process_that_ends_at_once_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    before = descriptors()
    config = FuseConfig("unused", (sys.executable, "-c", "pass"))
    with pytest.raises(Unavailable, match="died"):
        await MountProcess.start(tmp_path / "mount", config)
    assert descriptors() <= before
    assert not (tmp_path / "mount").exists()


async def test_a_process_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    config = FuseConfig("unused", (sys.executable, "-c", "import time; time.sleep(60)"), start_seconds=0.05)
    with pytest.raises(Unavailable, match=r"not ready in 0\.05 s"):
        await MountProcess.start(tmp_path / "mount", config)


async def test_a_process_that_cannot_open_its_store_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    with pytest.raises(Unavailable):
        await MountProcess.start(tmp_path / "mount", FuseConfig("nonsense://x"))
    assert mounts_below(tmp_path) == []


async def test_uses_are_counted_and_calls_after_the_end_fail(tmp_path: Path) -> None:
    enter_namespace()
    store = make_store(tmp_path)
    root = await store_tree(store, {"f": b"file"})
    (tmp_path / "mount").mkdir()
    mount = await MountProcess.start(tmp_path / "mount", FuseConfig(str(store.folder), COMMAND))
    first, second = await asyncio.gather(mount.open_tree(root), mount.open_tree(root))
    assert first != second
    assert (await mount.stats())["open_trees"] == 2
    mount.close_tree(first)
    assert (await mount.stats())["open_trees"] == 1
    assert (mount.faults(second).missing, mount.faults(second).error) == (set(), None)
    await mount.stop()
    with pytest.raises(Unavailable):
        await mount.open_tree(root)
    assert "died" in str(mount.faults(second).error)
    mount.close_tree(second)
    await mount.stop()
    assert mounts_below(tmp_path) == []


async def test_a_process_that_hangs_is_killed_so_that_its_readers_are_let_go(tmp_path: Path) -> None:
    enter_namespace()
    store = make_store(tmp_path)
    root = await store_tree(store, {"f": b"file"})
    (tmp_path / "mount").mkdir()
    config = FuseConfig(str(store.folder), COMMAND, answer_seconds=0.2)
    mount = await MountProcess.start(tmp_path / "mount", config)
    os.kill(mount.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match="does not answer"):
        await mount.open_tree(root)
    await mount.wait_dead()
    assert not mount.alive
    await mount.stop()
