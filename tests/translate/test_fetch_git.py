"""Git repositories made here; the builtins over them are tested in tests/eval/builtins/test_fetch.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tvix.eval.errors import EvalError
from tvix.eval.io import GitRequest
from tvix.translate.fetch import Cache
from tvix.translate.fetch_git import GitFetcher


def git(folder: Path, *arguments: str) -> str:
    identity = [item for name in ("user.name", "user.email") for item in ("-c", f"{name}=a@b")]
    command = ["git", "-C", str(folder), *identity, "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "f").write_text("one")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    return root


@pytest.fixture
def fetcher(tmp_path: Path) -> GitFetcher:
    return GitFetcher(Cache(tmp_path / "cache"), lambda text: None)


def test_commits_are_exported_without_git_folders(fetcher: GitFetcher, repository: Path) -> None:
    found = fetcher.fetch(GitRequest(f"file://{repository}", ref="main"))
    assert [entry.name for entry in Path(found.path).iterdir()] == ["f"]
    assert (found.rev, found.rev_count) == (git(repository, "rev-parse", "HEAD"), 1)


def test_shallow_requests_count_no_commits(fetcher: GitFetcher, repository: Path) -> None:
    assert fetcher.fetch(GitRequest(str(repository), shallow=True)).rev_count is None


def test_export_ignore_counts(fetcher: GitFetcher, repository: Path) -> None:
    (repository / ".gitattributes").write_text("f export-ignore\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    found = fetcher.fetch(GitRequest(str(repository)))
    assert [entry.name for entry in Path(found.path).iterdir()] == [".gitattributes"]


def test_submodules(fetcher: GitFetcher, repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q", "-b", "main")
    git(outer, "submodule", "--quiet", "add", str(repository), "inner")
    git(outer, "commit", "-qm", "one")
    without = Path(fetcher.fetch(GitRequest(str(outer))).path)
    with_them = Path(fetcher.fetch(GitRequest(str(outer), submodules=True)).path)
    assert list((without / "inner").iterdir()) == []
    assert sorted(str(path.relative_to(with_them)) for path in with_them.rglob("*")) == [
        ".gitmodules",
        "inner",
        "inner/f",
    ]


def test_a_repository_without_commits_takes_its_files(fetcher: GitFetcher, tmp_path: Path) -> None:
    root = tmp_path / "new"
    root.mkdir()
    git(root, "init", "-q")
    (root / "f").touch()
    git(root, "add", ".")
    found = fetcher.fetch(GitRequest(str(root)))
    assert found.keep is not None
    assert (found.rev, found.keep(f"{root}/f", "regular"), found.keep(f"{root}/.git", "directory")) == ("", True, False)


def test_what_git_says_is_told(fetcher: GitFetcher) -> None:
    with pytest.raises(EvalError, match=r"git .* failed"):
        fetcher.fetch(GitRequest("https://127.0.0.1:1/none"))
