"""Directories: what is canonical, what is refused and how it is said, and Trees there and back."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import EMPTY, FUNCTIONS, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import (
    children,
    directories_from_tree,
    directory_digest,
    encode_directory,
    parse_directory,
    sort_directory,
    tree_from_directories,
)
from tvix.errors import InvalidDirectory

A_DIGEST = re_pb2.Digest(hash="ab" * 32, size_bytes=7)


def file_node(name: str, digest: re_pb2.Digest = A_DIGEST) -> re_pb2.FileNode:
    return re_pb2.FileNode(name=name, digest=digest)


def folder_node(name: str, digest: re_pb2.Digest = A_DIGEST) -> re_pb2.DirectoryNode:
    return re_pb2.DirectoryNode(name=name, digest=digest)


def link_node(name: str, target: str) -> re_pb2.SymlinkNode:
    return re_pb2.SymlinkNode(name=name, target=target)


BAD = [
    (re_pb2.Directory(files=[file_node("")]), "a name is empty"),
    (re_pb2.Directory(files=[file_node(".")]), "'.' is reserved"),
    (re_pb2.Directory(directories=[folder_node("..")]), "'..' is reserved"),
    (re_pb2.Directory(symlinks=[link_node("a/b", "t")]), "'a/b' holds a slash"),
    (re_pb2.Directory(files=[file_node("a\0b")]), "holds a NUL"),
    (re_pb2.Directory(files=[file_node("a"), file_node("a")]), "'a' occurs twice"),
    (re_pb2.Directory(files=[file_node("a")], directories=[folder_node("a")]), "'a' occurs twice"),
    (re_pb2.Directory(directories=[folder_node("a")], symlinks=[link_node("a", "t")]), "'a' occurs twice"),
    (re_pb2.Directory(files=[file_node("b"), file_node("a")]), "files are not sorted by name: 'a' comes after 'b'"),
    (re_pb2.Directory(directories=[folder_node("b"), folder_node("a")]), "directories are not sorted"),
    (re_pb2.Directory(symlinks=[link_node("b", "t"), link_node("a", "t")]), "symlinks are not sorted"),
    (re_pb2.Directory(symlinks=[link_node("a", "")]), "symlink 'a': its target is empty"),
    (re_pb2.Directory(symlinks=[link_node("a", "x\0")]), "symlink 'a': its target holds a NUL"),
    (re_pb2.Directory(files=[re_pb2.FileNode(name="a")]), "entry 'a': digest.hash: ''"),
    (re_pb2.Directory(files=[file_node("a", re_pb2.Digest(hash="AB" * 32))]), "entry 'a': digest.hash"),
    (re_pb2.Directory(files=[file_node("a", re_pb2.Digest(hash="ab" * 20))]), "is not a sha256 hash"),
    (
        re_pb2.Directory(directories=[folder_node("a", re_pb2.Digest(hash="ab" * 32, size_bytes=-1))]),
        "entry 'a': digest.size_bytes: -1",
    ),
]


@pytest.mark.parametrize(("directory", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_an_invalid_directory_is_refused_by_name_and_reason(directory: re_pb2.Directory, reason: str) -> None:
    data = directory.SerializeToString()
    for check in (parse_directory, children):
        with pytest.raises(InvalidDirectory) as caught:
            check(data, "sha256", where="directory x/y")
        assert str(caught.value).startswith("directory x/y: ")
        assert reason in str(caught.value)


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidDirectory, match="are not a Directory message"):
        parse_directory(b"\x0a\xff\xff", "sha256")


def test_order_is_not_asked_for_unless_strict() -> None:
    data = re_pb2.Directory(files=[file_node("b"), file_node("a")]).SerializeToString()
    assert [node.name for node in parse_directory(data, "sha256", strict=False).files] == ["b", "a"]
    assert len(children(data, "sha256", strict=False).files) == 2


def test_colons_spaces_and_absolute_targets_are_fine() -> None:
    directory = re_pb2.Directory(
        files=[file_node("a:b"), file_node("with space"), file_node("é\n")], symlinks=[link_node("l", "/nix/store/..")]
    )
    assert parse_directory(directory.SerializeToString(), "sha256") == directory


def test_names_sort_by_code_point_as_bytes_do() -> None:
    names = ["z", "é", "\uffff", "\U0001f600"]
    assert names == sorted(names, key=lambda name: name.encode())
    parse_directory(re_pb2.Directory(files=[file_node(name) for name in names]).SerializeToString(), "sha256")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_children_are_under_the_function_of_the_parent(function: DigestFunction) -> None:
    inner, data = directory_digest(re_pb2.Directory(), function), digest_of(b"data", function)
    directory = re_pb2.Directory(
        files=[file_node("f", digest_to_proto(data)), file_node("g", digest_to_proto(data))],
        directories=[folder_node("d", digest_to_proto(inner))],
    )
    found = children(encode_directory(directory), function)
    assert found.files == (data, data)
    assert all(type(digest) is Digest for digest in (*found.files, *found.directories))
    assert found.directories == (EMPTY[function],)


def test_sorting_makes_it_canonical() -> None:
    directory = re_pb2.Directory(
        files=[file_node("b"), file_node("a")], symlinks=[link_node("y", "t"), link_node("x", "t")]
    )
    sort_directory(directory)
    assert parse_directory(encode_directory(directory), "sha256") == directory


def make_directories(*specs: tuple[str, list[tuple[str, str]]]) -> tuple[dict[str, Digest], dict[Digest, bytes]]:
    """Return digests by label and bytes by digest; each spec is (label, its children), leaves first."""
    labels: dict[str, Digest] = {}
    blobs: dict[Digest, bytes] = {}
    for label, entries in specs:
        directory = re_pb2.Directory(
            files=[file_node(f"file of {label}")],
            directories=[folder_node(name, digest_to_proto(labels[child])) for name, child in entries],
        )
        labels[label] = directory_digest(directory)
        blobs[labels[label]] = encode_directory(directory)
    return labels, blobs


def test_a_tree_has_its_root_first_parents_before_children_each_once() -> None:
    labels, blobs = make_directories(
        ("leaf", []), ("middle", [("x", "leaf")]), ("root", [("a", "leaf"), ("b", "middle"), ("c", "middle")])
    )
    unrelated, more = make_directories(("unrelated", []))
    encoded = tree_from_directories(labels["root"], {**blobs, **more})
    tree = re_pb2.Tree.FromString(encoded)
    assert encoded[0] == 0x0A
    assert directory_digest(tree.root) == labels["root"]
    assert [directory_digest(child) for child in tree.children] == [labels["middle"], labels["leaf"]]
    assert unrelated["unrelated"] not in directories_from_tree(encoded, "sha256")[1]
    assert directories_from_tree(encoded, "sha256") == (labels["root"], blobs)
    assert tree.SerializeToString(deterministic=True) == encoded


def test_siblings_stand_in_order_of_their_names() -> None:
    labels, blobs = make_directories(("one", []), ("two", []), ("root", [("a", "one"), ("b", "two")]))
    order = list(directories_from_tree(tree_from_directories(labels["root"], blobs), "sha256")[1])
    assert order == [labels["root"], labels["one"], labels["two"]]


def test_a_lacking_directory_is_named() -> None:
    labels, blobs = make_directories(("leaf", []), ("root", [("a", "leaf")]))
    del blobs[labels["leaf"]]
    with pytest.raises(KeyError) as caught:
        tree_from_directories(labels["root"], blobs)
    assert caught.value.args == (labels["leaf"],)


def test_an_empty_directory_below_needs_no_blob() -> None:
    directory = re_pb2.Directory(directories=[folder_node("empty", digest_to_proto(EMPTY["sha256"]))])
    root = directory_digest(directory)
    tree = re_pb2.Tree.FromString(tree_from_directories(root, {root: encode_directory(directory)}))
    assert list(tree.children) == [re_pb2.Directory()]


def test_the_empty_tree_is_an_empty_root() -> None:
    for encoded in (b"", tree_from_directories(EMPTY["blake3"], {})):
        assert directories_from_tree(encoded, "blake3") == (EMPTY["blake3"], {EMPTY["blake3"]: b""})


def test_a_tree_ten_thousand_deep_is_no_matter() -> None:
    digest, blobs = EMPTY["sha256"], {}
    for _ in range(10_000):
        directory = re_pb2.Directory(directories=[folder_node("d", digest_to_proto(digest))])
        digest = directory_digest(directory)
        blobs[digest] = encode_directory(directory)
    encoded = tree_from_directories(digest, blobs)
    assert len(directories_from_tree(encoded, "sha256")[1]) == 10_001


@pytest.mark.parametrize("cut", [1, 2, 5, 50])
def test_a_tree_cut_off_is_refused(cut: int) -> None:
    labels, blobs = make_directories(("root", []))
    with pytest.raises(InvalidDirectory, match="cut off"):
        directories_from_tree(tree_from_directories(labels["root"], blobs)[:-cut], "sha256")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_tree_or_refused(data: bytes) -> None:
    try:
        root, directories = directories_from_tree(data, "sha256")
        assert root in directories
    except InvalidDirectory:
        pass
    with contextlib.suppress(InvalidDirectory):
        children(data, "sha256")


def test_unknown_fields_of_directories_survive_in_a_tree() -> None:
    data = b"\xfa\x3f\x03abc"  # field 1023, length-delimited
    digest = digest_of(data)
    assert directories_from_tree(tree_from_directories(digest, {digest: data}), "sha256") == (digest, {digest: data})


def test_fifty_thousand_files_are_scanned_fast() -> None:
    directory = re_pb2.Directory(files=[file_node(f"file-{index:05}") for index in range(50_000)])
    data = encode_directory(directory)
    start = time.process_time()
    assert len(children(data, "sha256").files) == 50_000
    assert time.process_time() - start < 0.5, "0.03 s on the machine it was written on"
