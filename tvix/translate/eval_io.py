"""The evaluator's door onto a store: files of the machine, and of store paths wherever they really are.

Store paths are virtual: what evaluation puts into the store is in the embedded store's folder and is read from
there; paths that are not in it are looked for on the machine itself, so that a real /nix/store works as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tvix.errors import InvalidInput
from tvix.eval.errors import EvalError
from tvix.eval.io import FetchedTree, FileSystem, FileType, Filter, GitRequest
from tvix.nix.derivation import DRV_SUFFIX, Derivation, parse_aterm
from tvix.nix.hashes import Hash, hash_of
from tvix.nix.store_path import STORE_DIR, StorePath, fixed_path, parse_store_path, split_store_path, text_path
from tvix.translate.folder_store import FolderStore
from tvix.translate.source_tree import copy_tree, hash_file, hash_tree, newest, plan_tree

if TYPE_CHECKING:
    from tvix.translate.fetch import Fetcher

Build = Callable[[str, frozenset[str]], None]
"""Makes outputs of the derivation at a path appear in the store, or raises EvalError."""

T = TypeVar("T")
_MAX_LINKS = 40


class StoreIO:
    """EvalIO over an embedded store. `build` is asked for outputs that are in no store; without it, and without
    `make_fetcher`, what needs them fails.
    """

    def __init__(
        self,
        store: FolderStore,
        store_dir: str = STORE_DIR,
        *,
        build: Build | None = None,
        make_fetcher: Callable[[], Fetcher] | None = None,
    ) -> None:
        self.store = store
        self._files = FileSystem()
        self._store_dir = store_dir
        self._prefix = f"{store_dir}/"
        self._build = build
        self._make_fetcher = make_fetcher
        self._fetcher: Fetcher | None = None
        self._resolved: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<StoreIO {self.store!r}>"

    # Reading.

    def real_path(self, path: str) -> str:
        """Return where on the machine the contents of a path are."""
        if not path.startswith(self._prefix):
            return path
        name, slash, rest = path[len(self._prefix) :].partition("/")
        return f"{self.store.locate(name)}{slash}{rest}" if self.store.has(name) else path

    def read_file(self, path: str) -> bytes:
        return self._reading(path, self._files.read_file)

    def file_type(self, path: str) -> FileType | None:
        return self._files.file_type(self._real_parent(path))

    def read_dir(self, path: str) -> Mapping[str, FileType]:
        return self._reading(path, self._files.read_dir)

    def _reading(self, path: str, read: Callable[[str], T]) -> T:
        """Read at the real path; if that fails, once more with links between store paths followed."""
        real = self.real_path(path)
        try:
            return read(real)
        except EvalError as error:
            if real == path:
                raise
            again = self.real_path(self.resolve(path))
            if again == real:
                raise EvalError(error.message.replace(real, path)) from error
        return read(again)

    def _real_parent(self, path: str) -> str:
        """Return the real path, links followed but for the last component."""
        real = self.real_path(path)
        if real == path or os.path.lexists(real):
            return real
        parent, _, name = path.rpartition("/")
        return self.real_path(f"{self.resolve(parent)}/{name}") if parent.startswith(self._prefix) else real

    def resolve(self, path: str) -> str:
        found = os.path.realpath(path) if self.real_path(path) == path else path
        if not found.startswith(self._prefix):
            return found
        kept = self._resolved.get(found)
        if kept is None:
            kept = self._resolve_in_store(found, _MAX_LINKS)
            if self.real_path(kept) != kept:  # it is there, so it will not change
                self._resolved[found] = kept
        return kept

    def _resolve_in_store(self, path: str, links_left: int) -> str:
        name, *components = path[len(self._prefix) :].split("/")
        current = f"{self._prefix}{name}"
        for index in range(-1, len(components)):
            if index >= 0:
                current = os.path.normpath(f"{current}/{components[index]}")
            real = self.real_path(current)
            if not os.path.islink(real):
                continue
            if not links_left:
                raise EvalError(f"too many symbolic links in '{path}'")
            target = os.path.join(os.path.dirname(current), os.readlink(real), *components[index + 1 :])
            target = os.path.normpath(target)
            if target.startswith(self._prefix):
                return self._resolve_in_store(target, links_left - 1)
            return os.path.realpath(target)
        return current

    def get_env(self, name: str) -> str:
        return self._files.get_env(name)

    # Writing.

    def import_path(
        self, name: str, path: str, keep: Filter | None, *, recursive: bool = True, expected: Hash | None = None
    ) -> str:
        try:
            return self._import(name, path, keep, recursive, expected)
        except OSError as error:
            raise EvalError(f"getting status of '{path}': {error.strerror}") from error
        except EvalError:
            raise
        except InvalidInput as error:
            raise EvalError(f"{error}, while copying '{path}' to the store") from error

    def _import(self, name: str, path: str, keep: Filter | None, recursive: bool, expected: Hash | None) -> str:
        if expected is not None:
            promised = fixed_path(name, expected, recursive=recursive, store_dir=self._store_dir)
            if self.store.has(promised.base_name):
                return promised.absolute(self._store_dir)
        found = self._import_tree(name, path, keep) if recursive else self._import_file(name, self.real_path(path))
        if expected is not None and found != promised:
            raise EvalError(
                f"store path mismatch in (possibly filtered) path added from '{path}': "
                f"expected {promised.absolute(self._store_dir)}, got {found.absolute(self._store_dir)}"
            )
        return found.absolute(self._store_dir)

    def _inherited_references(self, path: str) -> frozenset[str]:
        """Of what is copied out of a store path: those of the whole."""
        if not path.startswith(self._prefix):
            return frozenset()
        try:
            whole, _ = split_store_path(path, self._store_dir)
        except InvalidInput:
            return frozenset()
        return frozenset(self.references(whole.absolute(self._store_dir)))

    def _tree_path(self, name: str, content_hash: Hash, references: frozenset[str]) -> StorePath:
        parsed = [parse_store_path(path, self._store_dir) for path in references]
        return fixed_path(name, content_hash, recursive=True, references=parsed, store_dir=self._store_dir)

    def _import_tree(self, name: str, path: str, keep: Filter | None) -> StorePath:
        references = self._inherited_references(path)
        planned = plan_tree(self.real_path(path), path, keep)
        store_path = self._tree_path(name, hash_tree(planned), references)
        if self.store.has(store_path.base_name):
            return store_path
        temporary = self.store.new_temporary()
        try:
            copy = f"{temporary}/copy"
            store_path = self._tree_path(name, copy_tree(planned, copy), references)
            self.store.adopt(store_path.base_name, copy, references)
        finally:
            self.store.discard(temporary)
        return store_path

    def _import_file(self, name: str, real: str) -> StorePath:
        if self._files.file_type(real) not in ("regular", "symlink"):
            raise EvalError(f"'{real}' is not a file, but only files can be added without recursion")
        store_path = fixed_path(name, hash_file(real), recursive=False, store_dir=self._store_dir)
        if not self.store.has(store_path.base_name):
            contents = Path(real).read_bytes()
            store_path = fixed_path(name, hash_of(contents), recursive=False, store_dir=self._store_dir)
            self.store.add_file(store_path.base_name, contents)
        return store_path

    def add_text(self, name: str, contents: bytes, references: Iterable[str]) -> str:
        listed = list(references)
        try:
            parsed = [parse_store_path(path, self._store_dir) for path in listed]
            path = text_path(name, contents, parsed, self._store_dir)
        except InvalidInput as error:
            raise EvalError(str(error)) from error
        self.store.add_file(path.base_name, contents, listed)
        return path.absolute(self._store_dir)

    def add_derivation(self, path: str, derivation: Derivation, contents: bytes) -> None:
        self.store.add_file(path[len(self._prefix) :], contents)

    def references(self, path: str) -> frozenset[str]:
        name = path[len(self._prefix) :]
        return self.store.references(name) if self.store.has(name) else frozenset()

    def nar_hash(self, path: str) -> Hash:
        return hash_tree(plan_tree(self.real_path(path), path, None))

    # Fetching.

    def fetch_file(self, url: str) -> str:
        return self._fetching(url).file(url)

    def fetch_archive(self, url: str) -> FetchedTree:
        return self._fetching(url).archive(url)

    def fetch_git(self, request: GitRequest) -> FetchedTree:
        from tvix.translate.fetch_git import GitFetcher

        fetcher = self._fetching(request.url)
        return GitFetcher(fetcher.cache, fetcher.log).fetch(replace(request, url=fetcher.mirrored(request.url)))

    def fetch_path(self, path: str) -> FetchedTree:
        try:
            return FetchedTree(path, newest(self.real_path(path)))
        except OSError as error:
            raise EvalError(f"getting status of '{path}': {error.strerror}") from error

    def _fetching(self, url: str) -> Fetcher:
        if self._make_fetcher is None:
            raise EvalError(f"cannot fetch '{url}': this evaluation may not fetch")
        if self._fetcher is None:
            self._fetcher = self._make_fetcher()
        return self._fetcher

    # Import from derivation.

    def realise(self, paths: Mapping[str, frozenset[str]]) -> None:
        for path in sorted(paths):
            if not self._is_there(path):
                raise EvalError(f"path '{path}' is not in the store")
            outputs = paths[path]
            if outputs and not self._has_outputs(path, outputs):
                self._make(path, outputs)

    def _is_there(self, path: str) -> bool:
        return os.path.lexists(self.real_path(path))

    def _has_outputs(self, drv_path: str, names: frozenset[str]) -> bool:
        outputs = parse_aterm(self.read_file(drv_path), drv_path).outputs
        unknown = names - outputs.keys()
        if unknown:
            raise EvalError(f"derivation '{drv_path}' does not have an output '{min(unknown)}'")
        return all(outputs[name].path and self._is_there(outputs[name].path) for name in names)

    def _make(self, drv_path: str, outputs: frozenset[str]) -> None:
        if self._build is None:
            name = drv_path[len(self._prefix) + 33 : -len(DRV_SUFFIX)]
            raise EvalError(
                f"cannot build '{drv_path}' during evaluation: '{name}' is imported from, and nothing here builds"
            )
        self._build(drv_path, outputs)
