"""Build roots that are mounted: an overlay per action over one FUSE mount that shows all input trees.

The mount is served by a process of its own (`fuse_process`), which this supervises: when it dies, the actions on its
mount fail as `Unavailable`, and later ones get a new process and mount point. Nothing is fetched before it is read,
and nothing is done here that grows with the tree.

    scratch/mount-N/            the mount of the Nth process; below it, one folder per root Directory
    scratch/action-N/root/      the overlay: what the action sees
    scratch/action-N/upper/     what it changed
    scratch/action-N/work/      overlayfs's own
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tvix.cas.digest import Digest
from tvix.errors import Unavailable
from tvix.executor.input_tree import DIRECTORY_MODE, tree_name
from tvix.executor.interfaces import BuildRoot, OpenRoot
from tvix.executor.mount_process import FuseConfig, MountProcess
from tvix.executor.mounts import mount_overlay
from tvix.executor.scratch import Scratch, run_blocking

logger = logging.getLogger(__name__)

_MAX_REMOVALS = 32
"""Folders of ended actions that may await their removal; an action that ends later waits."""


class FuseRoot(OpenRoot):
    """A mounted tree."""

    def __init__(self, folder: Path, mount: MountProcess, handle: int) -> None:
        self.path = folder / "root"
        self.upper = folder / "upper"
        """What the action changed: new and changed files whole, a character device 0/0 for each deletion."""
        self._mount = mount
        self._handle = handle

    def __repr__(self) -> str:
        return f"<FuseRoot {self.path}>"

    def missing(self) -> frozenset[Digest]:
        """Return every absent blob that the action tried to read so far."""
        return frozenset(self._mount.faults(self._handle).missing)

    def check(self) -> None:
        """Raise why inputs could not be read, other than by being absent.

        Unavailable if the mount died or the store failed, InvalidDirectory if a Directory is malformed.
        """
        error = self._mount.faults(self._handle).error
        if error is not None:
            raise error


class FuseBuildRoot(BuildRoot):
    """Mounts input trees below a scratch folder; clears it of a predecessor's mounts and folders first.

    Best used by a process that called `mounts.enter_private_namespace`: then its mounts end with it.
    """

    def __init__(self, scratch: Path, config: FuseConfig) -> None:
        self._scratch = Scratch(scratch, "mount", "action")
        self._config = config
        self._mount: MountProcess | None = None
        self._starting = asyncio.Lock()
        self._claimed = False

    def __repr__(self) -> str:
        return f"<FuseBuildRoot {self._scratch.folder} {self._mount}>"

    async def start(self) -> None:
        """Start the mount, which the first action would wait half a second for otherwise."""
        await self.mount()

    async def mount(self) -> MountProcess:
        """Return the mount, started if there is none alive. Raises Unavailable when it cannot be."""
        mount = self._mount
        if mount is not None and mount.alive:
            return mount
        async with self._starting:
            if self._mount is not None and self._mount.alive:
                return self._mount
            await self._retire()
            if not self._claimed:
                await run_blocking(self._scratch.claim)
                self._claimed = True
            self._mount = await MountProcess.start(self._scratch.new("mount"), self._config)
            return self._mount

    async def _retire(self) -> None:
        mount, self._mount = self._mount, None
        if mount is not None:
            logger.warning("mount_died mountpoint=%s pid=%s", mount.mountpoint, mount.pid)
            await mount.stop()

    @asynccontextmanager
    async def open(self, input_root: Digest) -> AsyncGenerator[FuseRoot, None]:
        """Mount the tree. Raises as `BuildRoot.open`, and Unavailable when the mount fails."""
        mount, handle = await self._open_tree(input_root)
        try:
            folder = self._scratch.new("action")
            try:
                await run_blocking(_prepare, folder, mount.mountpoint / tree_name(input_root))
                yield FuseRoot(folder, mount, handle)
            finally:
                await self._scratch.discard(folder, folder / "root")
                await self._scratch.settle(_MAX_REMOVALS)
        finally:
            mount.close_tree(handle)

    async def _open_tree(self, root: Digest) -> tuple[MountProcess, int]:
        mount = await self.mount()
        try:
            return mount, await mount.open_tree(root)
        except Unavailable:
            if mount.alive:
                raise
        # It died a moment ago.
        mount = await self.mount()
        return mount, await mount.open_tree(root)

    async def close(self) -> None:
        """Unmount everything and remove its folders."""
        async with self._starting:
            mount, self._mount = self._mount, None
            if mount is not None:
                await mount.stop()
            await self._scratch.settle()
            if self._claimed:
                await run_blocking(self._scratch.claim)


def _prepare(folder: Path, lower: Path) -> None:
    parts = [folder / name for name in ("root", "upper", "work")]
    for part in parts:
        part.mkdir()
    root, upper, work = parts
    upper.chmod(DIRECTORY_MODE)
    try:
        mount_overlay(lower, upper, work, root)
    except OSError as error:
        raise Unavailable(f"no build root: {error.strerror}") from error
