"""The evaluator's only door: everything that it can touch outside itself.

Synchronous, because evaluation is. Implementations: `FileSystem` here (files and environment, no store);
the coordinator's, which also stores, fetches and builds, lives with the coordinator.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as OsPath
from typing import TYPE_CHECKING, Literal, Protocol

from tvix.eval.errors import EvalError

if TYPE_CHECKING:
    from tvix.nix.derivation import Derivation
    from tvix.nix.hashes import Hash

FileType = Literal["regular", "directory", "symlink", "unknown"]


@dataclass(frozen=True, slots=True)
class GitRequest:
    """A state of a Git repository. Without `ref` and `rev`: HEAD, or the work tree with its changes if the URL
    names one on this machine.
    """

    url: str
    ref: str = ""
    rev: str = ""
    submodules: bool = False
    shallow: bool = False
    all_refs: bool = False


@dataclass(frozen=True, slots=True)
class FetchedTree:
    """A tree on this machine, and what is known of where it came from."""

    path: str
    last_modified: int
    """Seconds since 1970."""
    rev: str = ""
    """Commit, 40 hex digits; empty for a work tree with changes."""
    rev_count: int | None = None
    """Commits up to this one; None when the history is not here."""
    keep: Callable[[str, FileType], bool] | None = None
    """What of the tree belongs to it; all if None."""


Filter = Callable[[str, FileType], bool]
"""Whether to keep a path (absolute) of a type, when a tree is copied to the store."""


class EvalIO(Protocol):
    """What an evaluator may ask for. Paths are absolute text; failures are EvalErrors that name them."""

    def read_file(self, path: str) -> bytes:
        """Return a file's contents."""

    def file_type(self, path: str) -> FileType | None:
        """Return the type of what is at a path, not following a final symlink; None if nothing is."""

    def read_dir(self, path: str) -> Mapping[str, FileType]:
        """Return the entries of a directory."""

    def resolve(self, path: str) -> str:
        """Return the path with all symlinks followed."""

    def import_path(
        self, name: str, path: str, keep: Filter | None, *, recursive: bool = True, expected: Hash | None = None
    ) -> str:
        """Copy a file or tree to the store, if it is not there; return its store path."""

    def add_text(self, name: str, contents: bytes, references: Iterable[str]) -> str:
        """Put a text file into the store; return its path."""

    def add_derivation(self, path: str, derivation: Derivation, contents: bytes) -> None:
        """Put a derivation into the store, at the path of its .drv file, which has these contents."""

    def references(self, path: str) -> Iterable[str]:
        """Return the store paths that a store path refers to; itself only if it does."""

    def nar_hash(self, path: str) -> Hash:
        """Return the SHA-256 of a store path's NAR."""

    def fetch_file(self, url: str) -> str:
        """Return the path on this machine of what is at a URL."""

    def fetch_archive(self, url: str) -> FetchedTree:
        """Return what the archive (tar, zip) at a URL holds: the contents of its one top folder."""

    def fetch_git(self, request: GitRequest) -> FetchedTree:
        """Return a tree of a Git repository."""

    def fetch_path(self, path: str) -> FetchedTree:
        """Return the tree at a path, which was last modified when the newest thing in it was."""

    def realise(self, paths: Mapping[str, frozenset[str]]) -> None:
        """Have store paths at hand: for a .drv path the named outputs are built, other paths fetched."""

    def get_env(self, name: str) -> str:
        """Return an environment variable, empty if unset."""


def type_of_mode(mode: int) -> FileType:
    """Return the type that a file's mode tells."""
    if stat.S_ISREG(mode):
        return "regular"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "unknown"


class FileSystem:
    """The machine's files and environment, for an evaluator without a store."""

    def __repr__(self) -> str:
        return "<FileSystem>"

    def read_file(self, path: str) -> bytes:
        try:
            return OsPath(path).read_bytes()
        except OSError as error:
            raise EvalError(f"opening file '{path}': {error.strerror}") from error

    def file_type(self, path: str) -> FileType | None:
        try:
            return type_of_mode(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise EvalError(f"getting status of '{path}': {error.strerror}") from error

    def read_dir(self, path: str) -> Mapping[str, FileType]:
        try:
            with os.scandir(path) as entries:
                return {entry.name: _type_of_entry(entry) for entry in entries}
        except OSError as error:
            raise EvalError(f"reading directory '{path}': {error.strerror}") from error

    def resolve(self, path: str) -> str:
        return os.path.realpath(path)

    def import_path(
        self, name: str, path: str, keep: Filter | None, *, recursive: bool = True, expected: Hash | None = None
    ) -> str:
        raise EvalError(f"cannot copy '{path}' to the store: this evaluation has none")

    def add_text(self, name: str, contents: bytes, references: Iterable[str]) -> str:
        raise EvalError(f"cannot write '{name}' to the store: this evaluation has none")

    def add_derivation(self, path: str, derivation: Derivation, contents: bytes) -> None:
        """Drop the derivation: its paths are known all the same."""

    def references(self, path: str) -> Iterable[str]:
        raise EvalError(f"cannot ask what '{path}' refers to: this evaluation has no store")

    def nar_hash(self, path: str) -> Hash:
        raise EvalError(f"cannot hash '{path}': this evaluation has no store")

    def fetch_file(self, url: str) -> str:
        raise EvalError(f"cannot fetch '{url}': this evaluation has no store")

    def fetch_archive(self, url: str) -> FetchedTree:
        raise EvalError(f"cannot fetch '{url}': this evaluation has no store")

    def fetch_git(self, request: GitRequest) -> FetchedTree:
        raise EvalError(f"cannot fetch '{request.url}': this evaluation has no store")

    def fetch_path(self, path: str) -> FetchedTree:
        raise EvalError(f"cannot fetch '{path}': this evaluation has no store")

    def realise(self, paths: Mapping[str, frozenset[str]]) -> None:
        if paths:
            raise EvalError(f"cannot build '{min(paths)}' during evaluation: this evaluation has no store")

    def get_env(self, name: str) -> str:
        return os.environ.get(name, "")


def _type_of_entry(entry: os.DirEntry[str]) -> FileType:
    if entry.is_symlink():
        return "symlink"
    if entry.is_file(follow_symlinks=False):
        return "regular"
    return "directory" if entry.is_dir(follow_symlinks=False) else "unknown"
