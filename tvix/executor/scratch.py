"""A worker's scratch folder: one subfolder per action, all of it removable at any time. Blocking calls.

A killed predecessor leaves subfolders and, when it had no mount namespace of its own, mounts; `claim` clears
both. Does not know what the subfolders hold.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from tvix.executor.mounts import detach, mounts_below

logger = logging.getLogger(__name__)

_TRASH = "trash"
P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread and, when cancelled, let it end before the cancellation goes on.

    So that what comes after, removing a folder for instance, does not race with it.
    """
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        if not call.cancelled():
            call.exception()
        raise


class Scratch:
    """Hands out empty subfolders of `folder`; of each of `kinds`, one process at a time makes them."""

    def __init__(self, folder: Path, *kinds: str) -> None:
        self.folder = folder
        self._kinds = kinds
        self._numbers = itertools.count(1)
        self._removals: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Scratch {self.folder}>"

    def claim(self) -> None:
        """Make the folder and clear what a predecessor left: mounts first, since files lie beneath them.

        What is not named as `new` names things stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder = self.folder.resolve()
        self.folder.chmod(0o755)
        for leftover in self.folder.iterdir():
            if leftover.name.rpartition("-")[0] in (*self._kinds, _TRASH):
                for mountpoint in mounts_below(leftover):
                    detach(mountpoint)
                remove_tree(leftover)

    def new(self, kind: str) -> Path:
        """Return a new empty folder, named after `kind`, one of the kinds, and a number. All may enter it."""
        path = self.folder / f"{kind}-{next(self._numbers)}"
        path.mkdir()
        path.chmod(0o755)
        return path

    async def discard(self, path: Path, mountpoint: Path | None = None) -> None:
        """Unmount `mountpoint`, take the subfolder out of the way, and remove it later in a thread.

        Removing is a matter of many changes to the disk, for which no action should wait.
        """
        trash = self.folder / f"{_TRASH}-{next(self._numbers)}"
        await run_blocking(_set_aside, path, trash, mountpoint)
        task = asyncio.create_task(asyncio.to_thread(_remove_or_log, trash))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def settle(self, at_most: int = 0) -> None:
        """Wait until no more than that many removals are under way."""
        while len(self._removals) > at_most:
            await asyncio.wait(self._removals, return_when=asyncio.FIRST_COMPLETED)


def _set_aside(path: Path, trash: Path, mountpoint: Path | None) -> None:
    if mountpoint is not None:
        detach(mountpoint)
    path.rename(trash)


def _remove_or_log(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:
        logger.warning("scratch_not_removed path=%s error=%s", path, error)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all below it, also where an action took permissions away.

    Absence is fine. Raises OSError when something cannot be removed, a mount point for instance.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except PermissionError:
        _grant(path)
        shutil.rmtree(path)


def _grant(path: Path) -> None:
    # Top down: a folder must be readable before its children are seen.
    path.chmod(0o700)
    for parent, names, _ in os.walk(path):
        for name in names:
            child = Path(parent, name)
            if not child.is_symlink():
                child.chmod(0o700)
