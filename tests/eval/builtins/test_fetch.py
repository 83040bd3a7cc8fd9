"""Builtins that fetch, from file URLs and repositories made here. Hashes and paths are those of real Nix."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tvix.eval.errors import EvalError
from tvix.eval.evaluator import Evaluator
from tvix.eval.settings import Settings
from tvix.eval.values import Attrs, force
from tvix.translate.eval_io import StoreIO
from tvix.translate.fetch import Cache, Fetcher
from tvix.translate.folder_store import FolderStore

SOURCE = "/nix/store/lvlraai1zq4ml340a4xn72y7aibgc4gs-source"
"""What real Nix makes of the second commit, and of the archive."""
SIDE = "/nix/store/2q831adhl9jhxjld1qyqybq4mxqjbqbv-source"
NAR_HASH = "sha256-3544kWJJyDYtwxgmnSaqUjzmlm54GdLWYjXIkAQT+NI="
DATE = "2024-01-02T03:04:05Z"
SECONDS = 1704164645
EMPTY_HASH = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {"GIT_AUTHOR_DATE": DATE, "GIT_COMMITTER_DATE": DATE, "HOME": str(folder), **identity}
    path = {"PATH": "/usr/bin:/bin:/usr/local/bin"}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], env={**environment, **path}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "d").mkdir(parents=True)
    (root / "a").write_text("hi\n")
    (root / "d" / "b").write_text("x\n")
    (root / "d" / "b").chmod(0o755)
    (root / "l").symlink_to("a")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    git(root, "branch", "side")
    (root / "a").write_text("hi\ntwo\n")
    git(root, "commit", "-qam", "two")
    return root


@pytest.fixture
def archive(repository: Path, tmp_path: Path) -> Path:
    path = tmp_path / "g.tar.gz"

    def no_git(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.mtime = 1700000000
        return None if "/.git" in member.name else member

    with tarfile.open(path, "w:gz") as tar:
        tar.add(repository, "top", filter=no_git)
    return path


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def evaluator(tmp_path: Path, logged: list[str]) -> Evaluator:
    return make_evaluator(tmp_path, logged)


def make_evaluator(folder: Path, logged: list[str], **settings: Any) -> Evaluator:
    def make_fetcher() -> Fetcher:
        mirrors = [("https://mirrored.example/", f"file://{folder}/")]
        return Fetcher(Cache(folder / "cache"), mirrors=mirrors, log=logged.append)

    io = StoreIO(FolderStore(folder / "store"), make_fetcher=make_fetcher)
    return Evaluator(io, Settings(use_nix_path=False, log=logged.append, **settings))


def evaluate(evaluator: Evaluator, expression: str) -> Any:
    with evaluator.reporting():
        value = evaluator.evaluate_text(expression, "/")
        return {name: force(item) for name, item in value.items()} if value.__class__ is Attrs else value


def test_tarball_is_unpacked_without_its_top_folder(evaluator: Evaluator, archive: Path) -> None:
    assert evaluate(evaluator, f'builtins.fetchTarball "file://{archive}"') == SOURCE
    assert evaluate(evaluator, f'builtins.readFile "${{fetchTarball "file://{archive}"}}/a"') == "hi\ntwo\n"


def test_tarball_with_its_hash_is_not_fetched_again(evaluator: Evaluator, archive: Path) -> None:
    expression = f'fetchTarball {{ url = "file://{archive}"; sha256 = "{NAR_HASH}"; }}'
    assert evaluate(evaluator, expression) == SOURCE
    archive.unlink()
    assert evaluate(evaluator, expression) == SOURCE


def test_wrong_hashes_are_told(evaluator: Evaluator, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    with pytest.raises(EvalError, match=f"specified: {EMPTY_HASH[:10]}.*\n.*got: .*{NAR_HASH[:20]}"):
        evaluate(evaluator, f'fetchTarball {{ url = "file://{archive}"; sha256 = "{EMPTY_HASH}"; }}')
    with pytest.raises(EvalError, match=r"hash mismatch in file downloaded from 'file:.*/f'"):
        evaluate(evaluator, f'builtins.fetchurl {{ url = "file://{tmp_path}/f"; sha256 = "{EMPTY_HASH}"; }}')
    with pytest.raises(EvalError, match="NAR hash mismatch"):
        evaluate(
            evaluator,
            f'builtins.fetchTree {{ type = "path"; path = "{tmp_path}/f"; narHash = "{EMPTY_HASH}"; }}',
        )


def test_url_by_way_of_a_mirror(evaluator: Evaluator, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    found = evaluate(
        evaluator, f'builtins.fetchurl {{ url = "https://mirrored.example/empty"; sha256 = "{EMPTY_HASH}"; }}'
    )
    assert found.endswith("-empty")
    assert evaluate(evaluator, 'builtins.readFile (builtins.fetchurl "https://mirrored.example/empty")') == ""


def test_git_repository(evaluator: Evaluator, repository: Path) -> None:
    found = evaluate(evaluator, f"builtins.fetchGit {repository}")
    rev = git(repository, "rev-parse", "HEAD")
    assert found == {
        "lastModified": SECONDS,
        "lastModifiedDate": "20240102030405",
        "narHash": NAR_HASH,
        "outPath": SOURCE,
        "rev": rev,
        "revCount": 2,
        "shortRev": rev[:7],
        "submodules": False,
    }


def test_git_by_ref_and_by_commit(evaluator: Evaluator, repository: Path) -> None:
    side = git(repository, "rev-parse", "side")
    assert evaluate(evaluator, f'builtins.fetchGit {{ url = {repository}; ref = "side"; }}')["outPath"] == SIDE
    by_commit = evaluate(evaluator, f'builtins.fetchGit {{ url = "file://{repository}"; rev = "{side}"; }}')
    assert (by_commit["outPath"], by_commit["revCount"]) == (SIDE, 1)
    with pytest.raises(EvalError, match="no commit 'nothing'"):
        evaluate(evaluator, f'builtins.fetchGit {{ url = {repository}; ref = "nothing"; }}')


def test_work_tree_with_changes(evaluator: Evaluator, repository: Path, logged: list[str]) -> None:
    (repository / "a").write_text("changed")
    (repository / "untracked").touch()
    (repository / "d" / "staged").touch()
    git(repository, "add", "d/staged")
    found = evaluate(evaluator, f"builtins.fetchGit {repository}")
    assert (found["rev"], found["shortRev"], found["revCount"]) == ("0" * 40, "0000000", 0)
    assert evaluate(evaluator, f"builtins.readDir (builtins.fetchGit {repository})").keys() == {"a", "d", "l"}
    assert logged[0] == f"warning: Git tree '{repository}' is dirty"
    tree = evaluate(evaluator, f'builtins.fetchTree {{ type = "git"; url = "file://{repository}"; }}')
    assert "rev" not in tree


@pytest.mark.parametrize(
    ("description", "path"),
    [
        ('"git+file://{repository}?ref=side"', SIDE),
        ('{{ type = "git"; url = "file://{repository}"; }}', SOURCE),
        ('"file://{archive}"', SOURCE),
        ('{{ type = "tarball"; url = "file://{archive}"; narHash = "{hash}"; }}', SOURCE),
        ('"path:{repository}/d"', "/nix/store/s2r9z42zg1z19cjajyp7g7nhw8w192ng-source"),
    ],
)
def test_trees(evaluator: Evaluator, repository: Path, archive: Path, description: str, path: str) -> None:
    expression = description.format(repository=repository, archive=archive, hash=NAR_HASH)
    assert evaluate(evaluator, f"builtins.fetchTree {expression}")["outPath"] == path


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ('builtins.fetchurl { url = "file:///x"; other = 1; }', "a string was expected"),
        ('builtins.fetchurl { url = "file:///x"; other = ""; }', "unsupported argument 'other'"),
        ("builtins.fetchurl { }", "'url' argument required"),
        ('builtins.fetchurl "file:///nowhere/x"', "unable to fetch 'file:///nowhere/x'"),
        ('builtins.fetchurl "ftp://x/y"', "only file, http and https"),
        ("fetchTarball 1", "a string was expected"),
        ('fetchTarball { url = "file:///x"; sha256 = "x"; }', "wrong length"),
        ("builtins.fetchGit { }", "'url' argument required"),
        ('builtins.fetchGit { url = "/x"; rev = "main"; }', "40 hex digits"),
        ('builtins.fetchGit "/nowhere"', "there is no folder '/nowhere'"),
        ("builtins.fetchTree { }", "attribute 'type' is missing"),
        ('builtins.fetchTree { type = "odd"; url = "x"; }', "type 'odd' is not supported"),
        ('builtins.fetchTree "odd:x"', "no URL that builtins.fetchTree knows"),
        ('builtins.fetchMercurial "x"', "not supported"),
    ],
)
def test_errors_name_the_cause(evaluator: Evaluator, expression: str, reason: str) -> None:
    with pytest.raises(EvalError, match=reason):
        evaluate(evaluator, expression)


@pytest.mark.parametrize(
    "expression",
    [
        'builtins.fetchurl "file:///x"',
        'fetchTarball "file:///x"',
        "builtins.fetchGit /x",
        'builtins.fetchTree "path:/x"',
    ],
)
def test_pure_evaluation_fetches_only_what_is_locked(tmp_path: Path, logged: list[str], expression: str) -> None:
    with pytest.raises(EvalError, match="in pure evaluation mode"):
        evaluate(make_evaluator(tmp_path, logged, pure=True), expression)
