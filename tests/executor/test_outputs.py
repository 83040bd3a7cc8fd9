"""What becomes of files that a command left behind."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_from_proto, digest_of
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import FailedPrecondition, ResourceExhausted
from tvix.executor import outputs
from tvix.executor.command import plan_command
from tvix.executor.outputs import Collected, scan_outputs, store_outputs


def scan(root: Path, **fields: Any) -> Collected:
    plan = plan_command(re_pb2.Action(), re_pb2.Command(arguments=["x"], **fields))
    return scan_outputs(root, plan, "sha256")


def tree_of(collected: Collected, directory: re_pb2.OutputDirectory) -> re_pb2.Tree:
    return re_pb2.Tree.FromString(collected.blobs[digest_from_proto(directory.tree_digest)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_output_paths_discover_types(root: Path) -> None:
    (root / "file").write_text("contents")
    (root / "program").write_text("#!")
    (root / "program").chmod(0o755)
    (root / "folder").mkdir()
    (root / "link").symlink_to("nowhere")
    result = scan(root, output_paths=["file", "folder", "link", "program"]).result
    assert [(file.path, file.is_executable) for file in result.output_files] == [("file", False), ("program", True)]
    assert digest_from_proto(result.output_files[0].digest) == digest_of(b"contents")
    assert [directory.path for directory in result.output_directories] == ["folder"]
    assert [(link.path, link.target) for link in result.output_symlinks] == [("link", "nowhere")]


def test_output_paths_win_over_the_deprecated_fields(root: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    result = scan(root, output_paths=["a"], output_files=["b"]).result
    assert [file.path for file in result.output_files] == ["a"]


def test_missing_outputs_are_left_out(root: Path) -> None:
    (root / "file").write_text("")
    collected = scan(root, output_paths=["absent", "no/such/folder", "file/below-a-file"])
    assert collected.result == re_pb2.ActionResult()
    assert not collected.mismatches


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_files": ["folder"]}, "output 'folder' in output_files is a directory, not a file"),
        ({"output_directories": ["file"]}, "output 'file' in output_directories is a file, not a directory"),
    ],
)
def test_deprecated_fields_check_the_type(root: Path, fields: dict[str, list[str]], message: str) -> None:
    (root / "file").write_text("x")
    (root / "folder").mkdir()
    collected = scan(root, **fields)
    assert collected.mismatches == [message]
    assert not collected.result.output_files
    assert not collected.result.output_directories


def test_a_directory_may_stand_for_a_file_where_the_plan_says_so(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "file").write_text("x")
    command = re_pb2.Command(arguments=["true"], output_files=["folder"])
    plan = replace(plan_command(re_pb2.Action(), command), directories_for_files=True)
    collected = scan_outputs(root, plan, "sha256")
    assert not collected.mismatches
    assert [output.path for output in collected.result.output_directories] == ["folder"]
    command = re_pb2.Command(arguments=["true"], output_directories=["file"])
    plan = replace(plan_command(re_pb2.Action(), command), directories_for_files=True)
    assert scan_outputs(root, plan, "sha256").mismatches


def test_symlinks_are_told_in_new_and_legacy_lists(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "to-folder").symlink_to("folder")
    (root / "to-nothing").symlink_to("/etc/passwd")
    result = scan(root, output_paths=["to-folder", "to-nothing"]).result
    assert [link.path for link in result.output_symlinks] == ["to-folder", "to-nothing"]
    assert [link.path for link in result.output_directory_symlinks] == ["to-folder"]
    assert [link.path for link in result.output_file_symlinks] == ["to-nothing"]


def test_symlinks_under_deprecated_fields_stay_in_the_legacy_lists(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "link").symlink_to("folder")
    result = scan(root, output_files=["link"]).result
    assert not result.output_symlinks
    assert [link.path for link in result.output_file_symlinks] == ["link"]
    result = scan(root, output_directories=["link"]).result
    assert [link.path for link in result.output_directory_symlinks] == ["link"]
    assert not result.output_directories


def test_tree_is_sorted_parents_first_without_duplicates(root: Path) -> None:
    for name in ("a/same", "b/same", "z"):
        (root / "out" / name).mkdir(parents=True)
    for name in ("a/same/f", "b/same/f", "z/other"):
        (root / "out" / name).write_text("f")
    (root / "out" / "b" / "link").symlink_to("../../..")
    collected = scan(root, output_paths=["out"])
    (directory,) = collected.result.output_directories
    assert directory.is_topologically_sorted
    assert not directory.HasField("root_directory_digest")
    tree = tree_of(collected, directory)
    assert [node.name for node in tree.root.directories] == ["a", "b", "z"]
    encoded = [child.SerializeToString() for child in tree.children]
    assert len(encoded) == len(set(encoded)) == 4, "a, b, z and one `same`"
    position = {digest_of(data): index for index, data in enumerate(encoded)}
    for index, child in enumerate(tree.children):
        assert all(position[digest_from_proto(node.digest)] > index for node in child.directories)
    assert tree.children[position[digest_from_proto(tree.root.directories[1].digest)]].symlinks[0].target == "../../.."


@pytest.mark.parametrize("kind", [re_pb2.Command.DIRECTORY_ONLY, re_pb2.Command.TREE_AND_DIRECTORY])
def test_directory_formats_get_both_forms(root: Path, kind: re_pb2.Command.OutputDirectoryFormat.ValueType) -> None:
    (root / "out" / "sub").mkdir(parents=True)
    (root / "out" / "sub" / "f").write_text("f")
    collected = scan(root, output_paths=["out"], output_directory_format=kind)
    (directory,) = collected.result.output_directories
    tree = tree_of(collected, directory)
    assert digest_from_proto(directory.root_directory_digest) == digest_of(tree.root.SerializeToString())
    for message in (tree.root, *tree.children):
        assert digest_of(message.SerializeToString()) in collected.blobs


def test_unknown_directory_format_is_tree_only(root: Path) -> None:
    (root / "out").mkdir()
    (directory,) = scan(root, output_paths=["out"], output_directory_format=99).result.output_directories
    assert not directory.HasField("root_directory_digest")


def test_empty_directory_has_a_tree(root: Path) -> None:
    (root / "out").mkdir()
    collected = scan(root, output_paths=["out"], output_directory_format=re_pb2.Command.TREE_AND_DIRECTORY)
    (directory,) = collected.result.output_directories
    assert directory.root_directory_digest.size_bytes == 0
    assert tree_of(collected, directory) == re_pb2.Tree(root=re_pb2.Directory())
    assert all(digest.size_bytes for digest in collected.blobs)


def test_empty_path_is_the_working_directory(root: Path) -> None:
    (root / "work").mkdir()
    (root / "work" / "f").write_text("f")
    (root / "outside").write_text("o")
    for field in ("output_paths", "output_directories"):
        collected = scan(root, working_directory="work", **{field: [""]})
        (directory,) = collected.result.output_directories
        assert directory.path == ""
        assert [file.name for file in tree_of(collected, directory).root.files] == ["f"]


def test_outputs_above_the_working_directory(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "install").mkdir()
    (root / "install" / "f").write_text("f")
    collected = scan(root, working_directory="a/b", output_paths=["../../install", "../.."])
    first, second = collected.result.output_directories
    assert (first.path, second.path) == ("../../install", "../..")
    assert [node.name for node in tree_of(collected, second).root.directories] == ["a", "install"]


def test_nested_outputs(root: Path) -> None:
    (root / "out" / "sub").mkdir(parents=True)
    (root / "out" / "sub" / "f").write_text("f")
    result = scan(root, output_paths=["out", "out/sub", "out/sub/f"]).result
    assert [directory.path for directory in result.output_directories] == ["out", "out/sub"]
    assert [file.path for file in result.output_files] == ["out/sub/f"]


def test_node_properties_on_request(root: Path) -> None:
    (root / "out").mkdir()
    (root / "f").write_text("f")
    (root / "f").chmod(0o640)
    os.utime(root / "f", ns=(0, 1_500_000_000_000_000_007))
    os.utime(root / "out", ns=(0, 7_000_000_000))
    collected = scan(root, output_paths=["f", "out"], output_node_properties=["mtime", "Unix_Mode"])
    properties = collected.result.output_files[0].node_properties
    assert properties.mtime.ToNanoseconds() == 1_500_000_000_000_000_007
    assert properties.unix_mode.value == 0o640
    tree = tree_of(collected, collected.result.output_directories[0])
    assert tree.root.node_properties.mtime.seconds == 7
    assert not scan(root, output_paths=["f"]).result.output_files[0].HasField("node_properties")


def test_special_files_are_refused_by_name(root: Path) -> None:
    (root / "out").mkdir()
    os.mkfifo(root / "out" / "pipe")
    with pytest.raises(FailedPrecondition, match=r"output 'out/pipe' is a named pipe; only regular files"):
        scan(root, output_paths=["out"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        with pytest.raises(FailedPrecondition, match="output 'socket' is a socket"):
            scan(root, output_paths=["socket"])


def test_names_that_are_not_utf8_are_refused(root: Path) -> None:
    (root / "out").mkdir()
    (root / "out" / os.fsdecode(b"\xff")).write_text("")
    with pytest.raises(FailedPrecondition, match=r"not UTF-8: b'.xff'"):
        scan(root, output_paths=["out"])


@pytest.mark.parametrize("target", ["{outside}", "/", "../..", "../secret-folder", "/proc/self/root"])
def test_symlinked_parents_lead_nowhere_outside(root: Path, target: str) -> None:
    outside = root.parent / "secret-folder"
    outside.mkdir()
    (outside / "key").write_text("secret")
    (root / "way").symlink_to(target.format(outside=outside))
    result = scan(root, output_paths=["way/key", "way/secret-folder/key", f"way{outside}/key"]).result
    assert result == re_pb2.ActionResult()


def test_symlinked_parents_inside_are_followed(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "f").write_text("f")
    (root / "way").symlink_to("/real")
    assert [file.path for file in scan(root, output_paths=["way/f"]).result.output_files] == ["way/f"]


def test_unreadable_outputs_are_read_anyway(root: Path) -> None:
    (root / "out").mkdir()
    (root / "out" / "f").write_text("f")
    (root / "out" / "f").chmod(0)
    (root / "out").chmod(0)
    collected = scan(root, output_paths=["out"])
    assert digest_of(b"f") in collected.blobs


def test_too_deep_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_DEPTH", 5)
    (root / "/".join("abcdefghij")).mkdir(parents=True)
    with pytest.raises(ResourceExhausted, match="more than 5 levels"):
        scan(root, output_paths=["a"])


def test_deepest_allowed_tree_does_not_exhaust_the_stack(root: Path) -> None:
    (root / "/".join("d" * outputs.MAX_DEPTH)).mkdir(parents=True)
    (directory,) = scan(root, output_paths=["d"]).result.output_directories
    assert directory.is_topologically_sorted


def test_too_many_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_ENTRIES", 5)
    for number in range(6):
        (root / str(number)).write_text("")
    with pytest.raises(ResourceExhausted, match="more than 5 files"):
        scan(root, output_paths=[""])


def test_large_files_are_hashed_whatever_way(root: Path) -> None:
    contents = {name: os.urandom(outputs.PARALLEL_FILE_BYTES + index) for index, name in enumerate("abcd")}
    (root / "out" / "sub").mkdir(parents=True)
    (root / "out" / "a").write_bytes(contents["a"])
    (root / "out" / "sub" / "b").write_bytes(contents["b"])
    (root / "c").write_bytes(contents["c"])
    (root / "d").write_bytes(contents["d"])
    (root / "d").chmod(0)
    (root / "out" / "link").symlink_to("../c")
    together = scan(root, output_paths=["out", "c", "d", "absent"])
    assert set(together.files) == {digest_of(data) for data in contents.values()}
    alone = scan(root, output_paths=["c"])
    assert set(alone.files) == {digest_of(contents["c"])}


class Counting(MemoryBlobStore):
    """Counts what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Digest] = []

    async def write(self, digest: Digest, chunks: Any) -> None:
        self.written.append(digest)
        await super().write(digest, chunks)


async def test_small_and_large_files_are_stored(root: Path) -> None:
    large = os.urandom(outputs.SMALL_FILE_BYTES + 1)
    (root / "out").mkdir()
    (root / "out" / "large").write_bytes(large)
    (root / "out" / "again").write_bytes(large)
    for number in range(20):
        (root / "out" / f"small{number}").write_text(str(number))
    blobs = Counting()
    collected = scan(root, output_paths=["out"])
    await store_outputs(blobs, root, collected)
    assert blobs.written == [digest_of(large)]
    assert {digest_of(str(number).encode()) for number in range(20)} <= blobs.blobs.keys()
    await store_outputs(blobs, root, collected)
    assert blobs.written == [digest_of(large)], "what is there is not stored again"
