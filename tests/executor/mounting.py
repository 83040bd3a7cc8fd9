"""What tests with real mounts need: a private mount namespace, a store two processes share, a build root."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.executor.folder_store import FolderStore
from tvix.errors import FailedPrecondition
from tvix.executor.fuse_root import FuseBuildRoot
from tvix.executor.mount_process import FuseConfig
from tvix.executor.mounts import enter_private_namespace

COMMAND = (sys.executable, "-m", "tests.executor.folder_store")

_entered = False


def enter_namespace() -> None:
    """Keep this test process's mounts to itself; skip the test where that cannot be."""
    global _entered
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    if not _entered:
        try:
            enter_private_namespace()
        except (FailedPrecondition, AssertionError) as error:
            pytest.skip(str(error))
        _entered = True


def make_store(folder: Path) -> FolderStore:
    """Return a store in a new folder below `folder`."""
    (folder / "store").mkdir()
    return FolderStore(folder / "store")


@asynccontextmanager
async def build_root(folder: Path) -> AsyncGenerator[FuseBuildRoot, None]:
    """A build root on the store that `make_store(folder)` made."""
    roots = FuseBuildRoot(folder / "scratch", FuseConfig(str(folder / "store"), COMMAND, start_seconds=60))
    try:
        yield roots
    finally:
        await roots.close()
