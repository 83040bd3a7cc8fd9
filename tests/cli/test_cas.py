"""`tvix cas` against a running server."""

import os
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.server.running import RunningServer, tvix

ABSENT = f"{'0' * 64}/3"


def make_tree(folder: Path) -> Path:
    """A folder with everything a tree can hold."""
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("hello\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    (folder / "large").write_bytes(os.urandom(1024) * 3000)
    return folder


def put(path: Path, *options: str) -> str:
    """Upload and return the digest."""
    done = tvix("cas", "put", *options, str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


def test_a_folder_comes_back_as_it_was(server: RunningServer, tmp_path: Path) -> None:
    source, copy = make_tree(tmp_path / "source"), tmp_path / "copy"
    digest = put(source)
    assert tvix("cas", "get", digest, str(copy)).returncode == 0
    found = sorted(str(path.relative_to(copy)) for path in copy.rglob("*"))
    assert found == ["large", "link", "run.sh", "sub", "sub/a.txt", "sub/empty"]
    assert (copy / "large").read_bytes() == (source / "large").read_bytes()
    assert os.readlink(copy / "link") == "run.sh"
    assert os.access(copy / "run.sh", os.X_OK)
    assert not os.access(copy / "sub" / "a.txt", os.X_OK) or os.stat(copy / "sub/a.txt").st_mode & 0o111 == 0


def test_what_is_there_is_not_sent_again(server: RunningServer, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    put(source)
    assert ": 0 B sent" in tvix("cas", "put", str(source)).stderr


def test_listing_and_printing(server: RunningServer, tmp_path: Path) -> None:
    digest = put(make_tree(tmp_path / "source"))
    lines = tvix("cas", "ls", "-R", digest).stdout.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "large", "link -> run.sh", "run.sh", "sub/", "sub/a.txt", "sub/empty/",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == ["-", "l", "-x", "d", "-", "d"]
    assert tvix("cas", "ls", digest, "sub").stdout.splitlines()[0].endswith("a.txt")
    assert tvix("cas", "cat", digest, "sub/a.txt").stdout == "hello\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cat", "DIGEST", "sub/none"), "sub/none: no such file or directory"),
        (("cat", "DIGEST", "sub"), "sub is not a file"),
        (("ls", "DIGEST", "run.sh"), "run.sh is not a directory"),
        (("ls", "DIGEST", "run.sh/x"), "run.sh is not a directory"),
        (("cat", ABSENT), f"blob {ABSENT} is not in the store"),
        (("get", ABSENT, "DESTINATION"), f"blob {ABSENT} is not in the store"),
    ],
)
def test_what_is_not_there_is_exit_code_4(
    server: RunningServer, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    digest = put(make_tree(tmp_path / "source"))
    words = {"DIGEST": digest, "DESTINATION": str(tmp_path / "new")}
    done = tvix("cas", *(words.get(word, word) for word in arguments))
    assert (done.returncode, message in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    done = tvix("cas", "get", ABSENT, str(tmp_path / "there"))
    assert (done.returncode, (tmp_path / "there").read_text()) == (1, "precious")


def test_stat_tells_what_is_there_and_what_it_looks_like(server: RunningServer, tmp_path: Path) -> None:
    action = server.put_action("echo hi")
    digest = put(make_tree(tmp_path / "source"))
    done = tvix("cas", "stat", digest, ABSENT, f"{action.hash}/{action.size_bytes}")
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    assert lines[0].endswith("Directory: 2 files, 1 directories")
    assert lines[1] == f"{ABSENT}  absent"
    assert lines[2].endswith("B  Action")


def test_other_digest_functions(server: RunningServer, tmp_path: Path) -> None:
    digest = put(make_tree(tmp_path / "source"), "--function", "blake3")
    assert digest.startswith("blake3/")
    assert tvix("cas", "cat", digest, "sub/a.txt").stdout == "hello\n"


def test_special_files_are_refused(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    done = tvix("cas", "put", str(tmp_path / "source"))
    assert (done.returncode, "source/pipe is neither a file" in done.stderr) == (2, True)


def test_an_output_that_is_a_tree_message_can_be_listed(server: RunningServer) -> None:
    file = server.put(b"in a tree")
    below = re_pb2.Directory(files=[re_pb2.FileNode(name="file", digest=file)])
    digest = server.put(below.SerializeToString())
    root = re_pb2.Directory(directories=[re_pb2.DirectoryNode(name="below", digest=digest)])
    tree = server.put(re_pb2.Tree(root=root, children=[below]).SerializeToString())
    lines = tvix("cas", "ls", "-R", f"{tree.hash}/{tree.size_bytes}").stdout.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == ["below/", "below/file"]
