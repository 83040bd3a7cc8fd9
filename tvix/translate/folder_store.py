"""The embedded store: a folder that holds what evaluation makes, before any server is asked.

Layout below `root`:
    <digits>-<name>              contents: a file, a link or a tree, as programs would see it below /nix/store
    .references/<digits>-<name>  paths that it refers to, one a line; absent when there are none, and for .drv
                                 files, whose text says it
    .tmp/                        what is being made; renamed into place when whole

An entry is whole or absent, also when the process dies; nothing is ever deleted here. Any number of processes may
use the folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tvix.nix.derivation import DRV_SUFFIX, parse_aterm


class FolderStore:
    """Names are base names of store paths."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._temporary = f"{self.root}/.tmp"
        self._references = f"{self.root}/.references"
        os.makedirs(self._temporary, exist_ok=True)
        os.makedirs(self._references, exist_ok=True)
        self._known = set(os.listdir(self.root))

    def __repr__(self) -> str:
        return f"<FolderStore {self.root}>"

    def has(self, name: str) -> bool:
        """Return whether an entry is there."""
        if name in self._known:
            return True
        if name.startswith(".") or not os.path.lexists(f"{self.root}/{name}"):
            return False
        self._known.add(name)
        return True

    def locate(self, name: str) -> str:
        """Return where an entry's contents are."""
        return f"{self.root}/{name}"

    def references(self, name: str) -> frozenset[str]:
        """Return the store paths that an entry refers to."""
        if name.endswith(DRV_SUFFIX):
            derivation = parse_aterm(Path(self.locate(name)).read_bytes(), name)
            return derivation.input_sources.union(derivation.input_derivations)
        try:
            return frozenset(Path(f"{self._references}/{name}").read_text().split())
        except FileNotFoundError:
            return frozenset()

    def add_file(self, name: str, contents: bytes, references: Iterable[str] = ()) -> None:
        """Put a file into the store, unless it is there."""
        if self.has(name):
            return
        self._write_references(name, references)
        self._write(f"{self.root}/{name}", contents)
        self._known.add(name)

    def new_temporary(self) -> str:
        """Return a new empty folder, on the store's file system, for `adopt` or for the caller to delete."""
        return tempfile.mkdtemp(dir=self._temporary)

    def adopt(self, name: str, temporary: str, references: Iterable[str] = ()) -> None:
        """Move what a caller made within a folder of `new_temporary` into the store; if it is there, leave it."""
        if self.has(name):
            return
        self._write_references(name, references)
        try:
            os.rename(temporary, f"{self.root}/{name}")
        except OSError:
            if not os.path.lexists(f"{self.root}/{name}"):  # else another process was first
                raise
        self._known.add(name)

    def discard(self, temporary: str) -> None:
        """Delete a folder of `new_temporary`."""
        shutil.rmtree(temporary, ignore_errors=True)

    def _write_references(self, name: str, references: Iterable[str]) -> None:
        listed = sorted(references)
        if listed and not name.endswith(DRV_SUFFIX):
            self._write(f"{self._references}/{name}", "".join(f"{path}\n" for path in listed).encode())

    def _write(self, target: str, contents: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._temporary)
        try:
            _write_all(handle, contents)
            os.fchmod(handle, 0o444)
        finally:
            os.close(handle)
        os.rename(temporary, target)


def _write_all(handle: int, contents: bytes) -> None:
    view = memoryview(contents)
    while view:
        view = view[os.write(handle, view) :]
