"""Builtins that fetch: files, archives, Git repositories. Hashes given are checked here; EvalIO does the fetching."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import parse_qsl, unquote

from tvix.errors import InvalidInput
from tvix.eval.builtins.derivation import hash_or_placeholder
from tvix.eval.builtins.expect import expect_bool, expect_int, expect_text
from tvix.eval.builtins.paths import store_string
from tvix.eval.builtins.registry import Registry
from tvix.eval.errors import EvalError
from tvix.eval.io import FetchedTree, GitRequest
from tvix.eval.strings import without_context
from tvix.eval.values import Attrs, Path, Value, force
from tvix.nix.hashes import Hash, hash_of
from tvix.nix.store_path import fixed_path

_NO_REV = "0" * 40
_ARCHIVE = re.compile(r"\.(tar|tgz|zip|tar\.(gz|bz2|xz|zst)|tbz2|txz)$")
_SCHEMES = {"http", "https", "file"}
_BOOLEANS = {"submodules", "shallow", "allRefs", "exportIgnore", "lfs", "verifyCommit"}


@dataclass(frozen=True, slots=True)
class _Download:
    """What fetchurl and fetchTarball were told."""

    url: str
    name: str
    expected: Hash | None


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    fetchers = _Fetchers(registry)
    registry.add("fetchurl", "s", fetchers.fetch_url)
    registry.add("fetchTarball", "s", fetchers.fetch_tarball)
    registry.add("fetchGit", "s", fetchers.fetch_git)
    registry.add("fetchTree", "s", fetchers.fetch_tree)
    registry.add("fetchMercurial", "s", _no_mercurial)


class _Fetchers:
    def __init__(self, registry: Registry) -> None:
        self.evaluator = registry.evaluator
        self.io = registry.evaluator.io
        self.settings = registry.evaluator.settings

    # Files and archives.

    def fetch_url(self, argument: Value) -> Value:
        """builtins.fetchurl: a file in the store."""
        wanted = self._download(argument, "fetchurl", "")
        found = self._present(wanted, recursive=False)
        if found is None:
            local = self.io.fetch_file(wanted.url)
            found = self.io.import_path(wanted.name, local, None, recursive=False)
            if wanted.expected is not None:
                self._check(wanted.url, wanted.expected, hash_of(self.io.read_file(found)))
        return store_string(found)

    def fetch_tarball(self, argument: Value) -> Value:
        """builtins.fetchTarball: the contents of an archive in the store."""
        wanted = self._download(argument, "fetchTarball", "source")
        found = self._present(wanted, recursive=True)
        if found is None:
            found = self.io.import_path(wanted.name, self.io.fetch_archive(wanted.url).path, None)
            if wanted.expected is not None:
                self._check(wanted.url, wanted.expected, self.io.nar_hash(found))
        return store_string(found)

    def _download(self, argument: Value, what: str, default_name: str) -> _Download:
        url, name, expected = "", default_name, None
        if argument.__class__ is Attrs:
            for key in sorted(argument):
                text = _text(force(argument[key]), f"'{key}' of builtins.{what}")
                if key == "url":
                    url = text
                elif key == "sha256":
                    expected = self._hash(text, what)
                elif key == "name":
                    name = text
                else:
                    raise EvalError(f"unsupported argument '{key}' to builtins.{what}")
            if not url:
                raise EvalError(f"'url' argument required, in builtins.{what}")
        else:
            url = _text(argument, f"builtins.{what}")
        if url.startswith("channel:"):
            url = f"https://nixos.org/channels/{url[8:]}/nixexprs.tar.xz"
        if self.settings.pure and expected is None:
            raise EvalError(f"in pure evaluation mode, builtins.{what} requires a 'sha256' argument")
        return _Download(url, name or url.rpartition("/")[2], expected)

    def _hash(self, text: str, what: str) -> Hash:
        try:
            return hash_or_placeholder(text, "sha256", self.settings.log)
        except InvalidInput as error:
            raise EvalError(f"{error}, in builtins.{what}") from error

    def _present(self, wanted: _Download, *, recursive: bool) -> str | None:
        """Return the store path that the hash promises, if it is there already."""
        return None if wanted.expected is None else self._promised(wanted.name, wanted.expected, recursive)

    def _promised(self, name: str, expected: Hash, recursive: bool) -> str | None:
        store_dir = self.settings.store_dir
        try:
            path = fixed_path(name, expected, recursive=recursive, store_dir=store_dir).absolute(store_dir)
        except InvalidInput as error:
            raise EvalError(str(error)) from error
        return path if self.io.file_type(path) is not None else None

    def _check(self, url: str, expected: Hash, found: Hash) -> None:
        if found != expected:
            raise EvalError(
                f"hash mismatch in file downloaded from '{url}':\n  specified: {expected.sri}\n  got:       {found.sri}"
            )

    # Git.

    def fetch_git(self, argument: Value) -> Value:
        """builtins.fetchGit: a state of a Git repository in the store, and its commit."""
        given: dict[str, Value] = {}
        if argument.__class__ is Attrs:
            given = {name: force(argument[name]) for name in sorted(argument)}
        else:
            given["url"] = argument
        name = str(_text(given.pop("name", "source"), "'name' of builtins.fetchGit"))
        expected = _optional_hash(given)
        request = self._git_request(given, "builtins.fetchGit")
        if self.settings.pure and not request.rev:
            raise EvalError("in pure evaluation mode, builtins.fetchGit requires a 'rev' argument")
        tree = self.io.fetch_git(request)
        result = self._tree(name, tree, expected, request.url)
        rev = tree.rev or _NO_REV
        result.update(rev=rev, shortRev=rev[:7], revCount=tree.rev_count or 0, submodules=request.submodules)
        return result

    def _git_request(self, given: Mapping[str, Value], what: str) -> GitRequest:
        texts, flags = {"url": "", "ref": "", "rev": ""}, dict.fromkeys(_BOOLEANS, False)
        for key, value in given.items():
            if key == "url":
                texts[key] = self._git_url(value, what)
            elif key in texts:
                texts[key] = _text(value, f"'{key}' of {what}")
            elif key in _BOOLEANS:
                flags[key] = expect_bool(value, f"'{key}' of {what}")
            elif key not in ("type", "lastModified", "revCount", "lastModifiedDate", "shortRev", "narHash"):
                raise EvalError(f"unsupported argument '{key}' to {what}")
        if not texts["url"]:
            raise EvalError(f"'url' argument required, in {what}")
        if texts["rev"] and not re.fullmatch("[0-9a-f]{40}", texts["rev"]):
            raise EvalError(f"'rev' must be a commit of 40 hex digits, not '{texts['rev']}', in {what}")
        return GitRequest(**texts, submodules=flags["submodules"], shallow=flags["shallow"], all_refs=flags["allRefs"])

    def _git_url(self, value: Value, what: str) -> str:
        if value.__class__ is Path:
            return str(value.text)
        text = self.evaluator.strings.coerce(value, copy=False)
        return str(without_context(text, f"as 'url' of {what}"))

    # Trees.

    def fetch_tree(self, argument: Value) -> Value:
        """builtins.fetchTree: a tree in the store, described by a set or a URL."""
        if argument.__class__ is Attrs:
            given = {name: force(argument[name]) for name in sorted(argument)}
        else:
            given = _parse_tree_url(str(without_context(expect_text(argument, "builtins.fetchTree"), "as a URL")))
        kind = _text(given.get("type"), "'type' of builtins.fetchTree") if "type" in given else ""
        if not kind:
            raise EvalError("attribute 'type' is missing in call to builtins.fetchTree")
        expected = _optional_hash(given)
        if self.settings.pure and expected is None and "rev" not in given:
            raise EvalError("in pure evaluation mode, builtins.fetchTree requires a locked input: 'narHash' or 'rev'")
        if kind == "git":
            return self._git_tree(given, expected)
        if kind == "path":
            return self._path_tree(given, expected)
        url = _text(given.get("url"), "'url' of builtins.fetchTree")
        if kind == "tarball":
            found = self._locked(given, expected)
            return found or self._tree("source", self.io.fetch_archive(url), expected, url)
        if kind == "file":
            return self._file_tree(url, expected)
        raise EvalError(f"input type '{kind}' is not supported by builtins.fetchTree: file, git, path and tarball are")

    def _git_tree(self, given: Mapping[str, Value], expected: Hash | None) -> Attrs:
        request = self._git_request(given, "builtins.fetchTree")
        tree = self.io.fetch_git(request)
        result = self._tree("source", tree, expected, request.url)
        result["submodules"] = request.submodules
        if tree.rev:
            result.update(rev=tree.rev, shortRev=tree.rev[:7])
        if tree.rev_count is not None:
            result["revCount"] = tree.rev_count
        return result

    def _path_tree(self, given: Mapping[str, Value], expected: Hash | None) -> Attrs:
        value = given.get("path")
        path = value.text if value.__class__ is Path else _text(value, "'path' of builtins.fetchTree")
        if not path.startswith("/"):
            raise EvalError(f"'path' must be absolute, not '{path}', in builtins.fetchTree")
        tree = self.io.fetch_path(path)
        if "lastModified" in given:
            seconds = expect_int(given["lastModified"], "'lastModified' of builtins.fetchTree")
            tree = replace(tree, last_modified=seconds)
        result = self._tree("source", tree, expected, path)
        if "rev" in given:
            rev = _text(given["rev"], "'rev' of builtins.fetchTree")
            result.update(rev=rev, shortRev=rev[:7])
        if "revCount" in given:
            result["revCount"] = expect_int(given["revCount"], "'revCount' of builtins.fetchTree")
        return result

    def _file_tree(self, url: str, expected: Hash | None) -> Attrs:
        found = self.io.import_path("source", self.io.fetch_file(url), None)
        return self._described(found, expected, url)

    def _locked(self, given: Mapping[str, Value], expected: Hash | None) -> Attrs | None:
        """Return what a hash promises, if it is in the store and its time is told."""
        if expected is None or "lastModified" not in given:
            return None
        path = self._promised("source", expected, True)
        if path is None:
            return None
        result = Attrs(outPath=store_string(path), narHash=expected.sri)
        return _with_time(result, expect_int(given["lastModified"], "'lastModified' of builtins.fetchTree"))

    def _tree(self, name: str, tree: FetchedTree, expected: Hash | None, url: str) -> Attrs:
        store_path = self.io.import_path(name, tree.path, tree.keep)
        return _with_time(self._described(store_path, expected, url), tree.last_modified)

    def _described(self, store_path: str, expected: Hash | None, url: str) -> Attrs:
        nar_hash = self.io.nar_hash(store_path)
        if expected is not None and nar_hash != expected:
            raise EvalError(
                f"NAR hash mismatch in input '{url}':\n  specified: {expected.sri}\n  got:       {nar_hash.sri}"
            )
        return Attrs(outPath=store_string(store_path), narHash=nar_hash.sri)


def _with_time(result: Attrs, seconds: int) -> Attrs:
    result["lastModified"] = seconds
    result["lastModifiedDate"] = time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))
    return result


def _optional_hash(given: Mapping[str, Value]) -> Hash | None:
    text = given.get("narHash")
    if text is None:
        return None
    try:
        return hash_or_placeholder(_text(text, "'narHash'"), "sha256", lambda warning: None)
    except InvalidInput as error:
        raise EvalError(str(error)) from error


def _parse_tree_url(url: str) -> dict[str, Value]:
    """Return the attributes that a URL such as `git+https://host/x?ref=main` stands for."""
    base, _, query = url.partition("?")
    scheme, colon, rest = base.partition(":")
    options: dict[str, Value] = dict(parse_qsl(query))
    for name in _BOOLEANS & options.keys():
        options[name] = options[name] in ("1", "true")
    for name in ("lastModified", "revCount"):
        if name in options:
            options[name] = int(options[name]) if options[name].isdecimal() else options[name]
    application, plus, transport = scheme.partition("+")
    if base.startswith("/") or scheme == "path":
        return {"type": "path", "path": unquote(base if base.startswith("/") else rest), **options}
    if scheme == "git" or (plus and application == "git"):
        return {"type": "git", "url": f"{transport or 'git'}:{rest}", **options}
    if plus and application in ("tarball", "file") and transport in _SCHEMES:
        return {"type": application, "url": f"{transport}:{rest}", **options}
    if colon and scheme in _SCHEMES:
        kind = "tarball" if _ARCHIVE.search(rest) else "file"
        return {"type": kind, "url": base, **options}
    raise EvalError(f"'{url}' is no URL that builtins.fetchTree knows: file, git, path and tarball are")


def _text(value: Value, what: str) -> str:
    return str(without_context(expect_text(value, what), f"as {what}"))


def _no_mercurial(argument: Value) -> NoReturn:
    raise EvalError("builtins.fetchMercurial is not supported: fetch an archive of the revision instead")
