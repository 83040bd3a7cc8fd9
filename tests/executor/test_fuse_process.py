"""The process that serves the mount, on a real disk store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executor.mounting import enter_namespace
from tests.executor.trees import store_tree
from tvix.cas.disk import DiskBlobStore, DiskConfig
from tvix.errors import InvalidInput
from tvix.executor.fuse_process import open_store
from tvix.executor.fuse_root import FuseBuildRoot
from tvix.executor.mount_process import FuseConfig


@pytest.mark.parametrize("url", ["", "/folder", "file:", "s3://bucket", "file"])
async def test_stores_it_cannot_open_are_named(url: str) -> None:
    with pytest.raises(InvalidInput, match="file:///folder"):
        await open_store(url)


async def test_without_its_parent_it_ends(tmp_path: Path) -> None:
    arguments = ["--store", "x", "--mountpoint", str(tmp_path), "--control", "0", "--parent", "1"]
    program = "from tvix.executor.fuse_process import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    assert (await asyncio.to_thread(subprocess.run, command, timeout=60, check=False)).returncode == 0


async def test_a_tree_of_50000_files_in_1000_folders_is_shown_without_being_read(tmp_path: Path) -> None:
    enter_namespace()
    store = await DiskBlobStore.open(DiskConfig(path=tmp_path / "ca s"))
    folder = {f"f{k}": b"%d" % k for k in range(50)}
    root = await store_tree(store, {f"a{i}": {f"b{j}": folder for j in range(25)} for i in range(40)})
    roots = FuseBuildRoot(tmp_path / "scratch", FuseConfig((tmp_path / "ca s").as_uri(), start_seconds=60))

    def read(path: Path) -> list[bytes]:
        return [(path / f"a{number}/b{number}/f{number}").read_bytes() for number in range(20)]

    async with roots.open(root) as opened:
        assert await asyncio.to_thread(read, opened.path) == [b"%d" % number for number in range(20)]
        stats = await (await roots.mount()).stats()
        assert stats["requests"]["read"] == 20
        assert stats["nodes"] < 100
        late = await store_tree(store, {"late": b"written while mounted"})
        async with roots.open(late) as other:
            assert await asyncio.to_thread(os.listdir, other.path) == ["late"]
            assert await asyncio.to_thread((other.path / "late").read_bytes) == b"written while mounted"
    await roots.close()
    await store.close()
