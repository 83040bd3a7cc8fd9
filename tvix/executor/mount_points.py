"""The folders of an input root on which a sandbox mounts /dev, /proc and /tmp."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from tvix.errors import FailedPrecondition


@contextlib.contextmanager
def mount_points(root: Path) -> Iterator[None]:
    """Provide dev, proc and tmp in an input root; those that were not there are gone afterwards,
    so that they are not taken for outputs."""
    made = []
    for name in ("dev", "proc", "tmp"):
        path = root / name
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            _make(path)
            made.append(path)
        else:
            if not stat.S_ISDIR(mode):
                raise FailedPrecondition(f"input root: {name!r} is not a directory; it must be one to be mounted on")
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _make(path: Path) -> None:
    try:
        path.mkdir()
    except OSError as error:
        reason = f"input root: {path.name!r} is not there and cannot be made: {error.strerror}"
        raise FailedPrecondition(reason) from error
