"""Paths below a directory that somebody hostile has filled. Nothing here ever leads out of it.

Symlinks in the middle of a path are followed by the kernel as if the directory were `/`
(`openat2` with RESOLVE_IN_ROOT), so neither `..` nor absolute targets escape; the last one is never
followed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_OPENAT2 = 437
"""The same on every architecture."""
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_below(root: int, path: str, flags: int) -> int:
    """Open `path` below the directory descriptor `root`, symlinks resolved inside it; raises OSError."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    while True:
        descriptor: int = _libc.syscall(_OPENAT2, root, os.fsencode(path or "."), how, len(how))
        if descriptor >= 0:
            return descriptor
        error = ctypes.get_errno()
        if error not in (4, 11):  # EINTR; EAGAIN when a rename raced with `..`
            raise OSError(error, os.strerror(error), path)


@contextlib.contextmanager
def opened_directory(root: int, path: str) -> Iterator[int]:
    """Open a directory below `root`, itself followed if it is a symlink; raises OSError."""
    descriptor = open_below(root, path, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_root(path: Path) -> Iterator[int]:
    """Open the directory below which the other functions work."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def make_directories(root: int, path: str) -> None:
    """Create `path` and what is above it, as far as they are not there; raises OSError."""
    try:
        os.close(open_below(root, path, _DIRECTORY))
        return
    except FileNotFoundError:
        pass
    parent, _, name = path.rpartition("/")
    make_directories(root, parent)
    with opened_directory(root, parent) as directory, contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o777, dir_fd=directory)
    os.close(open_below(root, path, _DIRECTORY))
