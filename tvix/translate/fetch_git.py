"""Git trees for the evaluator, by the `git` program.

A work tree on this machine is taken as it is, with its changes, as far as Git knows of its files; otherwise a
commit's tree is exported (attributes `export-ignore` and `export-subst` count, as in Nix).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from tvix.eval.errors import EvalError
from tvix.eval.io import FetchedTree, FileType, Filter, GitRequest
from tvix.translate.fetch import Cache, digest_of, unpack_tar

_COMMIT = re.compile("[0-9a-f]{40}").fullmatch


class GitFetcher:
    """Fetches trees of repositories into a cache."""

    def __init__(self, cache: Cache, log: Callable[[str], None]) -> None:
        self._cache = cache
        self._log = log

    def __repr__(self) -> str:
        return f"<GitFetcher {self._cache!r}>"

    def fetch(self, request: GitRequest) -> FetchedTree:
        """Return the tree that was asked for; EvalError tells what git said."""
        local = _local_path(request.url)
        if local is not None and not os.path.isdir(local):
            raise EvalError(f"unable to fetch '{request.url}': there is no folder '{local}'")
        takes_work_tree = not (request.ref or request.rev)
        if local is not None and takes_work_tree and os.path.exists(f"{local}/.git") and not self._is_clean(local):
            self._log(f"warning: Git tree '{local}' is dirty")
            return self._work_tree(local, request)
        repository, commit = self._commit(request, local)
        return self._checkout(request, repository, commit)

    # Work trees.

    def _is_clean(self, local: str) -> bool:
        if _git(local, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False).returncode:
            return False
        return _git(local, "diff", "HEAD", "--quiet", "--ignore-submodules", check=False).returncode == 0

    def _work_tree(self, local: str, request: GitRequest) -> FetchedTree:
        options = ["--recurse-submodules"] if request.submodules else []
        listed = _git(local, "ls-files", "-z", *options).stdout.split(b"\0")
        files = {os.fsdecode(name) for name in listed if name}
        modified = _git(local, "log", "-1", "--format=%ct", "--no-show-signature", "HEAD", check=False).stdout.strip()
        return FetchedTree(local, int(modified or 0), keep=_only(local, files))

    # Commits.

    def _commit(self, request: GitRequest, local: str | None) -> tuple[str, str]:
        """Return a repository on this machine that has the commit, and the commit."""
        if local is not None:
            name = request.rev or request.ref or "HEAD"
            found = _git(local, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False)
            if found.returncode == 0:
                return local, found.stdout.decode().strip()
            raise EvalError(f"there is no commit '{name}' in the Git repository '{request.url}'")
        repository = self._cache.path("git", digest_of(request.url))
        if not os.path.isdir(repository):
            with self._cache.making(repository) as temporary:
                _git(temporary, "init", "--bare", "--quiet", "made")
        if request.rev and _has(repository, request.rev):
            return repository, request.rev
        return repository, self._fetch(request, repository)

    def _fetch(self, request: GitRequest, repository: str) -> str:
        ref = request.ref or "HEAD"
        if not (ref == "HEAD" or ref.startswith("refs/") or _COMMIT(ref)):
            ref = f"refs/heads/{ref}" if self._remote_has(request.url, f"refs/heads/{ref}") else ref
        wanted = "refs/*:refs/*" if request.all_refs or (request.rev and not request.ref) else ref
        depth = ["--depth=1"] if request.shallow and wanted == ref else []
        _git(repository, "fetch", "--quiet", "--force", *depth, "--", request.url, wanted)
        if not request.rev:
            name = "FETCH_HEAD" if wanted == ref else ref
            return _git(repository, "rev-parse", f"{name}^{{commit}}").stdout.decode().strip()
        if not _has(repository, request.rev):
            raise EvalError(
                f"cannot find commit '{request.rev}' in ref '{ref}' of '{request.url}': name the branch it is on "
                "with 'ref', or say 'allRefs = true'"
            )
        return request.rev

    def _remote_has(self, url: str, ref: str) -> bool:
        return _git("/", "ls-remote", "--exit-code", "--", url, ref, check=False).returncode == 0

    def _checkout(self, request: GitRequest, repository: str, commit: str) -> FetchedTree:
        suffix = "-submodules" if request.submodules else ""
        target = self._cache.path("checkouts", commit + suffix)
        if not os.path.isdir(target):
            with self._cache.making(target) as temporary:
                if request.submodules:
                    _clone_with_submodules(request, repository, commit, temporary)
                else:
                    _export(repository, commit, temporary)
        modified = int(_git(repository, "log", "-1", "--format=%ct", "--no-show-signature", commit).stdout)
        count = None if request.shallow else int(_git(repository, "rev-list", "--count", commit).stdout)
        return FetchedTree(target, modified, commit, count)


def _export(repository: str, commit: str, temporary: str) -> None:
    os.mkdir(f"{temporary}/made")
    _git(repository, "archive", "--format=tar", "-o", f"{temporary}/tar", commit)
    unpack_tar(f"{temporary}/tar", f"{temporary}/made")


def _clone_with_submodules(request: GitRequest, repository: str, commit: str, temporary: str) -> None:
    made = f"{temporary}/made"
    _git(temporary, "clone", "--quiet", "--no-checkout", "--", repository, "made")
    _git(made, "remote", "set-url", "origin", request.url)
    _git(made, "checkout", "--quiet", commit)
    _git(made, "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive")
    for folder, folders, files in os.walk(made):
        if ".git" in folders:
            folders.remove(".git")
            shutil.rmtree(f"{folder}/.git")
        elif ".git" in files:
            os.unlink(f"{folder}/.git")


def _has(repository: str, commit: str) -> bool:
    return _git(repository, "cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode == 0


def _local_path(url: str) -> str | None:
    if url.startswith("/"):
        return url
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" else None


def _only(root: str, files: set[str]) -> Filter:
    """Return a filter for files known to Git and the folders that they are in."""
    folders = {name for file in files for name in _parents(file)}

    def keep(path: str, kind: FileType) -> bool:
        name = path[len(root.rstrip("/")) + 1 :]
        return name in folders if kind == "directory" else name in files

    return keep


def _parents(file: str) -> list[str]:
    parts = file.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _git(folder: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder, as nobody in particular; EvalError when it fails, if `check`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "SSH" in name}
    environment.update(GIT_TERMINAL_PROMPT="0", LC_ALL="C")
    try:
        done = subprocess.run(
            ["git", "-C", folder, "-c", "safe.directory=*", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise EvalError("the program 'git' is needed to fetch Git repositories, and is not installed") from error
    if check and done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise EvalError(f"git {arguments[0]} failed: {said}")
    return done
